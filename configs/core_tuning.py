"""Core-tuning's contrast on sentences: hard positives by mixup, focal weights.

Zhang et al., Unleashing the Power of Contrastive Self-Supervised Visual Models via
Contrast-Regularized Fine-Tuning, NeurIPS 2021 (arXiv:2102.06605): alpha 1. The paper
is about images with labels; all other settings are SimCSE's.

python -m dcse_jax.main --config configs/core_tuning.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/core_tuning
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.objective = "core_tuning"
  config.core_tuning = dict(temperature=0.05, alpha=1.0)
  config.recipe = ("core",)
  config.rounds.core = config_lib.round_config(seeds=(42,))
  return config

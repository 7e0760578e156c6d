"""SimCSE with the divergence penalty of relaxed contrastive learning.

Seo et al., Relaxed Contrastive Learning for Federated Learning, CVPR 2024
(arXiv:2401.04928): temperature 0.05, threshold 0.7 and weight 1 are the published
code's, whose data are images; batch and learning rate are SimCSE's. Without teachers a
sentence and itself under another dropout mask are the only pair with one meaning; with
--config.rounds.relaxed.teachers="('DIR_OR_ID',)" so are sentences that these find
alike. The published code only takes the least alike of several pairs
(--config.relaxed_contrastive.pairs=least_alike).

python -m dcse_jax.main --config configs/relaxed_contrastive.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/relaxed_contrastive
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.objective = "info_nce + 1.0 * relaxed_contrastive"
  config.relaxed_contrastive.temperature = 0.05
  config.relaxed_contrastive.similarity_threshold = 0.7
  config.recipe = ("relaxed",)
  config.rounds.relaxed = config_lib.round_config(seeds=(42,))
  return config

"""IFTCL: SimCSE with a queue, and a margin between two kinds of positives.

Xiao, Li and Chen, Identical and Fraternal Twins, 2023 (arXiv:2307.10932). A text with
two columns gives fraternal twins made by another augmentation
(--config.columns="('sentence', 'paraphrase')"); a text with one column gives those that
dropout makes. The paper's settings were not at hand: margin and queue are our choice,
the rest is SimCSE's.

python -m dcse_jax.main --config configs/fraternal_twins.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/fraternal_twins
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.objective = "fraternal_twins"
  config.fraternal_twins.margin = 0.05
  config.fraternal_twins.queue_size = 2 * config.batch_size
  config.recipe = ("twins",)
  config.rounds.twins = config_lib.round_config(seeds=(42,))
  return config

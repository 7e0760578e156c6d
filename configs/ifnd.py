"""IFND: negatives that mean the same are found by clustering as training goes on.

It follows Chen et al., Incremental False Negative Detection, ICLR 2022
(arXiv:2106.03719), who train on images. Batch and learning rate are SimCSE's; the
numbers of clusters and the 1,000 steps between two clusterings are our choice. A
clustering embeds the whole text: with a million sentences it costs some hundred
steps.

python -m dcse_jax.main --config configs/ifnd.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/ifnd
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.objective = "incremental_false_negatives"
  config.incremental_false_negatives = dict(
    temperature=0.05,
    mode="eliminate",
    num_clusters=(64, 256, 1024),
    refresh_every=1000,
  )
  config.recipe = ("ifnd",)
  config.rounds.ifnd = config_lib.round_config(seeds=(42,))
  return config

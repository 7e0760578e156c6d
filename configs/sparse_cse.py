"""SparseCSE: SimCSE without the weights that do least for it.

It follows An, Zhang and Song, SparseCSE, 2023 (arXiv:2311.03881): a SimCSE model, then
a model from it whose least useful weights for alignment and uniformity, of embeddings
before any projection, are zero. The share is our choice, and so are SimCSE's batch and
learning rate in both rounds.

python -m dcse_jax.main --config configs/sparse_cse.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/sparse_cse
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.recipe = ("simcse", "sparse")
  config.rounds.simcse = config_lib.round_config(seeds=(42,))
  config.rounds.sparse = config_lib.round_config(
    seeds=(42,), start="simcse", sparsity=0.1
  )
  return config

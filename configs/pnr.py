"""PNR: a second round that continues the first and does not contradict it.

Cha, Cho and Moon, Regularizing with Pseudo-Negatives for Continual Self-Supervised
Learning, 2023 (arXiv:2306.05101): training continues from the first round's model,
whose embeddings are pseudo-negatives and are predicted. The paper's rounds each have
other images; here both have the same text. All settings are SimCSE's. Departures from
the published code, which is for images: no momentum encoder, one direction of the
views, and a predictor as wide as the model, without batch normalisation.

python -m dcse_jax.main --config configs/pnr.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/pnr
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.pnr.temperature = 0.05
  config.recipe = ("first", "second")
  config.rounds.first = config_lib.round_config(seeds=(42,))
  config.rounds.second = config_lib.round_config(
    seeds=(42,), start="first", teachers=("first",), objective="pnr"
  )
  return config

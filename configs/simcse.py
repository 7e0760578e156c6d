"""Unsupervised SimCSE: a sentence and itself under another dropout mask.

Gao, Yao and Chen, SimCSE, EMNLP 2021 (arXiv:2104.08821), Table 5 and appendix A:
batch and learning rate by model, temperature 0.05, length 32, one epoch of a
million Wikipedia sentences, STS-B dev every 125 steps. Published averages of
seven STS sets: BERT-base 76.25, RoBERTa-base 76.57. With ",mlm" after the model a
tenth of the loss of masked words is added, as in the paper's Table D.1.

python -m dcse_jax.main --config configs/simcse.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/simcse
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  model, _, extra = variant.partition(",")
  config = config_lib.simcse(model)
  config.objective = config_lib.choose(
    extra, {"": "info_nce", "mlm": "info_nce + 0.1 * masked_language_model"}
  )
  config.recipe = ("simcse",)
  config.rounds.simcse = config_lib.round_config(seeds=(42,))
  return config

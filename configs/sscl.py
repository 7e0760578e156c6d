"""SSCL: SimCSE with intermediate layers' embeddings as negatives.

Chen et al., Alleviating Over-smoothing for Unsupervised Sentence Representation, ACL
2023 (arXiv:2305.06154): the last layer but one, the eleventh of twelve; with
--config.sscl.layers="(11, 10)" that and the one before. Batch, learning rate and
temperature are SimCSE's, as in the published script for BERT-base. That script departs
from the paper, and from this: it takes layer 2 (--config.sscl.layers="(2,)"), pools by
the mean (--config.pooling=mean), takes the layers of both views as negatives, and
chooses the best checkpoint by transfer tasks.

python -m dcse_jax.main --config configs/sscl.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/sscl
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.objective = "sscl"
  layers = (23,) if variant.endswith("large") else (11,)
  config.sscl = dict(temperature=0.05, layers=layers)
  config.recipe = ("sscl",)
  config.rounds.sscl = config_lib.round_config(seeds=(42,))
  return config

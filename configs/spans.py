"""A better encoder from text alone: two spans of a sentence find each other.

Anchor and positive are two short spans of one sentence, drawn by themselves (the independent
cropping of Contriever, Izacard et al., 2022, arXiv:2112.09118), and InfoNCE finds the positive
among the spans of other sentences. An encoder that has learnt from sentences already tells
two dropout masks of one sentence, SimCSE's pair, from all others at once: there the loss is
near 0 from the first steps, and what is learnt costs meaning. Spans share few words or none,
so that it must learn what goes together.

python -m dcse_jax.main --config configs/spans.py --config.model=DIR_OR_ID \\
    --config.text=my.txt --config.sts=STS_FOLDER --workdir runs/spans

The encoder's first three layers are trained; --config.num_layers=0 takes all, for which the
rate is too high (try 3e-5). Without any option it is MiniLM. Its three layers, which have 63.0
on STS-B dev as they are, had 71.4, 74.4 and 75.3 after 100 steps on Wikipedia's sentences at
1e-4, 3e-4 and 1e-3; SimCSE 53.3, and 61.3 at a temperature of 0.01. Here 0.02 was better than
0.01 and 0.05, and short spans better than long ones (docs/results.md), but search among
long documents gained nothing. Where there is a teacher, configs/distil.py gains more.
"""

from dcse_jax import config as config_lib
from dcse_jax.eval import sts_sets


def get_config():
  config = config_lib.default()
  config.model = "sentence-transformers/all-MiniLM-L6-v2"
  config.num_layers = 3
  config.pooling = "mean"
  config.crop = (0.1, 0.3)
  config.info_nce.temperature = 0.02
  config.num_train_steps = 150
  config.learning_rate = 1e-3
  config.log_every = 10
  config.eval_every = 25
  config.test = sts_sets.SEVEN_TEST_SETS
  config.recipe = ("spans",)
  config.rounds.spans = config_lib.round_config(seeds=(1,))
  return config

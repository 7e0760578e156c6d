"""Everything from your own text: tokenizer, encoder, and self-training on top.

It is for a language or domain without an encoder. A WordPiece tokenizer and a small
BERT are trained on the text as in Devlin et al., 2019 (arXiv:1810.04805), then
four SimCSE models, then DistillCSE's ladder on top of them (Xu et al., 2023,
arXiv:2310.13499, Table 2), each model from the pretrained encoder again:

  plain     distils one teacher
  group_p   the same, its similarities shuffled within groups
  averaged  distils the average of all four teachers
  student   both: DistillCSE's first round
  second    the same, with the first round's students as teachers

The variant "cpu" is short: 6,000 steps of pretraining in place of 100,000, and 120
of each later model in place of 5,000.

python -m dcse_jax.main --config configs/scratch.py \\
    --config.text=my.txt --config.sts=STS_FOLDER --workdir runs/scratch

Without STS sets leave --config.sts out: the last parameters count.
--config.encoder.family=modernbert trains a ModernBERT in place of the BERT.
"""

from dcse_jax import config as config_lib
from dcse_jax.eval import sts_sets


def get_config(variant=""):
  # Steps of pretraining and of each later model, warm-up, evaluations.
  variants = {"": (100_000, 5_000, 5_000, 250), "cpu": (6_000, 120, 500, 40)}
  pretraining, training, warmup, every = config_lib.choose(variant, variants)
  config = config_lib.default()
  config.test = sts_sets.SEVEN_TEST_SETS
  config.encoder = dict(
    family="bert",
    vocab_size=8000,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    intermediate_size=1024,
    initializer_range=0.04,
  )
  # Pretraining never trained a state of [CLS].
  config.pooling = "mean"
  config.num_train_steps = training
  config.eval_every = every
  config.log_every = 20
  config.distillation.student_temperature = 0.02
  config.distillation.teacher_temperature = 0.01
  if variant != "cpu":
    # Each student meets the whole text once, and there are fifteen of them.
    config.teacher_cache = "float16"
    # A model this small leaves a GPU half idle.
    config.parallel_seeds = True

  rounds = config.rounds
  rounds.pretrained = config_lib.round_config(
    seeds=(0,),
    objective="masked_language_model",
    num_train_steps=pretraining,
    learning_rate=1e-3,
    warmup_steps=warmup,
    weight_decay=0.01,
    log_every=100,
    eval_every=2000,
  )
  rounds.simcse = config_lib.round_config((1, 2, 3, 4), start="pretrained")
  students = dict(seeds=(1, 2, 3), start="pretrained")
  students["objective"] = "info_nce + distillation"
  one, all_ = ("simcse/1",), ("simcse",)
  group = dict(distillation=dict(group_probability=0.1))
  rounds.plain = config_lib.round_config(teachers=one, **students)
  rounds.group_p = config_lib.round_config(teachers=one, **group, **students)
  rounds.averaged = config_lib.round_config(teachers=all_, **students)
  rounds.student = config_lib.round_config(teachers=all_, **group, **students)
  rounds.second = config_lib.round_config(teachers=("student",), **group, **students)
  config.recipe = tuple(
    "pretrained simcse plain group_p averaged student second".split()
  )
  return config

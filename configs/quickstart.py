"""The whole recipe on made-up sentences: offline, on a CPU, in a few minutes.

A tiny encoder is pretrained as a masked language model, two base models are
trained by contrast (SimCSE), and a student is distilled from both (DistillCSE).

python -m dcse_jax.main --config configs/quickstart.py --workdir /tmp/quickstart
"""

from dcse_jax import config as config_lib


def get_config(variant=""):
  config_lib.choose(variant, {"": None})
  config = config_lib.default()
  config.synthetic_sentences = 20_000
  config.synthetic_pairs = 3_000
  config.dev = ("dev",)
  config.test = ("test",)
  config.encoder = dict(
    vocab_size=1000,
    hidden_size=128,
    num_layers=1,
    num_heads=8,
    intermediate_size=512,
    initializer_range=0.05,
  )
  config.pooling = "mean"
  config.max_length = 20
  config.learning_rate = 1e-4
  # Sharper ones would spread even paraphrases apart in a language this small.
  config.info_nce.temperature = 0.2
  config.distillation.group_probability = 0.1
  config.log_every = 20
  config.eval_every = 20
  config.recipe = ("pretrained", "base", "distilled")
  config.rounds.pretrained = config_lib.round_config(
    seeds=(0,),
    objective="masked_language_model",
    num_train_steps=3000,
    learning_rate=2e-3,
    warmup_steps=100,
    log_every=250,
    eval_every=1000,
  )
  config.rounds.base = config_lib.round_config(
    seeds=(1, 2), start="pretrained", num_train_steps=60
  )
  config.rounds.distilled = config_lib.round_config(
    seeds=(3,),
    start="pretrained",
    teachers=("base",),
    objective="info_nce + distillation",
    num_train_steps=300,
    log_every=50,
    eval_every=50,
  )
  return config

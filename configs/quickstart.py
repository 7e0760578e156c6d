"""The whole recipe on made-up sentences: offline, on a CPU, in a few minutes.

A tiny encoder is pretrained as a masked language model, two base models are
trained by contrast (SimCSE), and a student is distilled from both (DistillCSE).

python -m dcse_jax.main --config configs/quickstart.py --workdir /tmp/quickstart
"""

from dcse_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.synthetic_sentences = 20_000
  config.synthetic_pairs = 4_000
  config.dev = ("dev",)
  config.test = ("test",)
  config.encoder = dict(
      vocab_size=1000,
      hidden_size=128,
      num_layers=2,
      num_heads=4,
      intermediate_size=512,
  )
  config.pooling = "mean"
  config.max_length = 32
  config.batch_size = 64
  config.log_every = 50
  config.eval_every = 100
  config.rounds.pretrained = config_lib.round_config(
      seeds=(0,),
      objective="masked_language_model",
      num_train_steps=1500,
      learning_rate=1e-3,
      warmup_steps=100,
      eval_every=500,
  )
  config.rounds.base = config_lib.round_config(
      seeds=(1, 2),
      start="pretrained",
      num_train_steps=300,
      learning_rate=3e-4,
  )
  config.rounds.distilled = config_lib.round_config(
      seeds=(3,),
      start="pretrained",
      teachers=("base",),
      group_probability=0.1,
      num_train_steps=600,
      learning_rate=3e-4,
  )
  return config

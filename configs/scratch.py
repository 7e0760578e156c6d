"""Everything from your own text: tokenizer, encoder, and self-training on top.

For a language or domain without an encoder.
"""

from dcse_jax import config as config_lib


def get_config(variant=""):
  config_lib.choose(variant, {"": None})
  config = config_lib.default()
  config.test = config_lib.SEVEN_TEST_SETS
  config.encoder = dict(
    vocab_size=8000,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    intermediate_size=1024,
    initializer_range=0.04,
  )
  config.pooling = "mean"
  config.recipe = ("pretrained",)
  config.rounds.pretrained = config_lib.round_config(
    seeds=(0,),
    objective="masked_language_model",
    num_train_steps=8000,
    learning_rate=1e-3,
    warmup_steps=500,
    weight_decay=0.01,
    log_every=100,
    eval_every=2000,
  )
  return config

"""The configs of this repository at a size for tests."""

import importlib.util

from tests.processes import ROOT

TINY = dict(
  vocab_size=200,
  hidden_size=16,
  num_layers=1,
  num_heads=2,
  intermediate_size=32,
  initializer_range=0.2,
)


def load_config(name, *variant):
  spec = importlib.util.spec_from_file_location(name, ROOT / f"configs/{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*variant)


def tiny(config):
  """Returns any config at a size for tests."""
  config.encoder = TINY
  config.batch_size = 8
  config.max_length = 16
  for name in config.rounds:
    values = config.rounds[name]
    warmup = min(values.get("warmup_steps", config.warmup_steps), 2)
    values.update(num_train_steps=4, eval_every=2, log_every=2, warmup_steps=warmup)
  return config


def from_files(files, name="distillcse", **fields):
  config = tiny(load_config(name))
  config.model = str(files / "model")
  config.text = str(files / "text.txt")
  config.sts = str(files / "sts")
  config.test = ("X-test",)
  for field, value in fields.items():
    config[field] = value
  return config

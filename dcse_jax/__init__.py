"""Sentence embeddings by contrastive self-training with distillation, in JAX."""

import os
import types

from dcse_jax import train

# transformers is only used for its tokenizers, which do not need torch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"


def __getattr__(name: str):
  # JAX must not start (and take the devices) before a program can configure it.
  if name == "SentenceEncoder":
    from dcse_jax.embed.sentence_encoder import SentenceEncoder

    return SentenceEncoder
  raise AttributeError(f"module 'dcse_jax' has no attribute {name!r}")


class _Train(types.ModuleType):
  """The room `train`, which is also the function of that name: see `api.train`."""

  def __call__(self, **arguments):
    from dcse_jax import api

    return api.train(**arguments)


train.__class__ = _Train

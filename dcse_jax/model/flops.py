"""Counts model FLOPs of an encoder: matrix products, at 2 FLOPs a multiply-add."""

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import pooling as pooling_lib


def encoder_flops(
  config: encoder_lib.EncoderConfig,
  *,
  sentences: int,
  length: float,
  squared_length: float,
  positions: int = 0,
) -> float:
  """Counts FLOPs of a forward pass over sentences of n tokens each.

  What a layer has for each token, and for each pair of a query and a key, is the
  config's `work`. Where only some positions of the last layer are read, it has for each
  token only keys and values, and the rest for these positions alone.

  Args:
    config: the encoder's.
    sentences: how many there are.
    length: the mean of n.
    squared_length: the mean of n^2.
    positions: how many of each sentence the last layer computes; 0 for all.
  """
  work = config.work
  *layers, last = [
    work.token * length + work.pair * reach.pairs(length, squared_length)
    for reach in work.reaches
  ]
  if positions:
    attention = work.pair * work.reaches[-1].pairs(length, length**2) / length
    last = work.key_value * length
    last += positions * (work.token - work.key_value + attention)
  return sentences * (work.before * length + sum(layers) + last)


def score_flops(config: encoder_lib.EncoderConfig) -> float:
  """Counts FLOPs of one state's scores over the vocabulary."""
  width = config.language_model.width or config.hidden_size
  return 2 * width * (config.hidden_size + config.vocab_size)


def encode_flops(
  config: encoder_lib.EncoderConfig,
  pooling: str,
  *,
  sentences: int,
  length: float,
  squared_length: float,
) -> float:
  """Counts FLOPs from tokens to embeddings; see `encoder_flops`."""
  # The poolings that read more than one token need all of them.
  positions = int(pooling_lib.get(pooling).token is not None)
  return encoder_flops(
    config,
    sentences=sentences,
    length=length,
    squared_length=squared_length,
    positions=positions,
  )

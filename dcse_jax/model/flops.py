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

  A layer has 8 H^2 + 4 H I a token for its linear layers (width H, intermediate
  size I) and 4 H n for its attention, scores and weighted values. Where only some
  positions of the last layer are read, each token has only the 4 H^2 of keys and
  values, and these positions alone have the rest.

  Args:
    config: the encoder's.
    sentences: how many there are.
    length: the mean of n.
    squared_length: the mean of n^2.
    positions: how many of each sentence the last layer computes; 0 for all.
  """
  width, inner = config.hidden_size, config.intermediate_size
  linear = 8 * width**2 + 4 * width * inner
  layer = linear * length + 4 * width * squared_length
  last = layer
  if positions:
    key_value = 4 * width**2
    attention = 4 * width * length
    last = key_value * length + positions * (linear - key_value + attention)
  return sentences * ((config.num_layers - 1) * layer + last)


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

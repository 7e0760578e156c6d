"""Model FLOPs of an encoder: matrix products, a multiplication and an addition each."""

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
  """Counts one forward pass over sentences of n tokens each.

  A layer has 8 H^2 + 4 H I a token for its linear layers (width H, intermediate
  size I) and 4 H n for its attention, scores and weighted values. Where only some
  positions of the last layer are read, it has for each token only the 4 H^2 of keys
  and values, and the rest for these positions alone.

  Args:
    config: of the encoder.
    sentences: how many.
    length: the mean of n.
    squared_length: the mean of n^2.
    positions: of each sentence that are read of the last layer; 0: all.
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
  """Counts one forward pass from tokens to embeddings; see `encoder_flops`."""
  # The poolings that read more than one token need all of them.
  positions = int(pooling_lib.get(pooling).token is not None)
  return encoder_flops(
    config,
    sentences=sentences,
    length=length,
    squared_length=squared_length,
    positions=positions,
  )

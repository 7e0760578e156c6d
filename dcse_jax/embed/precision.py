"""Embeddings of fewer bits, as sentence-transformers makes them."""

import numpy as np

from dcse_jax.runtime.errors import UserError

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def check_precision(precision: str) -> None:
  """Refuses a precision that is not one of `PRECISIONS`."""
  if precision not in PRECISIONS:
    raise UserError(f"precision={precision!r}: use one of {', '.join(PRECISIONS)}")


def quantize(embeddings: np.ndarray, precision: str) -> np.ndarray:
  """Rounds embeddings to fewer bits.

  Args:
    embeddings: [n, D] float32.
    precision: "float32" leaves them as they are; "int8" and "uint8" divide what each
      dimension spans among them into 256 steps; "binary" and "ubinary" keep the signs,
      eight in a byte.

  Returns:
    [n, D], or [n, ceil(D / 8)] for the last two.

  Raises:
    UserError: the span of a single embedding is asked for.
  """
  check_precision(precision)
  if precision == "float32":
    return embeddings
  signed = not precision.startswith("u")
  if precision.endswith("binary"):
    packed = np.packbits(embeddings > 0, axis=-1)
    return (packed.astype(np.int16) - 128).astype(np.int8) if signed else packed
  if len(embeddings) == 1:
    raise UserError(
      f'precision="{precision}" divides what several embeddings span: encode more than '
      "one sentence"
    )
  if not len(embeddings):
    return embeddings.astype(precision)
  low = embeddings.min(axis=0)
  step = (embeddings.max(axis=0) - low) / 255
  step[step == 0] = 1
  steps = np.clip(np.floor((embeddings - low) / step), 0, 255)
  return (steps - 128 * signed).astype(precision)

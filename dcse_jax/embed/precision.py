"""Embeddings of fewer bits, as sentence-transformers makes them."""

from collections.abc import Iterable

import numpy as np

from dcse_jax.model.vectors import is_finite
from dcse_jax.runtime.errors import UserError

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


def check_precision(precision: str) -> None:
  """Refuses a precision that is not one of `PRECISIONS`."""
  if precision not in PRECISIONS:
    raise UserError(f"precision={precision!r}: use one of {', '.join(PRECISIONS)}")


def has_ranges(precision: str) -> bool:
  """Returns whether rows of a precision say nothing without their ranges."""
  return precision.endswith("int8")


def dtype_of(precision: str) -> str:
  """Returns the NumPy type of rows of a precision."""
  names = {"binary": "int8", "ubinary": "uint8"}
  return names.get(precision, precision)


def row_size(precision: str, width: int) -> int:
  """Returns how many numbers a row has for an embedding of as many as `width`."""
  return -(-width // 8) if precision.endswith("binary") else width


def precision_of(rows: np.ndarray, width: int) -> str | None:
  """Returns the precision of rows made from embeddings of a width, or None.

  Args:
    rows: [n, E]. Any type of floats counts as "float32".
    width: the numbers of an embedding, D.
  """
  dtype = "float32" if rows.dtype.kind == "f" else str(rows.dtype)
  for precision in PRECISIONS:
    if (dtype, rows.shape[1:]) == (dtype_of(precision), (row_size(precision, width),)):
      return precision
  return None


def ranges_of(blocks: Iterable[np.ndarray]) -> np.ndarray:
  """Returns the smallest and the largest number of each dimension, [2, D] float32.

  Args:
    blocks: embeddings, [m, D] at a time. The ranges of ranges are these themselves.

  Raises:
    UserError: there are fewer than two, or a number is not finite.
  """
  ends, number = [], 0
  for block in blocks:
    number += len(block)
    if len(block):
      ends += [block.min(axis=0), block.max(axis=0)]
  if number < 2:
    raise UserError(
      "the ranges of int8 and uint8 are what several embeddings span: give more than one "
      "sentence"
    )
  ranges = np.stack([np.min(ends, axis=0), np.max(ends, axis=0)]).astype(np.float32)
  if not np.isfinite(ranges).all():
    raise UserError(
      "embeddings that ranges are measured on hold NaN or infinity: check the model, or "
      "calibrate by others"
    )
  return ranges


def quantize(
  embeddings: np.ndarray,
  precision: str,
  ranges: np.ndarray | None = None,
  *,
  first_row: int = 0,
) -> np.ndarray:
  """Rounds embeddings to fewer bits.

  Args:
    embeddings: [n, D] float32.
    precision: "float32" leaves them as they are; "float16" rounds each; "int8" and "uint8" divide the range of
      each dimension into 256 steps; "binary" and "ubinary" keep the signs, eight in a
      byte.
    ranges: see `ranges_of`; None takes those of the embeddings. What is beyond them is
      moved to their ends.
    first_row: the number of the first embedding, for errors.

  Returns:
    [n, D], or [n, ceil(D / 8)] for the last two.

  Raises:
    UserError: a number is not finite, or the ranges of a single embedding are asked for.
  """
  check_precision(precision)
  if precision == "float32":
    return embeddings
  rounded = embeddings
  if precision == "float16":
    with np.errstate(over="ignore"):  # What is too large becomes infinity.
      rounded = embeddings.astype(np.float16)
  finite = is_finite(rounded)
  if not finite.all():
    raise UserError(
      f"the embedding of sentence {first_row + int(np.argmin(finite))} (from 0) holds "
      f"NaN or infinity, which {precision} cannot: check the model"
    )
  if precision == "float16":
    return rounded
  signed = not precision.startswith("u")
  if not has_ranges(precision):
    packed = np.packbits(embeddings > 0, axis=-1)
    return (packed.astype(np.int16) - 128).astype(np.int8) if signed else packed
  if not len(embeddings):
    return embeddings.astype(precision)
  ranges = ranges_of([embeddings]) if ranges is None else ranges
  steps = np.clip(np.floor((embeddings - ranges[0]) / step_sizes(ranges)), 0, 255)
  return (steps - 128 * signed).astype(precision)


def middles(rows: np.ndarray, ranges: np.ndarray) -> np.ndarray:
  """Returns the floats that rows of "int8" or "uint8" stand for, float32 [..., D]."""
  offset = np.float32(128.5 if rows.dtype == np.int8 else 0.5)
  return ranges[0] + (rows.astype(np.float32) + offset) * step_sizes(ranges)


def step_sizes(ranges: np.ndarray) -> np.ndarray:
  """Returns the size of one of the 256 steps of each dimension, [D]."""
  steps = (ranges[1] - ranges[0]) / 255
  return np.where(steps == 0, np.float32(1), steps)

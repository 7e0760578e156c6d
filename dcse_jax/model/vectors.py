"""Arithmetic of embeddings on the host."""

import numpy as np


def unit_length(embeddings: np.ndarray) -> np.ndarray:
  """Divides embeddings [..., D] by their L2 norms; zeros stay zeros.

  It works for finite rows of any length; rows that are not finite become NaN. Types
  below float32 become float32.
  """
  embeddings = np.asarray(embeddings)
  embeddings = embeddings.astype(np.promote_types(embeddings.dtype, np.float32))
  largest = np.abs(embeddings).max(axis=-1, keepdims=True, initial=0)
  # A power of two brings the largest number near 1 without rounding, so that no square
  # overflows or vanishes.
  limit = np.finfo(embeddings.dtype).maxexp - 2
  exponent = np.clip(np.frexp(largest)[1], -limit, limit)
  embeddings = embeddings * np.ldexp(np.ones_like(largest), -exponent)
  norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
  with np.errstate(invalid="ignore"):
    return embeddings / np.where(norms == 0, 1, norms)


def is_finite(embeddings: np.ndarray) -> np.ndarray:
  """Returns whether each row of embeddings [n, D] is finite throughout, [n] bools."""
  return np.isfinite(embeddings).all(axis=1)


def similarities(first: np.ndarray, second: np.ndarray, kind: str) -> np.ndarray:
  """Compares every one of the first with every one of the second.

  Args:
    first: [n, D] or [D].
    second: [m, D] or [D].
    kind: "cosine", "dot", or "euclidean" or "manhattan" for these distances times -1.

  Returns:
    [n, m], without a dimension for a single one.
  """
  if kind == "cosine":
    return unit_length(first) @ unit_length(second).T
  if kind == "dot":
    return first @ second.T
  rows, columns = np.atleast_2d(first), np.atleast_2d(second)
  order = 2 if kind == "euclidean" else 1
  distances = [np.linalg.norm(columns - row, order, axis=1) for row in rows]
  return -np.reshape(distances, first.shape[:-1] + second.shape[:-1])

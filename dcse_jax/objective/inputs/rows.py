"""Rows of sentences to rows of their views, and back."""

from typing import Any

import jax
import numpy as np


def number_views(row_ids: jax.Array | None, views: int) -> jax.Array | None:
  """Numbers the views of rows, [b] to [b * views]; None stays None."""
  if row_ids is None:
    return None
  return (row_ids[:, None] * views + np.arange(views)).reshape(-1)


def flat_views(rows: Any) -> Any:
  """Lays the views of rows one under the other, [b, views, ...] to [b * views, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def side_by_side(x: jax.Array, views: int) -> jax.Array:
  """Lays a row's views side by side, [b * views, K, ...] to [b, views * K, ...]."""
  return x.reshape(-1, views * x.shape[1], *x.shape[2:])

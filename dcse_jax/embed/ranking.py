"""The rows that are nearest to some queries, found block by block.

Memory holds one block at a time and what was found. Rows are floats; steps of a range,
which are turned back into floats as they are compared; or signs. Signs are compared
with those of the query by the number that differ, and the nearest rows once more with
the query itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.embed.precision import has_ranges
from dcse_jax.embed.precision import step_sizes
from dcse_jax.model.vectors import is_finite
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError

# Queries compared at a time with a block.
_QUERIES = 1024


@functools.partial(jax.jit, static_argnames="dot")
def _nearest(best, queries, block, scale, first_row, num_rows, *, dot=False):
  """Merges a block's best cosines and rows into the best so far, [q, k] each.

  With dot, products are compared as they are. With a scale, rows are steps of a range,
  and each stands for its middle.
  """
  if scale is not None:
    low, steps = scale
    offset = 128.5 if block.dtype == jnp.int8 else 0.5
    block = low + (block.astype(jnp.float32) + offset) * steps
  is_row = jnp.isfinite(block).all(axis=1) & (jnp.arange(len(block)) < num_rows)
  if not dot:
    # Squares of very long or short rows would overflow or vanish, as in `unit_length`.
    largest = jnp.max(jnp.abs(block), axis=1, keepdims=True)
    block = block / jnp.where(largest > 0, largest, 1)
  # bfloat16 products, some devices' default, would change the order of neighbours.
  cosines = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
  if not dot:
    norms = jnp.linalg.norm(block, axis=1)  # At least 1, except for zero rows.
    cosines = jnp.clip(cosines / jnp.maximum(norms, 1), -1, 1)
  cosines = jnp.where(is_row, cosines, -jnp.inf)
  return _merge(best, cosines, first_row)


def _merge(best, scores, first_row, *others):
  """Merges the scores of a block, [q, n], and what else it has for each row, [n, ...]."""
  top_k, num_rows = best[0].shape[1], scores.shape[1]
  scores, places = jax.lax.top_k(scores, min(top_k, num_rows))
  found = (scores, places + first_row, *(other[places] for other in others))
  both = [jnp.concatenate(pair, axis=1) for pair in zip(best, found)]
  scores, places = jax.lax.top_k(both[0], top_k)
  take = jax.vmap(lambda rows, places: rows[places])
  return scores, *(take(each, places) for each in both[1:])


@jax.jit
def _shortlist(best, queries, block, first_row, num_rows):
  """Merges the rows whose signs are most like the queries'.

  Best holds the numbers of unlike signs times -1, the rows, and the rows' bytes,
  [q, m], [q, m] and [q, m, E].
  """
  if block.dtype == jnp.int8:  # sentence-transformers has taken 128 from these bytes.
    block = jax.lax.bitcast_convert_type(block, jnp.uint8) ^ jnp.uint8(128)
  unlike = _words(queries)[:, None] ^ _words(block)[None]
  # XLA has a fast top_k for floats alone.
  number = jnp.sum(jax.lax.population_count(unlike), axis=-1).astype(jnp.float32)
  scores = jnp.where(jnp.arange(len(block)) < num_rows, -number, -jnp.inf)
  return _merge(best, scores, first_row, block)


def _words(packed):
  """Turns bytes [n, E] into words [n, ceil(E / 4)]."""
  num, size = packed.shape
  packed = jnp.pad(packed, ((0, 0), (0, -size % 4)))
  return jax.lax.bitcast_convert_type(packed.reshape(num, -1, 4), jnp.uint32)


class Ranking:
  """The rows that are nearest to some queries, among those that it was shown.

  Args:
    queries: embeddings, [q, D].
    top_k: how many rows are found for each, at least 1.
    precision: the rows', one of `precision.PRECISIONS`.
    ranges: those of the rows, where the precision has them.
    dot: compares by dot product, in place of the cosine.
    rescore_multiplier: how many times top_k rows of signs are compared with the query
      itself.

  Raises:
    UserError: top_k is below 1, or a query holds NaN or infinity.
  """

  def __init__(
    self,
    queries: np.ndarray,
    top_k: int,
    *,
    precision: str = "float32",
    ranges: np.ndarray | None = None,
    dot: bool = False,
    rescore_multiplier: int = 4,
  ):
    unit = checked_queries(queries, top_k)
    self._queries = np.asarray(queries, np.float32) if dot else unit
    self._top_k, self._dot, self._row, self._size = top_k, dot, 0, 0
    self._scale, self._is_signs = None, precision.endswith("binary")
    if has_ranges(precision):
      self._scale = jax.device_put((ranges[0], step_sizes(ranges)))
    compared, depth, kept = self._queries, top_k, ()
    if self._is_signs:
      compared, depth = np.packbits(compared > 0, axis=1), top_k * rescore_multiplier
      kept = (compared.shape[1],)
    starts = range(0, max(len(compared), 1), _QUERIES)
    parts = [compared[i : i + _QUERIES] for i in starts]
    self._best = [_nothing(len(part), depth, *kept) for part in parts]
    self._parts = jax.device_put(parts)

  def add(self, block: np.ndarray | jax.Array, num_rows: int | None = None) -> None:
    """Shows the next rows.

    Args:
      block: [m, E]; the first block is the largest.
      num_rows: how many of them count; None is all.
    """
    num_rows = len(block) if num_rows is None else num_rows
    # One shape is compiled once.
    self._size = max(self._size, len(block))
    if not isinstance(block, jax.Array):
      dtype = np.float32 if block.dtype.kind == "f" else block.dtype
      block = np.asarray(block, dtype)
      block = jax.device_put(np.pad(block, ((0, self._size - len(block)), (0, 0))))
    place = (self._row, num_rows)
    for i, part in enumerate(self._parts):
      if self._is_signs:
        self._best[i] = _shortlist(self._best[i], part, block, *place)
      else:
        self._best[i] = _nearest(
          self._best[i], part, block, self._scale, *place, dot=self._dot
        )
    self._row += num_rows

  def result(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns what was found.

    Returns:
      Scores [q, k] float32, descending, and numbers of rows [q, k] int32, counted over
      all blocks; among equal scores the lower row comes first. The score of a row of
      signs is that of +1 and -1 at their places. Where there are fewer rows than k, the
      last scores are -inf.
    """
    arrays = jax.device_get(self._best)
    scores, rows, *others = map(np.concatenate, zip(*arrays))
    return self._rescored(scores, rows, *others) if self._is_signs else (scores, rows)

  def _rescored(self, scores, rows, packed):
    """Compares each shortlist, [q, m], with its query and keeps the best, [q, k]."""
    width = self._queries.shape[1]
    for query, found, signs in zip(self._queries, scores, packed):
      bits = np.unpackbits(signs, axis=1, count=width).astype(np.float32)
      score = (2 * (bits @ query) - query.sum()) / np.float32(np.sqrt(width))
      found[:] = np.where(np.isfinite(found), score, -np.inf)
    order = np.lexsort((rows, -scores))[:, : self._top_k]
    return tuple(np.take_along_axis(each, order, axis=1) for each in (scores, rows))


def _nothing(queries: int, depth: int, *row_shape: int):
  """Makes what stands for nothing found: scores, rows and perhaps the rows' bytes."""
  scores = np.full((queries, depth), -np.inf, np.float32)
  rows = np.zeros((queries, depth), np.int32)
  if not row_shape:
    return scores, rows
  return scores, rows, np.zeros((queries, depth, *row_shape), np.uint8)


def checked_queries(queries: np.ndarray, top_k: int) -> np.ndarray:
  """Checks queries [q, D] and scales them to unit length, in float32."""
  if top_k < 1:
    raise UserError(f"top_k={top_k}: must be 1 or more")
  finite = is_finite(queries)
  if not finite.all():
    raise UserError(
      f"the embedding of query {int(np.argmin(finite))} (from 0) holds NaN or infinity: "
      "check the model"
    )
  return unit_length(queries).astype(np.float32)

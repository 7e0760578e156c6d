"""Nearest neighbours of embeddings by cosine.

Rows that hold NaN or infinity have no cosine: no index ever finds them, whether they
come from an array or from a file, and a warning counts them and names the first. Such
a query is refused.
"""

from collections.abc import Iterable, Iterator
import functools
import hashlib
import logging

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model.vectors import is_finite
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError

_LOG = logging.getLogger(__name__)

# Rows compared at a time: the similarities of one block are all that a search
# holds besides what it found.
_BLOCK = 65_536
# Queries compared at a time with a block of a stream, for the same reason.
_QUERIES = 1024
# An index larger than this is sent to the device block by block, at each search.
_RESIDENT_BYTES = 1 << 30


@functools.partial(jax.jit, static_argnames="dot")
def _search_block(best, queries, block, first_row, num_rows, *, dot=False):
  """Merges a block's best cosines and rows into the best so far, [q, k] each.

  With dot, products are compared as they are.
  """
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
  top_k = best[0].shape[1]
  cosines, places = jax.lax.top_k(
    jnp.where(is_row, cosines, -jnp.inf), min(top_k, len(block))
  )
  cosines = jnp.concatenate([best[0], cosines], axis=1)
  rows = jnp.concatenate([best[1], places + first_row], axis=1)
  cosines, places = jax.lax.top_k(cosines, top_k)
  return cosines, jnp.take_along_axis(rows, places, axis=1)


def _blocks(embeddings: np.ndarray) -> Iterator[np.ndarray]:
  for start in range(0, len(embeddings), _BLOCK):
    yield embeddings[start : start + _BLOCK]


def _finite_rows(embeddings: np.ndarray) -> np.ndarray:
  """Returns the numbers of the rows that an index can find; warns of the others."""
  finite = np.ones(len(embeddings), bool)
  for i, block in enumerate(_blocks(embeddings)):
    finite[i * _BLOCK : i * _BLOCK + len(block)] = is_finite(block)
  if num := int(np.sum(~finite)):
    _LOG.warning(
      "%d of %d embeddings hold NaN or infinity and are never found, the first in "
      "row %d (from 0): encode anew, or check the model",
      *(num, len(finite), int(np.argmin(finite))),
    )
  return np.flatnonzero(finite).astype(np.int32)


def _checked_queries(queries: np.ndarray, top_k: int) -> np.ndarray:
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


class ExactIndex:
  """An index that compares a query with every row, block by block.

  Args:
    embeddings: [n, D], any float type; a memory-mapped array stays in its file,
      which is read once to count its finite rows.
  """

  def __init__(self, embeddings: np.ndarray):
    self._embeddings = embeddings
    self._size = min(_BLOCK, len(embeddings))
    self._num_finite = len(_finite_rows(embeddings))
    # A small index stays on the device.
    self._blocks = None
    if embeddings.nbytes <= _RESIDENT_BYTES:
      self._blocks = [jax.device_put(self._block(row)) for row in self._starts()]

  def _starts(self) -> range:
    return range(0, len(self._embeddings), max(self._size, 1))

  def _block(self, row: int) -> np.ndarray:
    block = self._embeddings[row : row + self._size]
    if block.dtype.itemsize > 4:
      block = unit_length(block)  # float32 could not hold numbers above 1e38.
    block = np.asarray(block, np.float32)
    return np.pad(block, ((0, self._size - len(block)), (0, 0)))

  def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the rows most similar to each query.

    Args:
      queries: embeddings, [q, D].
      top_k: how many, at least 1; all finite rows if there are fewer.

    Returns:
      Their cosines [q, k] float32, descending, and their numbers [q, k] int32; among
      equal cosines the lower row comes first.

    Raises:
      UserError: top_k is below 1, or a query holds NaN or infinity.
    """
    queries = _checked_queries(queries, top_k)
    top_k = min(top_k, self._num_finite)
    best = (
      np.full((len(queries), top_k), -np.inf, np.float32),
      np.zeros((len(queries), top_k), np.int32),
    )
    if not top_k:
      return best
    queries = jax.device_put(queries)
    for i, row in enumerate(self._starts()):
      block = self._block(row) if self._blocks is None else self._blocks[i]
      num_rows = len(self._embeddings) - row
      best = _search_block(best, queries, block, row, num_rows)
    return np.asarray(best[0]), np.asarray(best[1])


def search_stream(
  queries: np.ndarray,
  blocks: Iterable[np.ndarray],
  top_k: int,
  *,
  dot: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds what `ExactIndex.search` does among rows that are seen once and not kept.

  Args:
    queries: embeddings, [q, D].
    blocks: the rows, [m, D] at a time; the first block is the largest.
    top_k: how many, at least 1.
    dot: compares by dot product, in place of the cosine.

  Returns:
    Scores [q, k] float32, descending, and numbers of rows [q, k] int32, counted over
    all blocks. Where there are fewer rows than k, the last scores are -inf.

  Raises:
    UserError: a query holds NaN or infinity.
  """
  unit = _checked_queries(queries, top_k)
  queries = np.asarray(queries, np.float32) if dot else unit
  parts = [queries[i : i + _QUERIES] for i in range(0, len(queries), _QUERIES)]
  best = [
    (np.full((len(p), top_k), -np.inf, np.float32), np.zeros((len(p), top_k), np.int32))
    for p in parts
  ]
  parts, row, size = jax.device_put(parts), 0, 0
  for block in blocks:
    num_rows, size = len(block), max(size, len(block))
    # One shape is compiled once.
    block = np.pad(np.asarray(block, np.float32), ((0, size - num_rows), (0, 0)))
    block = jax.device_put(block)
    best = [
      _search_block(found, part, block, row, num_rows, dot=dot)
      for found, part in zip(best, parts)
    ]
    row += num_rows
  scores, rows = (
    np.concatenate([np.asarray(found[i]) for found in best]) for i in (0, 1)
  )
  return scores, rows


class FaissIndex:
  """A graph of near neighbours by faiss: approximate, and fast among millions.

  Rows that point the same way to the last bit, as copies of one sentence do, share a
  node of the graph: with a node each, they would fill each other's lists of neighbours
  and cut the graph apart.

  Args:
    embeddings: [n, D].

  Raises:
    UserError: faiss is not installed.
  """

  # Neighbours of each node, and nodes looked at while building and searching:
  # faiss's advice for a high recall.
  _NEIGHBOURS, _WIDTH = 32, 128

  def __init__(self, embeddings: np.ndarray):
    try:
      import faiss
    except ImportError as error:
      raise UserError(
        "faiss is not installed: pip install faiss-cpu, or search without it"
      ) from error
    self._index = faiss.IndexHNSWFlat(
      embeddings.shape[1], self._NEIGHBOURS, faiss.METRIC_INNER_PRODUCT
    )
    self._index.hnsw.efConstruction = self._index.hnsw.efSearch = self._WIDTH
    rows = _finite_rows(embeddings)
    node, nodes = {}, np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
      block = embeddings[rows[start : start + _BLOCK]]
      # Adding 0 turns -0 into 0: the two are equal, but their bytes are not.
      block = unit_length(block).astype(np.float32) + np.float32(0)
      new = []
      for i, row in enumerate(block):
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        if digest not in node:
          node[digest] = len(node)
          new.append(i)
        nodes[start + i] = node[digest]
      self._index.add(block[new])
    # The rows of node i are those from its start to the next one's.
    order = np.argsort(nodes, kind="stable")
    self._rows = rows[order]
    self._starts = np.searchsorted(nodes[order], np.arange(len(node) + 1))

  def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Does what `ExactIndex.search` does, nearly always with the same rows.

    Where the graph does not lead to k rows, the last cosines are -inf.
    """
    queries = _checked_queries(queries, top_k)
    top_k = min(top_k, len(self._rows))
    cosines = np.full((len(queries), top_k), -np.inf, np.float32)
    rows = np.zeros((len(queries), top_k), np.int32)
    if not top_k:
      return cosines, rows
    found = self._index.search(queries, min(top_k, self._index.ntotal))
    for i, (of_query, nodes) in enumerate(zip(*found)):
      done = 0
      for cosine, node in zip(of_query, nodes):
        if node < 0 or done == top_k:
          break
        equal = self._rows[self._starts[node] : self._starts[node + 1]][: top_k - done]
        cosines[i, done : done + len(equal)] = np.clip(cosine, -1, 1)
        rows[i, done : done + len(equal)] = equal
        done += len(equal)
    return cosines, rows

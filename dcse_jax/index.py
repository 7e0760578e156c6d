"""Nearest neighbours of embeddings by cosine."""

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.errors import UserError

# Rows compared at a time: the similarities of one block are all that a search
# holds besides what it found.
_BLOCK = 65_536
# So large an index is sent to the device block by block, at each search.
_RESIDENT_BYTES = 1 << 30


@jax.jit
def _search_block(best, queries, block, first_row, num_rows):
  """Joins what is best so far, cosines and rows [q, k], with that of a block."""
  # bfloat16 products, a device's default, would turn neighbours around.
  cosines = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
  norms = jnp.linalg.norm(block, axis=1)
  cosines = cosines / jnp.maximum(norms, 1e-12)
  is_row = jnp.arange(len(block)) < num_rows
  top_k = best[0].shape[1]
  cosines, places = jax.lax.top_k(
    jnp.where(is_row, cosines, -jnp.inf), min(top_k, len(block))
  )
  cosines = jnp.concatenate([best[0], cosines], axis=1)
  rows = jnp.concatenate([best[1], places + first_row], axis=1)
  cosines, places = jax.lax.top_k(cosines, top_k)
  return cosines, jnp.take_along_axis(rows, places, axis=1)


def unit_length(embeddings: np.ndarray) -> np.ndarray:
  """Embeddings [..., D] divided by their L2 norms; zeros stay zeros."""
  norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
  return embeddings / np.maximum(norms, 1e-12)


class ExactIndex:
  """Compares a query with every row, in blocks.

  Args:
    embeddings: [n, D] of any float type; a memory-mapped array stays in its file.
  """

  def __init__(self, embeddings: np.ndarray):
    self._embeddings = embeddings
    self._size = min(_BLOCK, len(embeddings))
    # Small ones stay on the device.
    self._blocks = None
    if embeddings.nbytes <= _RESIDENT_BYTES:
      self._blocks = [jax.device_put(self._block(row)) for row in self._starts()]

  def _starts(self) -> range:
    return range(0, len(self._embeddings), max(self._size, 1))

  def _block(self, row: int) -> np.ndarray:
    block = np.asarray(self._embeddings[row : row + self._size], np.float32)
    return np.pad(block, ((0, self._size - len(block)), (0, 0)))

  def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The most similar rows of each query.

    Args:
      queries: embeddings, [q, D].
      top_k: how many, at least 1; all rows if there are fewer.

    Returns:
      Their cosines [q, k] float32, falling, and their numbers [q, k] int32; of
      equal cosines the lower row comes first.

    Raises:
      UserError: top_k is below 1.
    """
    if top_k < 1:
      raise UserError(f"top_k={top_k}: must be 1 or more")
    top_k = min(top_k, len(self._embeddings))
    best = (
      np.full((len(queries), top_k), -np.inf, np.float32),
      np.zeros((len(queries), top_k), np.int32),
    )
    if not top_k:
      return best
    queries = jax.device_put(unit_length(np.asarray(queries, np.float32)))
    for i, row in enumerate(self._starts()):
      block = self._block(row) if self._blocks is None else self._blocks[i]
      num_rows = len(self._embeddings) - row
      best = _search_block(best, queries, block, row, num_rows)
    return np.asarray(best[0]), np.asarray(best[1])


class FaissIndex:
  """A graph of near neighbours by faiss: approximate, and fast among millions.

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
    for start in range(0, len(embeddings), _BLOCK):
      block = np.asarray(embeddings[start : start + _BLOCK], np.float32)
      self._index.add(unit_length(block))

  def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `ExactIndex.search`, nearly always with the same rows."""
    if top_k < 1:
      raise UserError(f"top_k={top_k}: must be 1 or more")
    return self._index.search(
      unit_length(np.asarray(queries, np.float32)), min(top_k, self._index.ntotal)
    )

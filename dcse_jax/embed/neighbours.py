"""Nearest neighbours of embeddings by cosine.

Rows that hold NaN or infinity have no cosine: no index ever finds them, whether they
come from an array or from a file, and a warning counts them and names the first. Such
a query is refused.
"""

from collections.abc import Iterator
import hashlib
import logging
from typing import Any

import jax
import numpy as np

from dcse_jax.embed.precision import has_ranges
from dcse_jax.embed.precision import precision_of
from dcse_jax.embed.ranking import Ranking
from dcse_jax.embed.ranking import checked_queries
from dcse_jax.model.vectors import is_finite
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError

_LOG = logging.getLogger(__name__)

# Rows compared at a time: the similarities of one block are all that a search
# holds besides what it found.
_BLOCK = 65_536
# An index larger than this is sent to the device block by block, at each search.
_RESIDENT_BYTES = 1 << 30


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


class ExactIndex:
  """An index that compares a query with every row, block by block.

  Args:
    embeddings: [n, D], any float type, or rows of fewer bits; a memory-mapped array
      stays in its file. Floats are read once to count the finite rows.
    precision: the rows', one of `precision.PRECISIONS`.
    ranges: those of the rows, where the precision has them, [2, D].
    rescore_multiplier: how many times as many rows as are asked for are found by their
      signs and compared with the query itself, where rows are signs.
  """

  def __init__(
    self,
    embeddings: np.ndarray,
    *,
    precision: str = "float32",
    ranges: np.ndarray | None = None,
    rescore_multiplier: int = 4,
  ):
    self._embeddings = embeddings
    self._kind = dict(
      precision=precision, ranges=ranges, rescore_multiplier=rescore_multiplier
    )
    self._size = min(_BLOCK, len(embeddings))
    is_float = precision == "float32"
    self._num_finite = len(_finite_rows(embeddings) if is_float else embeddings)
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
    if block.dtype.kind == "f":
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
    queries = checked_queries(queries, top_k)
    top_k = min(top_k, self._num_finite)
    if not top_k:
      none = (len(queries), 0)
      return np.zeros(none, np.float32), np.zeros(none, np.int32)
    ranking = Ranking(queries, top_k, **self._kind)
    for i, row in enumerate(self._starts()):
      block = self._block(row) if self._blocks is None else self._blocks[i]
      ranking.add(block, min(self._size, len(self._embeddings) - row))
    return ranking.result()


def import_faiss() -> Any:
  """Imports faiss, which is an extra; raises a UserError where it is missing."""
  try:
    import faiss
  except ImportError as error:
    raise UserError(
      "faiss is not installed: pip install faiss-cpu, or search without it"
    ) from error
  return faiss


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
    faiss = import_faiss()
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
    queries = checked_queries(queries, top_k)
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


def make_index(
  embeddings: np.ndarray,
  width: int,
  *,
  ranges: np.ndarray | None = None,
  use_faiss: bool = False,
  rescore_multiplier: int = 4,
) -> ExactIndex | FaissIndex:
  """Makes an index of embeddings, or of rows that `precision.quantize` made of them.

  Args:
    embeddings: [n, E], memory-mapped or not.
    width: the numbers of an embedding before it was made smaller, D.
    ranges: those that rows of "int8" and "uint8" were made with, [2, D].
    use_faiss: makes an approximate index of floats, in place of an exact one.
    rescore_multiplier: see `ExactIndex`.

  Raises:
    UserError: the rows are not of that width, lack their ranges or are no floats for
      faiss; or faiss is not installed.
  """
  precision = precision_of(embeddings, width)
  if precision is None:
    raise UserError(
      f"this model's embeddings have {width} numbers, and {embeddings.dtype} of shape "
      f"{embeddings.shape} are no rows of these: encode with the same model"
    )
  if has_ranges(precision) and np.shape(ranges) != (2, width):
    raise UserError(
      f"{precision} rows are searched by their ranges, [2, {width}], and these are "
      f"{'missing' if ranges is None else np.shape(ranges)}: keep the file NAME.ranges"
      ".npy beside NAME.npy, or encode anew"
    )
  if not use_faiss:
    return ExactIndex(
      embeddings,
      precision=precision,
      ranges=ranges,
      rescore_multiplier=rescore_multiplier,
    )
  if precision != "float32":
    raise UserError(f"faiss searches floats here, not {precision}: search without it")
  return FaissIndex(embeddings)

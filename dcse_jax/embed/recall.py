"""How many of the nearest rows an index finds, measured against exact search.

Recall is the share of the ten rows of the highest cosines that are among the ten that
an index gives; a row with the same cosine as the tenth counts, too.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from dcse_jax.embed.ranking import Ranking
from dcse_jax.model.vectors import unit_length

TOP = 10
# A hit may be below the tenth by rounding.
_ROUNDING = 1e-6


class Search(Protocol):
  """A function that searches as `ExactIndex.search` does."""

  def __call__(self, queries: np.ndarray, top_k: int) -> Any:
    """Returns cosines and rows, [q, k] each."""


def recalls(
  searches: Iterable[Search],
  queries: np.ndarray,
  own: np.ndarray | None,
  blocks: Iterable[np.ndarray],
) -> np.ndarray:
  """Returns the recall of each search and query, [searches, q].

  Args:
    searches: what is measured.
    queries: [q, D].
    own: the rows that are the queries themselves, [q], which do not count; or None.
    blocks: all rows, floats [m, D] of unit length at a time, in order.
  """
  # One more, which may be the query itself.
  top = TOP + (own is not None)
  scores, found = zip(*(_padded(*search(queries, top), top) for search in searches))
  scores, found = np.stack(scores), np.stack(found)
  exact, cosines = _compared(queries, found, blocks)
  exact = _padded(*exact, top)
  is_there = _first_others(*exact, own)
  tenth = np.where(is_there, exact[0], np.inf).min(axis=-1)
  hits = _first_others(scores, found, own) & (cosines >= tenth[:, None] - _ROUNDING)
  return hits.sum(axis=-1) / np.maximum(is_there.sum(axis=-1), 1)


def _padded(scores: np.ndarray, rows: np.ndarray, top: int):
  """Fills up what an index of fewer rows finds, by scores of -inf."""
  missing = ((0, 0), (0, top - scores.shape[1]))
  return np.pad(scores, missing, constant_values=-np.inf), np.pad(rows, missing)


def _compared(queries: np.ndarray, found: np.ndarray, blocks: Iterable[np.ndarray]):
  """Searches exactly, and computes the cosines of rows that were found.

  Args:
    queries: [q, D].
    found: numbers of rows, [..., q, k].
    blocks: all rows.

  Returns:
    The scores and numbers of the nearest rows, [q, k] each, and the exact cosines of
    those found, [..., q, k].
  """
  queries = unit_length(queries).astype(np.float32)
  ranking = Ranking(queries, found.shape[-1], dot=True)
  cosines, first = np.zeros(found.shape, np.float32), 0
  for block in blocks:
    ranking.add(block)
    here = np.nonzero((found >= first) & (found < first + len(block)))
    pairs = queries[here[-2]], block[found[here] - first]
    cosines[here] = np.einsum("nd,nd->n", *pairs)
    first += len(block)
  return ranking.result(), cosines


def _first_others(scores: np.ndarray, rows: np.ndarray, own: np.ndarray | None):
  """Returns which of the rows, [..., q, t], are the first ten but the query's own."""
  is_other = np.isfinite(scores)
  if own is not None:
    is_other &= rows != own[:, None]
  return is_other & (np.cumsum(is_other, axis=-1) <= TOP)

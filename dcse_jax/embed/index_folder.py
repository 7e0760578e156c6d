"""An index in a folder: searched from its files, however many sentences it has.

It holds the sentences, their embeddings in eight bits with their ranges, and, where they
are many, lists of codes that give a shortlist for each query. Scores are the cosines of
the query with the eight bits. `index_build` makes such a folder.
"""

import pathlib
from typing import Any

import numpy as np

from dcse_jax.data.kept_text import KeptText
from dcse_jax.embed import row_file
from dcse_jax.embed.inverted_lists import InvertedLists
from dcse_jax.embed.neighbours import ExactIndex
from dcse_jax.embed.precision import middles
from dcse_jax.embed.ranking import checked_queries
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

ABOUT, ROWS, RANGES = "index.json", "rows.npy", "ranges.npy"
FORMAT = 1
# A shortlist has as many times the rows that are asked for, and at least as many.
_SHORTLIST, _SHORTEST = 10, 100
# Rows of shortlists that are compared at a time.
_COMPARED = 65_536


def read_about(path: pathlib.Path) -> dict[str, Any]:
  """Reads what a folder says of itself.

  Raises:
    UserError: it is no index, or one of a later version.
  """
  if not (path / ABOUT).is_file():
    raise UserError(
      f"{path} is no index (it has no {ABOUT}): name what dcse_jax.index wrote"
    )
  about = files.read_json(path / ABOUT)
  if not isinstance(about, dict) or about.get("format") != FORMAT:
    raise UserError(f"{path} is an index of another version: build it anew")
  return about


class IndexFolder:
  """An index that is open; its files stay on disk, and are read where a search looks.

  Args:
    path: the folder.

  Attributes:
    about: what it says of itself: the model's identity, the text's digest, and more.
    sentences: those that `search` numbers.

  Raises:
    UserError: it is no index, or a file is cut off; or faiss is needed and missing.
  """

  def __init__(self, path: pathlib.Path):
    self.about = read_about(path)
    for name, size in self.about["files"].items():
      if not (path / name).is_file() or (path / name).stat().st_size != size:
        raise UserError(
          f"{path / name} is missing or has not its {size} bytes: copy the index again, "
          "or build it anew"
        )
    self.sentences = KeptText(path)
    self._rows, self._ranges = row_file.read(path / ROWS), np.load(path / RANGES)
    if self.about["lists"]:
      self._lists = InvertedLists(path)
    else:
      self._exact = ExactIndex(self._rows, precision="int8", ranges=self._ranges)

  def search(
    self, queries: np.ndarray, top_k: int, *, probes: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Does what `ExactIndex.search` does, nearly always with the same rows.

    Args:
      queries: embeddings, [q, D].
      top_k: how many rows for each.
      probes: how many lists a query looks at, in place of what was measured.

    Returns:
      As there; where the lists do not have k rows, the last cosines are -inf.
    """
    if not self.about["lists"]:
      return self._exact.search(queries, top_k)
    queries = checked_queries(queries, top_k)
    top_k = min(top_k, len(self._rows))
    depth = min(max(_SHORTLIST * top_k, _SHORTEST), len(self._rows))
    found = self._lists.search(queries, depth, probes or self.about["probes"])
    step = max(_COMPARED // depth, 1)
    starts = range(0, max(len(queries), 1), step)
    parts = [slice(start, start + step) for start in starts]
    best = [self._rescored(queries[part], found[part], top_k) for part in parts]
    return tuple(map(np.concatenate, zip(*best)))

  def _rescored(self, queries, found, top_k):
    """Compares each query with the rows of its shortlist, [q, depth], keeps [q, k]."""
    rows = middles(self._rows[np.maximum(found, 0)], self._ranges)
    norms = np.linalg.norm(rows, axis=-1)
    cosines = np.einsum("qd,qnd->qn", queries, rows) / np.where(norms > 0, norms, 1)
    cosines = np.where(found < 0, -np.inf, np.clip(cosines, -1, 1))
    order = np.lexsort((found, -cosines))[:, :top_k]
    take = lambda each: np.take_along_axis(each, order, axis=1)
    return take(cosines).astype(np.float32), take(np.maximum(found, 0)).astype(np.int32)

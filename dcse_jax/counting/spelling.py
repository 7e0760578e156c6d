"""Vectors of words from how they are spelled."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

_SHORTEST, _LONGEST = 3, 5  # Characters.
_COLUMNS = 64  # How many numbers of a vector are computed at a time.


def spell(words: Sequence[str], size: int, *, seed: int = 0) -> np.ndarray:
  """Computes vectors of words that are alike where the words share pieces.

  A word has its pieces of three to five characters, with a mark before its first and
  after its last, as in Bojanowski et al., Enriching Word Vectors with Subword Information,
  2017. A piece counts the more the fewer words have it. Random signs make few numbers of
  many without changing cosines by much (Achlioptas, Database-friendly Random Projections,
  2003).

  Args:
    words: each once.
    size: how many numbers a vector has; cosines are off by about 1 / sqrt(size).
    seed: draws the signs.

  Returns:
    Vectors of unit length, [words, size] float32.
  """
  numbers: dict[str, int] = {}
  columns, ends = [], [0]
  for word in words:
    pieces = sorted(_pieces(word))
    columns += [numbers.setdefault(piece, len(numbers)) for piece in pieces]
    ends.append(len(columns))
  shape = (len(words), len(numbers))
  ones = np.ones(len(columns), np.float32)
  table = sp.csr_matrix((ones, columns, ends), shape)
  owners = np.maximum(np.bincount(columns, minlength=len(numbers)), 1)
  # A piece that every word has tells nothing, but no word may be left without any.
  table = table @ sp.diags(np.log1p(len(words) / owners).astype(np.float32))
  rng = np.random.default_rng(seed)
  vectors = np.zeros((len(words), size), np.float32)
  for start in range(0, size, _COLUMNS):
    some = vectors[:, start : start + _COLUMNS]
    signs = rng.integers(0, 2, (len(numbers), some.shape[1]), np.int8) * 2 - 1
    some[:] = table @ signs.astype(np.float32)
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(norms, 1e-30)


def _pieces(word: str) -> set[str]:
  marked = f"<{word}>"
  return {
    marked[start : start + length]
    for length in range(_SHORTEST, _LONGEST + 1)
    for start in range(max(1, len(marked) - length + 1))
  }

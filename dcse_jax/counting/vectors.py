"""Vectors of words from how often they stand near each other.

Counts of pairs, weighted by distance, become positive pointwise mutual information; a
truncated singular value decomposition makes it dense.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp

from dcse_jax.runtime.errors import UserError

# How many pairs are counted at a time, about; each takes 12 bytes.
_PAIRS = 20_000_000


def count_pairs(
  sentences: Sequence[np.ndarray], size: int, *, window: int
) -> sp.csr_matrix:
  """Counts how often words stand near each other, 1 / distance each time.

  Args:
    sentences: the words of each sentence by number; 0 is no word, but takes a place.
    size: how many numbers there are.
    window: how many places apart two words of a sentence may be.

  Returns:
    Sums for each two words in either order, [size, size] float32.
  """
  if not sentences:
    return sp.csr_matrix((size, size), dtype=np.float32)
  lengths = np.asarray([len(each) for each in sentences])
  words = np.concatenate(sentences)
  owner = np.repeat(np.arange(len(sentences)), lengths)
  total = sp.csr_matrix((size, size), dtype=np.float32)
  step = max(1, _PAIRS // window)
  for start in range(0, len(words), step):
    pairs = [
      _pairs_at(words, owner, start, start + step, d) for d in range(1, window + 1)
    ]
    first, second, weight = (np.concatenate(each) for each in zip(*pairs))
    part = sp.coo_matrix((weight, (first, second)), shape=(size, size))
    total = total + part.tocsr()
  return (total + total.T).tocsr()


def _pairs_at(words, owner, start: int, stop: int, distance: int):
  """Returns the pairs at a distance whose first word stands from start to stop - 1."""
  first, second = words[start:stop], words[start + distance : stop + distance]
  first = first[: len(second)]
  same = owner[start:stop][: len(second)] == owner[start + distance : stop + distance]
  kept = same & (first > 0) & (second > 0)
  weight = np.full(np.count_nonzero(kept), 1 / distance, np.float32)
  return first[kept], second[kept], weight


def positive_information(
  counts: sp.csr_matrix, *, context_power: float = 0.75
) -> sp.csr_matrix:
  """Computes positive pointwise mutual information, log(p(w, c) / (p(w) p(c))).

  Args:
    counts: weighted counts of pairs, [V, V].
    context_power: the exponent of the contexts' counts in p(c); below 1 rare contexts
      count less (Levy et al., Improving Distributional Similarity with Lessons Learned
      from Word Embeddings, 2015).

  Returns:
    [V, V] float32; what is not positive is left out.
  """
  by_word = np.asarray(counts.sum(axis=1), np.float64).ravel()
  by_context = by_word**context_power
  by_context /= max(by_context.sum(), 1e-300)
  found = counts.tocoo()
  values = np.log(found.data / (by_word[found.row] * by_context[found.col]))
  kept = values > 0
  return sp.csr_matrix(
    (values[kept].astype(np.float32), (found.row[kept], found.col[kept])),
    shape=counts.shape,
  )


def load_svd() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Imports scikit-learn's `randomized_svd`, which takes seconds.

  Raises:
    UserError: scikit-learn is not installed.
  """
  try:
    from sklearn.utils.extmath import randomized_svd
  except ImportError as error:
    raise UserError(
      "counting words needs scikit-learn: pip install 'dcse_jax[words]'"
    ) from error
  return randomized_svd


def reduce(information: sp.csr_matrix, size: int, *, seed: int = 0) -> np.ndarray:
  """Reduces rows to a few numbers by their largest singular vectors.

  The singular values are left out, which serves similarity better (Levy et al., 2015).

  Args:
    information: [V, V].
    size: how many numbers a vector has, below V.
    seed: draws the start of the approximation.

  Returns:
    Vectors of unit length, [V, size] float32; all zero for a word without contexts.
  """
  randomized_svd = load_svd()
  vectors, _, _ = randomized_svd(
    information, n_components=size, n_iter=4, random_state=seed
  )
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  is_empty = np.diff(information.indptr)[:, None] == 0
  # A row of zeros has a direction of rounding noise alone.
  return np.where(is_empty, 0.0, vectors / np.maximum(norms, 1e-30)).astype(np.float32)


def principal(table: np.ndarray, width: int) -> np.ndarray:
  """Projects vectors on the principal components of their directions.

  Cosines between sentences change little, and numbers that say little are left out.

  Args:
    table: [V, D]; rows may be zero.
    width: how many components are kept, at most D.

  Returns:
    [V, width] float32, the largest component first.
  """
  lengths = np.linalg.norm(table, axis=1, keepdims=True)
  directions = table / np.maximum(lengths, 1e-30)
  _, components = np.linalg.eigh(directions.T @ directions)
  kept = components[:, ::-1][:, :width]
  # The sign of a component is arbitrary: its largest number is positive.
  signs = np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(kept.shape[1])])
  return np.ascontiguousarray(table @ (kept * signs), np.float32)

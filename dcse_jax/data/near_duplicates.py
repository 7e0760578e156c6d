"""Near duplicates by MinHash: signatures of sentences, and which repeat earlier ones.

A sentence is the set of its runs of five letters, digits and single spaces, case and
punctuation aside. The share of such runs that two have in common, their Jaccard similarity,
is the share of equal places of their signatures. `datasketch` computes these; its own index
keeps Python's objects in memory for all sentences, so the search is done here, on arrays.

References:
  Broder, On the Resemblance and Containment of Documents, 1997.
  Li and König, b-Bit Minwise Hashing, 2010 (arXiv:0910.3349).
"""

from collections.abc import Callable, Iterator, Sequence
import unicodedata

import numpy as np

from dcse_jax.data import duplicates
from dcse_jax.runtime.errors import UserError

# Places of a signature; each keeps the lowest eight bits of a minimum.
PLACES = 128
_RUN = 5
# A band has the fewest places, and at most eight, that are found with this probability.
_FOUND, _WIDEST = 0.95, 8
# With how many of those before it in its band a sentence is compared, the first aside.
_NEAREST = 8
_AT_ONCE = 1 << 16
# Sentences whose estimate is less by as much are compared themselves: two deviations.
_MARGIN = 0.08
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def check_library() -> None:
  """Raises a UserError where the library is missing."""
  try:
    import datasketch  # noqa: F401
  except ImportError as error:
    raise UserError(
      "near duplicates need datasketch: pip install 'dcse_jax[prepare]', or leave out "
      "exact duplicates alone by --near_duplicates=0"
    ) from error


class _Kept(dict):
  """A table for str.translate: letters, marks and digits stay, all else is a space."""

  def __missing__(self, code: int) -> int:
    kind = unicodedata.category(chr(code))[0]
    self[code] = code if kind in "LMN" else 32
    return self[code]


_KEPT = _Kept()


def signatures(sentences: Sequence[str]) -> np.ndarray:
  """Computes the signature of each sentence, [n, PLACES] uint8; the same everywhere."""
  import datasketch  # It is an extra.

  found = np.empty((len(sentences), PLACES), np.uint8)
  made = datasketch.MinHash.generator(
    _runs(sentences), num_perm=PLACES, seed=1, hashfunc=_same, scheme="affine32"
  )
  for row, minhash in enumerate(made):
    found[row] = minhash.hashvalues  # The lowest bits remain.
  return found


def _same(value: int) -> int:
  return value


def _plain(sentence: str) -> str:
  """Returns what of a sentence counts, at least as long as a run."""
  return " ".join(sentence.casefold().translate(_KEPT).split()).ljust(_RUN)


def _runs(sentences: Sequence[str]) -> Iterator[list[int]]:
  """Yields a number of 32 bits for each run of each sentence."""
  plain = list(map(_plain, sentences))
  codes = np.frombuffer("".join(plain).encode("utf-32-le"), np.uint32)
  numbers = np.zeros(max(len(codes) - _RUN + 1, 0), np.uint64)
  for place in range(_RUN):
    # What is too large for 64 bits falls away.
    numbers = (numbers + codes[place : place + len(numbers)]) * _FACTOR
  numbers = (numbers >> np.uint64(32)).tolist()
  start = 0
  for each in plain:
    yield numbers[start : start + len(each) - _RUN + 1]
    start += len(each)


def jaccard(one: str, other: str) -> float:
  """Computes the share of all runs of two sentences that both have, in [0, 1]."""
  # For two alone this is faster than arrays are.
  first, second = (
    {plain[i : i + _RUN] for i in range(len(plain) - _RUN + 1)}
    for plain in map(_plain, (one, other))
  )
  return len(first & second) / len(first | second)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Estimates Jaccard similarities from signatures, [m, PLACES] each to [m].

  Unlike minima have equal lowest bits once in 256 times, which is taken out. The
  standard deviation is 0.044 at most.
  """
  chance = 1 / 256
  return ((one == other).mean(axis=1) - chance) / (1 - chance)


def band_width(threshold: float) -> int:
  """Returns how many places a band has, so that like sentences meet in one of them.

  Two sentences of similarity s agree in a band of r places with a probability of s^r.
  """
  found = lambda width: 1 - (1 - threshold**width) ** (PLACES // width)
  return max(width for width in range(1, _WIDEST + 1) if found(width) >= _FOUND)


def num_bands(threshold: float) -> int:
  """Returns how many bands there are; each is searched by itself."""
  return PLACES // band_width(threshold)


def find_in_band(
  found: np.ndarray,
  signatures: np.ndarray,
  is_asked: np.ndarray,
  threshold: float,
  band: int,
  is_like: Callable[[int, int], bool],
) -> None:
  """Finds sentences that are like an earlier one that meets them in a band.

  Memory holds some 12 bytes for each sentence.

  Args:
    found: which sentences are found, [n]; those that are found here are added. Other
      processes may add some meanwhile.
    signatures: those of all sentences, [n, PLACES], which may be mapped.
    is_asked: which sentences count, [n].
    threshold: the smallest similarity of sentences that are alike.
    band: the band's number.
    is_like: says of a sentence and an earlier one, whose signatures are hardly less alike
      than that, whether they are.
  """
  keys = _keys(signatures, band_width(threshold), band)
  for places, is_new in duplicates.sorted_parts(keys, is_asked):
    # Most sentences meet nobody: only those are kept that do.
    meets = ~is_new
    meets[:-1] |= meets[1:]
    places, is_new = places[meets], is_new[meets]
    starts = np.flatnonzero(is_new)
    group = np.cumsum(is_new) - 1
    rank = np.arange(len(places)) - starts[group]
    for back in (*range(1, _NEAREST + 1), 0):
      # Last, the first of the band is compared with those that have not met it yet.
      ours = np.flatnonzero(rank >= back if back else rank > _NEAREST)
      ours = ours[~found[places[ours]]]
      theirs = ours - back if back else starts[group[ours]]
      for start in range(0, len(ours), _AT_ONCE):
        rows = places[ours[start : start + _AT_ONCE]]
        others = places[theirs[start : start + _AT_ONCE]]
        estimates = similarity(signatures[rows], signatures[others])
        is_near = estimates >= threshold - _MARGIN
        for row, other in zip(rows[is_near].tolist(), others[is_near].tolist()):
          if is_like(row, other):
            found[row] = True


def _keys(signatures: np.ndarray, width: int, band: int) -> np.ndarray:
  """Returns a number for each sentence's places of a band, [n], evenly spread."""
  keys = np.empty(len(signatures), np.uint64)
  padded = np.zeros((_AT_ONCE, _WIDEST), np.uint8)
  for start in range(0, len(keys), _AT_ONCE):
    part = signatures[start : start + _AT_ONCE, band * width : (band + 1) * width]
    padded[: len(part), :width] = part
    keys[start : start + len(part)] = padded[: len(part)].view(np.uint64)[:, 0]
  keys *= _FACTOR  # It loses nothing, since it is odd.
  return keys

"""Which of many digests are equal, with little memory for each."""

from collections.abc import Iterator
import hashlib

import numpy as np

# As many are sorted at a time, where they are not far more.
_SORTED_AT_ONCE = 1 << 20
_MOST_PARTS = 64


def digest(content: bytes) -> int:
  """Returns a number of 64 bits that stands for some bytes.

  Among twenty million that differ two have one number once in a hundred thousand times.
  """
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def sorted_parts(
  digests: np.ndarray, is_asked: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the places of digests in sorted order, a part at a time.

  Equal digests come in one part, one after the other, in the order of their places.

  Args:
    digests: evenly spread over all of uint64, [n].
    is_asked: which of them count, [n]; None for all.

  Yields:
    The places of a part, [m], and which of them have another digest than the place
    before, [m]. Memory holds two bytes for each digest, and a part.
  """
  size = len(digests)
  parts = min(1 + size // _SORTED_AT_ONCE, _MOST_PARTS)
  edges = [np.uint64(min((i << 64) // parts, 2**64 - 1)) for i in range(parts + 1)]
  for low, high in zip(edges, edges[1:]):
    inside = digests >= low
    if high != edges[-1]:
      inside &= digests < high
    if is_asked is not None:
      inside &= is_asked
    places = np.flatnonzero(inside)
    values = digests[places]
    order = np.argsort(values, kind="stable")
    values, places = values[order], places[order]
    is_new = np.ones(len(values), bool)
    is_new[1:] = values[1:] != values[:-1]
    yield places, is_new


def number(digests: np.ndarray) -> np.ndarray:
  """Numbers equal digests alike, from 0 in the order in which they first occur.

  Args:
    digests: evenly spread over all of uint64, [n].

  Returns:
    Their numbers, [n] int64. The work takes some 20 bytes for each.
  """
  size = len(digests)
  first = np.empty(size, np.int64)  # Where the digest of each occurs first.
  for places, is_new in sorted_parts(digests):
    first[places] = places[is_new][np.cumsum(is_new) - 1]
  is_first = np.zeros(size, bool)
  is_first[first] = True
  numbers = np.cumsum(is_first)
  for start in range(0, size, _SORTED_AT_ONCE):  # In place, so as not to copy them.
    part = slice(start, start + _SORTED_AT_ONCE)
    first[part] = numbers[first[part]] - 1
  return first


def repeats(digests: np.ndarray) -> np.ndarray:
  """Returns which digests are equal to one before them, [n]; a byte for each."""
  found = np.zeros(len(digests), bool)
  for places, is_new in sorted_parts(digests):
    found[places[~is_new]] = True
  return found


def are_first(numbers: np.ndarray) -> np.ndarray:
  """Returns which of the numbers that `number` gives are the first of their kind, [n]."""
  found = np.ones(len(numbers), bool)
  found[1:] = numbers[1:] > np.maximum.accumulate(numbers)[:-1]
  return found

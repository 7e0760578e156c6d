"""Two spans of each sentence: an anchor and a positive that share only some words."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

# A span has as many words, or all that there are.
_LEAST = 4


def crop(
  sentences: Iterable[str], low: float, high: float, *, seed: int = 0
) -> Iterator[tuple[str, str]]:
  """Yields two spans of each sentence, each drawn by itself.

  Args:
    sentences: white space divides them into words; one without any is divided into its
      characters, as writing without spaces needs.
    low: the least share of a sentence's words in a span, in (0, 1].
    high: the most, at least `low`.
    seed: draws lengths and places.

  References:
    Izacard et al., Contriever, 2022, Sec. 3.1, "independent cropping"
    (arXiv:2112.09118), who draw anew at each step; here a sentence is cropped once.
  """
  rng = np.random.default_rng(seed)
  for sentence in sentences:
    joint = " " if len(sentence.split()) > 1 else ""
    units = sentence.split() if joint else sentence
    first, second = (_span(units, low, high, rng) for _ in range(2))
    yield joint.join(first), joint.join(second)


def _span(
  units: Sequence[str], low: float, high: float, rng: np.random.Generator
) -> Sequence[str]:
  number = max(_LEAST, round(rng.uniform(low, high) * len(units)))
  start = rng.integers(max(len(units) - number, 0) + 1)
  return units[start : start + number]

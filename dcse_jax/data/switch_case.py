"""Case-switched sentences: positives of equal meaning but other tokens."""

from collections.abc import Iterable, Iterator

import numpy as np


def switch_case(sentences: Iterable[str], share: float, *, seed: int) -> Iterator[str]:
  """Yields sentences with the case of the first letter of some words switched.

  Args:
    sentences: white space divides them into words.
    share: the probability that a word is switched, in [0, 1].
    seed: draws the words.

  References:
    Wang et al., CARDS, 2022 (arXiv:2206.02457), who draw anew at each step; here a
    sentence is switched once.
  """
  rng = np.random.default_rng(seed)
  return (_switch(sentence, share, rng) for sentence in sentences)


def _switch(sentence: str, share: float, rng: np.random.Generator) -> str:
  words = sentence.split(" ")
  chosen = rng.random(len(words)) < share
  return " ".join(
    word[:1].swapcase() + word[1:] if is_chosen else word
    for word, is_chosen in zip(words, chosen)
  )

"""Near duplicates: signatures estimate similarity, and the search finds like ones."""

import random

import numpy as np
import pytest

pytest.importorskip("datasketch")

from dcse_jax.data import near_duplicates  # noqa: E402
from tests import models  # noqa: E402


def runs(sentence):
  """The set that a sentence of plain words is, written down once more."""
  words = "".join(c if c.isalnum() else " " for c in sentence.casefold()).split()
  plain = " ".join(words)
  return {plain[i : i + 5] for i in range(len(plain) - 4)}


def jaccard(one, other):
  expected = len(runs(one) & runs(other)) / len(runs(one) | runs(other))
  assert near_duplicates.jaccard(one, other) == expected
  return expected


def find(rows, is_asked, threshold, band):
  """Finds rows by signatures alone."""
  found = np.zeros(len(rows), bool)
  is_like = lambda row, other: (
    near_duplicates.similarity(rows[row : row + 1], rows[other : other + 1])[0]
    >= threshold
  )
  near_duplicates.find_in_band(found, rows, is_asked, threshold, band, is_like)
  return found


def test_signatures_estimate_the_share_of_common_runs():
  rng, pairs = random.Random(0), []
  for sentence in models.SENTENCES[:200]:
    words = (sentence + " " + rng.choice(models.SENTENCES)).split()
    for _ in range(rng.randrange(4)):
      words[rng.randrange(len(words))] = rng.choice(["window", "later", "a"])
    pairs.append((sentence + " " + sentence, " ".join(words)))
  found = near_duplicates.similarity(
    *(near_duplicates.signatures(each) for each in zip(*pairs))
  )
  errors = found - [jaccard(*pair) for pair in pairs]
  # The deviation of a mean of 128 draws is sqrt(s (1 - s) / 128), 0.044 at most; 200 pairs
  # share no draw, so that their mean error has 0.0031 of it at most.
  assert np.abs(errors).max() < 4.5 * 0.044
  assert abs(errors.mean()) < 4 * 0.044 / np.sqrt(200)


def test_case_punctuation_and_white_space_make_no_difference():
  one, other, short, empty = near_duplicates.signatures(
    ["Hello, wide WORLD -- again!", "hello wide world (again)", "猫", ""]
  )
  assert (one == other).all()
  assert not (short == empty).all()


def test_a_signature_does_not_depend_on_what_stands_beside():
  sentences = models.SENTENCES[:30]
  together = near_duplicates.signatures(sentences)
  alone = [near_duplicates.signatures([each])[0] for each in sentences]
  np.testing.assert_array_equal(together, alone)
  assert near_duplicates.signatures([]).shape == (0, 128)


@pytest.mark.parametrize("threshold, width", [(0.5, 3), (0.7, 5), (0.8, 7), (0.9, 8)])
def test_bands_are_as_wide_as_finds_nineteen_of_twenty(threshold, width):
  # Seven places of 128 make 18 bands: 1 - (1 - 0.8 ** 7) ** 18 = 0.986.
  found = lambda r: 1 - (1 - threshold**r) ** (128 // r)
  assert near_duplicates.band_width(threshold) == width
  assert found(width) >= 0.95 and (width == 8 or found(width + 1) < 0.95)


@pytest.mark.parametrize("threshold", [0.6, 0.8, 1.0])
def test_the_search_finds_what_comparing_all_with_all_finds(threshold, monkeypatch):
  rng = np.random.default_rng(0)
  # Families of four: each child has some of its parent's places drawn anew.
  parents = rng.integers(0, 256, (25, 128), np.uint8)
  children = np.repeat(parents, 4, axis=0)
  is_new = rng.random(children.shape) < rng.random((100, 1)) * 0.4
  children[is_new] = rng.integers(0, 256, is_new.sum(), np.uint8)
  children = np.concatenate([children, parents[:9], parents[:9]])
  children = rng.permutation(children)
  is_asked = rng.random(len(children)) < 0.9
  monkeypatch.setattr(near_duplicates.duplicates, "_SORTED_AT_ONCE", 50)
  monkeypatch.setattr(near_duplicates, "_AT_ONCE", 64)
  width, bands = (f(threshold) for f in (near_duplicates.band_width,
                                         near_duplicates.num_bands))  # fmt: skip
  expected = np.zeros(len(children), bool)
  for row in np.flatnonzero(is_asked):
    same = children[:row][is_asked[:row]] == children[row]
    of_bands = same[:, : bands * width].reshape(-1, bands, width)
    similar = (same.mean(axis=1) - 1 / 256) / (1 - 1 / 256)
    meets = of_bands.all(axis=2).any(axis=1)
    expected[row] = (meets & (similar >= threshold)).any()
  found = np.zeros(len(children), bool)
  for band in range(bands):
    found |= find(children, is_asked, threshold, band)
  np.testing.assert_array_equal(found, expected)
  assert 5 <= expected.sum() < len(children) - 25


def test_in_a_band_that_many_share_the_first_and_the_nearest_are_compared():
  rng = np.random.default_rng(1)
  rows = rng.integers(0, 256, (40, 128), np.uint8)
  rows[:, :7] = 7  # They meet in the first band, and are unlike otherwise.
  rows[20] = rows[0]  # Like the first, 20 before it.
  rows[30] = rows[23]  # Like the seventh before it.
  everything = np.ones(40, bool)
  found = find(rows, everything, 0.8, 0)
  assert np.flatnonzero(found).tolist() == [20, 30]

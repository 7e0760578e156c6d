"""Semantic textual similarity: Spearman correlation with human scores."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
from typing import Any, Self

import numpy as np
import scipy  # Its parts load at first use: two seconds of every start.

from dcse_jax.eval import sts_sets
from dcse_jax.eval.evaluator import Evaluator
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.evaluator import Subject
from dcse_jax.eval.evaluator import draw_counts
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError

# The names in tables of the two ways to score SICK-R.
CONVENTIONS = {"senteval": "SentEval", "mteb": "MTEB"}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Computes Spearman's rank correlation, ties averaged, in percent.

  A constant argument, such as a collapsed encoder's cosines, ranks nothing and gives 0.
  """
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return 0.0
  return 100.0 * float(scipy.stats.spearmanr(a, b).statistic)


def drawn_spearman(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Computes `spearman` of n pairs where each counts as often as it was drawn.

  Args:
    a: [n].
    b: [n].
    counts: how often each pair was drawn, whole numbers, [draws, n].

  Returns:
    In percent, [draws].
  """
  ranks = [_drawn_ranks(x, counts) for x in (a, b)]
  # All ranks have the same mean, ties or not.
  middle = (counts.sum(axis=1, keepdims=True) + 1) / 2
  first, second = (x - middle for x in ranks)
  product = lambda x, y: np.sum(counts * x * y, axis=1)
  scale = np.sqrt(product(first, first) * product(second, second))
  return 100.0 * product(first, second) / np.maximum(scale, 1e-30)


def _drawn_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Ranks values, [n], among those drawn, ties averaged: [draws, n]."""
  _, group = np.unique(values, return_inverse=True)
  order = np.argsort(group, kind="stable")
  starts = np.flatnonzero(np.diff(group[order], prepend=-1))
  alike = np.add.reduceat(counts[:, order], starts, axis=1)
  return (np.cumsum(alike, axis=1) - (alike - 1) / 2)[:, group]


def paired_cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Computes the cosine of row i with row i, [n, D] each, to [n]; 0 for zero rows."""
  return np.sum(unit_length(first) * unit_length(second), axis=1)


Rows = dict[str, tuple[np.ndarray, np.ndarray]]


def index_sentences(sets: dict[str, sts_sets.StsSet]) -> tuple[list[str], Rows]:
  """Lists every distinct sentence of the sets, and where each pair's sentences are.

  Returns:
    The sentences, and for each set the places of its first and its second sentences.
  """
  row = {}
  for pairs in sets.values():
    for sentence in (*pairs.first, *pairs.second):
      row.setdefault(sentence, len(row))
  places = lambda sentences: np.asarray([row[s] for s in sentences])
  rows = {name: (places(p.first), places(p.second)) for name, p in sets.items()}
  return list(row), rows


def score_pairs(
  embeddings: np.ndarray, rows: Rows, sets: dict[str, sts_sets.StsSet]
) -> dict[str, float]:
  """Scores every set.

  Args:
    embeddings: those of the sentences of `index_sentences`, [n, D].
    rows: from `index_sentences`.
    sets: the sets by name.

  Returns:
    Spearman in percent by set, and "avg", their mean over `sts_sets.averaged_sets`.
  """
  scores = {}
  for name, pairs in sets.items():
    first, second = rows[name]
    cosine = paired_cosine(embeddings[first], embeddings[second])
    scores[name] = spearman(cosine, pairs.scores)
  scores["avg"] = float(
    np.mean([scores[n] for n in sts_sets.averaged_sets(list(sets))])
  )
  return scores


def score_sts(
  embed: Callable[[list[str]], np.ndarray], sets: dict[str, sts_sets.StsSet]
) -> dict[str, float]:
  """Scores every set by `score_pairs`; embed turns sentences into embeddings [n, D]."""
  sentences, rows = index_sentences(sets)
  return score_pairs(embed(sentences), rows, sets)


def paraphrases(scores: np.ndarray, *, strictly_above: float | None = None):
  """Returns which pairs of an STS set count as paraphrases, [n] bools.

  Args:
    scores: human scores of the pairs, [n], on any scale.
    strictly_above: takes the pairs above this score. SimCSE's analysis has 4 (of 5),
      and takes pairs from all of STS-B. None takes our rule: the upper fifth of the
      range from the lowest score, or 0 if that is lower, to the highest, its lower end
      included: 4 and above on STS-B's 0 to 5.
  """
  if strictly_above is not None:
    return scores > strictly_above
  lowest = min(scores.min(), 0.0)
  return scores >= lowest + 0.8 * (scores.max() - lowest)


def alignment(
  first: np.ndarray,
  second: np.ndarray,
  scores: np.ndarray,
  *,
  strictly_above: float | None = None,
) -> float | None:
  """Computes the mean squared distance of paraphrases on the unit sphere, in [0, 4].

  Args:
    first: embeddings, [n, D].
    second: embeddings, [n, D]; row i pairs with row i of first.
    scores: human scores of the pairs, [n].
    strictly_above: which pairs are paraphrases; see `paraphrases`.

  Returns:
    The mean; None where no pair is a paraphrase.

  References:
    Wang and Isola, 2020, Eq. 3 (arXiv:2005.10242); Gao et al., SimCSE, 2021,
    section 6.
  """
  alike = paraphrases(scores, strictly_above=strictly_above)
  if not alike.any():
    return None
  gaps = unit_length(first[alike]) - unit_length(second[alike])
  return float(np.mean(np.sum(gaps**2, axis=1)))


def uniformity(embeddings: np.ndarray) -> float:
  """Computes the log mean Gaussian potential of all pairs on the unit sphere.

  Args:
    embeddings: [n, D]; each pair of rows counts once.

  Returns:
    log E exp(-2 ||x - y||^2), at most 0; smaller is more evenly spread. It is 0 for a
    single row, as it is for rows that all lie on one point.

  References:
    Wang and Isola, 2020, Eq. 4 (arXiv:2005.10242).
  """
  if len(embeddings) < 2:
    return 0.0
  unit = unit_length(embeddings)
  total, block = 0.0, 1024
  for start in range(0, len(unit), block):
    cosine = unit[start : start + block] @ unit[start:].T
    potential = np.exp(4.0 * np.minimum(cosine, 1.0) - 4.0, dtype=np.float64)
    total += np.triu(potential, k=1).sum()
  return float(np.log(total / (len(unit) * (len(unit) - 1) / 2)))


@dataclasses.dataclass(frozen=True)
class Sts(Evaluator):
  """Scores embeddings by Spearman on STS sets.

  Attributes:
    sets: the sets to score, by name.
    options: how to score them.
    sphere: the set for alignment and uniformity, with its name; None where a command
      finds no such set, and while training, which measures them on the dev sets.
  """

  kind = "sts"
  form = "DIR"
  about = "Folder of TSVs, one a set; one TSV; or SentEval's data folder. Repeats."
  measure = "Spearman"
  unit = "pairs"

  sets: dict[str, sts_sets.StsSet]
  options: Options = Options()
  sphere: tuple[str, sts_sets.StsSet] | None = None

  @classmethod
  def of_sets(cls, folder: str, names: Sequence[str]) -> Self:
    """Reads the named sets of a folder, for training.

    Raises:
      KeyError: there is no such set; it has its name and what the folder holds.
      UserError: the folder or a file cannot be read.
    """
    there = sts_sets.find(folder)
    for name in names:
      if name not in there:
        raise KeyError(name, f"{folder} holds {', '.join(there)}")
    return cls(sts_sets.read_sts(folder, names))

  @classmethod
  def read(cls, places: Sequence[str], options: Options) -> Self:
    """Reads the sets to score, the usual seven first, in the order of papers.

    Without options.dev, train sets are left out unless there is nothing else; with it,
    only sets whose names end in -dev are scored.
    """
    there: dict[str, sts_sets.StsSet] = {}
    for place in places:
      more = sts_sets.read_sts(place)
      if both := there.keys() & more.keys():
        raise UserError(f"--sts {place}: there is a {min(both)} already; rename one")
      there |= more
    return cls(_to_score(there, options), options, _sphere(there, options))

  @functools.cached_property
  def _index(self) -> tuple[list[str], Rows]:
    return index_sentences(self.sets)

  @property
  def columns(self) -> tuple[str, ...]:
    """The names of the sets."""
    return tuple(self.sets)

  @property
  def sentences(self) -> Iterable[str]:
    """The sentences of the sets, and of the one that alignment is measured on."""
    yield from self._index[0]
    if self.sphere:
      yield from self.sphere[1].first
      yield from self.sphere[1].second

  def score(self, subject: Subject) -> dict[str, float]:
    """Scores each set, with "avg"; with `sphere` also alignment and uniformity."""
    sentences, rows = self._index
    scores = score_pairs(subject.embed(sentences), rows, self.sets)
    if not self.sphere:
      return scores
    pairs, above = self.sphere[1], self.options.alignment_above
    first, second = subject.embed(pairs.first), subject.embed(pairs.second)
    distinct = list(dict.fromkeys((*pairs.first, *pairs.second)))
    return scores | {
      "alignment": alignment(first, second, pairs.scores, strictly_above=above),
      "uniformity": uniformity(subject.embed(distinct)),
    }

  def score_drawn(
    self, subject: Subject, draws: int
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores each set, and on pairs of it that are drawn anew."""
    scores = self.score(subject)
    if not draws:
      return scores, {}
    sentences, rows = self._index
    embeddings, drawn = subject.embed(sentences), {}
    for name, pairs in self.sets.items():
      cosine = paired_cosine(*(embeddings[r] for r in rows[name]))
      counts = draw_counts(len(cosine), draws)
      drawn[name] = drawn_spearman(cosine, pairs.scores, counts)
    averaged = sts_sets.averaged_sets(list(self.sets))
    drawn["avg"] = np.mean([drawn[name] for name in averaged], axis=0)
    return scores, drawn

  def metric_name(self, column: str) -> str:
    """Returns the name of a set's score in metrics.jsonl."""
    return f"eval/{column.lower()}_spearman"

  def metrics(self, scores: dict[str, float], subject: Subject) -> dict[str, float]:
    """Returns Spearman by set, the mean alignment, and uniformity of all sentences."""
    sentences, rows = self._index
    embeddings = subject.embed(sentences)
    alignments = [
      alignment(*(embeddings[r] for r in rows[name]), pairs.scores)
      for name, pairs in self.sets.items()
    ]
    return super().metrics(scores, subject) | {
      "eval/alignment": float(np.mean(alignments)),
      "eval/uniformity": uniformity(embeddings),
    }

  def digest(self, column: str) -> str:
    """Returns a digest of a set's pairs and their scores."""
    return sts_sets.digest(self.sets[column])

  def describe(self) -> dict[str, Any]:
    """Returns the title, the sets in the mean, their pairs, and alignment's set."""
    convention, dev = self.options.convention, self.options.dev
    title = (
      f"{CONVENTIONS[convention]} convention: Spearman x 100 of cosines, subsets of a "
      'set together ("all")'
    )
    every = sts_sets.SICKR_ALL
    for name, by in (("SICKR-test", "its {:,} test"), (every, "all its {:,}")):
      if name in self.sets:
        title += f", SICK-R by {by.format(len(self.sets[name].scores))} pairs"
    return {
      "unit": self.unit,
      "title": title + (", dev sets only" if dev else ""),
      "averaged": sts_sets.averaged_sets(list(self.sets)),
      "pairs": {name: len(pairs.scores) for name, pairs in self.sets.items()},
      "alignment": {
        "set": self.options.alignment_set or _sphere_name(dev),
        "strictly_above": self.options.alignment_above,
      },
    }


def _to_score(
  sets: dict[str, sts_sets.StsSet], options: Options
) -> dict[str, sts_sets.StsSet]:
  if options.dev:
    sets = {n: pairs for n, pairs in sets.items() if n.lower().endswith("-dev")}
    if not sets:
      raise UserError("--dev: no set is named NAME-dev; add one or leave --dev out")
    return sets
  if options.convention == "mteb":
    sets = sts_sets.with_all_of_sickr(sets)
  trained_on = [name for name in sets if name.lower().endswith("-train")]
  if len(trained_on) < len(sets):
    sets = {name: pairs for name, pairs in sets.items() if name not in trained_on}
  order = (*sts_sets.SEVEN_TEST_SETS, sts_sets.SICKR_ALL, *sets)
  return {name: sets[name] for name in dict.fromkeys(order) if name in sets}


def _sphere_name(dev: bool) -> str:
  return "STSB-dev" if dev else "STSB-test"


def _sphere(
  sets: dict[str, sts_sets.StsSet], options: Options
) -> tuple[str, sts_sets.StsSet] | None:
  """Finds the set to measure alignment on; None if the default one is not there."""
  name = options.alignment_set
  chosen = name or _sphere_name(options.dev)
  if options.dev and sts_sets.is_test(chosen):
    raise UserError(f"--alignment_set {chosen}: --dev looks at no test set")
  if chosen == sts_sets.STSB_ALL and chosen not in sets:
    sets = {**sets, chosen: sts_sets.all_splits(sets, chosen)}
  if chosen not in sets:
    if name is None:
      return None
    raise UserError(f"--alignment_set {name}: --sts holds {', '.join(sets) or 'none'}")
  alike = paraphrases(sets[chosen].scores, strictly_above=options.alignment_above)
  if not alike.any():
    raise UserError(
      f"no pair of {chosen} has a score above {options.alignment_above:g}: lower it"
    )
  return chosen, sets[chosen]

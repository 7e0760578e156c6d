"""Which documents are hard negatives: guards, ranks and draws, whatever the model.

Names and meanings are those of sentence-transformers' `mine_hard_negatives`.
"""

from collections.abc import Hashable, Iterable, Sequence
import dataclasses
import random

import numpy as np

from dcse_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Guards:
  """What keeps false negatives out.

  Attributes:
    range_min: how many of the nearest documents that pass all bounds are skipped.
    range_max: no document further down is taken; None looks as far as is needed, ten
      times further where any bound below may leave documents out.
    max_score: the largest score with the anchor.
    min_score: the smallest.
    absolute_margin: the score is below that of the anchor with the furthest of its
      positives by this much, or more.
    relative_margin: likewise, as a share of that score's size.

  References:
    Moreira et al., NV-Retriever, 2024 (arXiv:2407.15831).
  """

  range_min: int = 0
  range_max: int | None = None
  max_score: float | None = None
  min_score: float | None = None
  absolute_margin: float | None = None
  relative_margin: float | None = None

  @property
  def bounds(self) -> dict[str, float]:
    """The bounds on scores that are set, by name, in the order in which they act."""
    names = ("absolute_margin", "relative_margin", "max_score", "min_score")
    return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

  def depth(
    self, num_negatives: int, most_positives: int, *, rescored: bool = False
  ) -> int:
    """Returns `range_max`, or what stands for None.

    Args:
      num_negatives: how many are wanted.
      most_positives: the most pairs that an anchor has.
      rescored: whether other scores than those of the search meet the bounds.

    Raises:
      UserError: no range holds that number.
    """
    depth = self.range_max
    if depth is None:
      # The nearest documents are seldom below a smallest cosine.
      strict = rescored or set(self.bounds) - {"min_score"}
      times = 10 if strict and self.bounds else 1
      depth = self.range_min + times * num_negatives + most_positives
    if depth - self.range_min < num_negatives:
      raise UserError(
        f"range_min={self.range_min} and range_max={depth} leave no room for "
        f"num_negatives={num_negatives}: widen the range"
      )
    return depth

  def left_out(self, scores: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """Returns which candidates each bound leaves out, by its name, [n, k] each.

    Args:
      scores: those of anchors with candidates, [n, k] float32.
      positive: the least score of each anchor with a positive, [n] float32.
    """
    positive, found = positive[:, None], {}
    for name, bound in self.bounds.items():
      bound = np.float32(bound)
      found[name] = {
        "absolute_margin": lambda b: scores + b > positive,
        "relative_margin": lambda b: scores > positive - np.abs(positive) * b,
        "max_score": lambda b: scores > b,
        "min_score": lambda b: scores < b,
      }[name](bound)
    return found


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs by anchor, and the documents that may be negatives: see `group`.

  Attributes:
    anchors: each once.
    documents: each once; first all positives.
    num_positives: how many documents are positives.
    anchor_of: the number of each pair's anchor, ascending, [pairs].
    document_of: the number of each pair's document, [pairs].
    itself: the document that is the anchor itself, -1 for none, [anchors].
    most: the most pairs that an anchor has, repeated ones counted.
  """

  anchors: list
  documents: list
  num_positives: int
  anchor_of: np.ndarray
  document_of: np.ndarray
  itself: np.ndarray
  most: int

  def of_anchors(self, start: int, stop: int) -> slice:
    """Returns where the pairs of anchors from start to stop - 1 are."""
    return slice(*np.searchsorted(self.anchor_of, (start, stop)))

  def are_own(self, start: int, rows: np.ndarray) -> np.ndarray:
    """Returns which documents are an anchor's positives or the anchor itself.

    Args:
      start: the first anchor.
      rows: numbers of documents for it and the anchors after it, [n, k].
    """
    part = self.of_anchors(start, start + len(rows))
    key = lambda anchor, row: anchor * len(self.documents) + row
    anchors = np.arange(start, start + len(rows))[:, None]
    positives = key(self.anchor_of[part], self.document_of[part])
    is_positive = np.isin(key(anchors, rows.astype(np.int64)), positives)
    return is_positive | (rows == self.itself[anchors])

  def least(self, start: int, scores: np.ndarray) -> np.ndarray:
    """Returns the least score of each anchor with one of its positives.

    Args:
      start: the first anchor.
      scores: those of all pairs of some anchors from that one on, [pairs of these].
    """
    part = self.anchor_of[self.anchor_of.searchsorted(start) :][: len(scores)]
    return np.minimum.reduceat(scores, np.flatnonzero(np.diff(part, prepend=-1)))


def group(
  anchors: Sequence[Hashable],
  positives: Sequence[Hashable],
  corpus: Iterable[Hashable] = (),
) -> Pairs:
  """Groups pairs by their anchor, and joins positives and a corpus.

  Args:
    anchors: one for each pair: a text, or what stands for it.
    positives: likewise.
    corpus: more documents.
  """
  documents = dict.fromkeys(positives)
  num_positives = len(documents)
  documents |= dict.fromkeys(corpus)
  place = {each: row for row, each in enumerate(documents)}
  own: dict[Hashable, dict[int, None]] = {}
  number: dict[Hashable, int] = {}
  for anchor, positive in zip(anchors, positives, strict=True):
    own.setdefault(anchor, {})[place[positive]] = None
    number[anchor] = number.get(anchor, 0) + 1
  return Pairs(
    list(own),
    list(documents),
    num_positives,
    np.repeat(np.arange(len(own)), [len(rows) for rows in own.values()]),
    np.asarray([row for rows in own.values() for row in rows], np.int64),
    np.asarray([place.get(anchor, -1) for anchor in own], np.int64),
    max(number.values()),
  )


def choose(
  scores: np.ndarray,
  may: np.ndarray,
  positive: np.ndarray,
  guards: Guards,
  *,
  num_negatives: int,
  depth: int,
  rng: random.Random | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
  """Chooses among the candidates of each anchor.

  Args:
    scores: those of the candidates, [n, k] float32.
    may: which of them may be negatives, [n, k]; at most `depth` of an anchor.
    positive: the least score of each anchor with a positive, [n] float32.
    guards: which candidates may be negatives.
    num_negatives: how many are wanted for each anchor.
    depth: from `Guards.depth`.
    rng: draws them from all that the guards let pass, in place of those with the
      highest scores.

  Returns:
    The places of the chosen among the candidates, [n, num_negatives], the highest
    scores first, -1 where there are too few; and how many candidates each bound left
    out, by its name: one that several leave out counts for the first.
  """
  may, counts = may & np.isfinite(scores), {}
  for name, is_out in guards.left_out(scores, positive).items():
    counts[name] = int(np.sum(may & is_out))
    may &= ~is_out
  order = np.argsort(np.where(may, -scores, np.inf), axis=1, kind="stable")
  order = np.where(np.take_along_axis(may, order, axis=1), order, -1)
  missing = max(guards.range_min + num_negatives - order.shape[1], 0)
  order = np.pad(order, ((0, 0), (0, missing)), constant_values=-1)
  order = order[:, guards.range_min : depth]
  if rng is None:
    return order[:, :num_negatives], counts
  options = np.maximum((order >= 0).sum(axis=1), num_negatives)
  drawn = [sorted(rng.sample(range(n), num_negatives)) for n in options.tolist()]
  drawn = np.asarray(drawn, int).reshape(-1, num_negatives)
  chosen = np.take_along_axis(order, drawn, axis=1)
  # Those that are missing come last.
  last = np.argsort(chosen < 0, axis=1, kind="stable")
  return np.take_along_axis(chosen, last, axis=1), counts

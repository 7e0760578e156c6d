"""A table of hard negatives, mined for pairs: the way from texts to rows."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import pathlib
import random

import numpy as np

from dcse_jax.data import table_writer
from dcse_jax.embed import candidates as candidates_lib
from dcse_jax.embed.mining import Guards
from dcse_jax.embed.mining import Pairs
from dcse_jax.embed.mining import choose
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError

FORMS = ("n-tuple", "list", "triplet", "candidates")
# Anchors whose rows are made and written at a time.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Table:
  """The form of the table.

  Attributes:
    form: "n-tuple" has a row for each pair with a column for each negative, "list" one
      with all of them in a column, and "triplet" a row for each negative; "candidates"
      has a row for each document that the search found, and each positive, unguarded.
    num_negatives: how many are wanted for each pair.
    scores: whether columns of scores are there, too.
  """

  form: str = "n-tuple"
  num_negatives: int = 1
  scores: bool = False

  @property
  def columns(self) -> dict[str, type | tuple]:
    """The type of each column, by name, as `table_writer` takes them."""
    if self.form == "candidates":
      return {"anchor": str, "document": str, "score": float}
    if self.form == "list":
      found, scores = {"negatives": (str,)}, {"negative_scores": (float,)}
    else:
      number = self.num_negatives if self.form == "n-tuple" else 1
      names = [f"negative_{i + 1}" for i in range(number)]
      names = ["negative"] if number == 1 else names
      found = dict.fromkeys(names, str)
      scores = {f"{name}_score": float for name in names}
    found = {"anchor": str, "positive": str, **found}
    return {**found, "positive_score": float, **scores} if self.scores else found

  def rows(
    self, anchor: str, positive: str, negatives: list[str], scores: list[float]
  ) -> Iterator[list[table_writer.Cell]]:
    """Yields the rows of a pair that has any negatives.

    Args:
      anchor: the pair's.
      positive: the pair's.
      negatives: those found, the hardest first.
      scores: the positive's and theirs.
    """
    if self.form == "triplet":
      for negative, score in zip(negatives, scores[1:]):
        yield [anchor, positive, negative, *([scores[0], score] * self.scores)]
    elif self.form == "list":
      more = [scores[0], scores[1:]] if self.scores else []
      yield [anchor, positive, negatives, *more]
    else:
      missing = [None] * (self.num_negatives - len(negatives))
      more = [*scores, *missing] if self.scores else []
      yield [anchor, positive, *negatives, *missing, *more]


@dataclasses.dataclass
class Report:
  """What was found and what was left out; grows with the table.

  Attributes:
    rows: those of the table.
    pairs: those that were mined for.
    candidates: documents found that are no positives of the anchor.
    left_out: how many candidates each guard left out, by its name; one that several
      leave out counts for the first. "unscored" are those without a score.
    short: how many pairs have fewer negatives than were asked for.
    without: how many of these have none, and no row.
    positive_sum: the sum of the scores of pairs that have negatives.
    negative_sum: that of their negatives' scores.
    negatives: how many negatives pairs have in all.
  """

  rows: int = 0
  pairs: int = 0
  candidates: int = 0
  left_out: dict[str, int] = dataclasses.field(default_factory=dict)
  short: int = 0
  without: int = 0
  positive_sum: float = 0.0
  negative_sum: float = 0.0
  negatives: int = 0

  def count(self, name: str, number: int) -> None:
    """Adds to what a guard left out."""
    self.left_out[name] = self.left_out.get(name, 0) + number

  def lines(self) -> list[str]:
    """Returns what to tell people, a line each."""
    share = lambda n, of: f"{n:,} of {of:,} ({n / max(of, 1):.1%})"
    said = [
      f"{name} left out {share(number, self.candidates)} candidates"
      for name, number in self.left_out.items()
    ]
    if self.short:
      said.append(
        f"{share(self.short, self.pairs)} pairs have fewer negatives than were asked "
        f"for, {self.without:,} of them none"
      )
    if self.negatives:
      paired = max(self.pairs - self.without, 1)
      said.append(
        f"mean score: positives {self.positive_sum / paired:.4f}, negatives "
        f"{self.negative_sum / self.negatives:.4f}"
      )
    return said


def kept_in(path: pathlib.Path) -> pathlib.Path:
  """Returns the folder that keeps what a table was made from."""
  return path.with_name(f"{path.name}.mining")


def mine_file(
  encoder: SentenceEncoder,
  pairs: Pairs,
  path: pathlib.Path,
  *,
  table: Table = Table(),
  guards: Guards = Guards(),
  seed: int | None = None,
  index: str = "exact",
  prompts: Mapping[str, Mapping[str, str | None]] | None = None,
  batch_size: int = 64,
  make_scorer: Callable[[pathlib.Path], candidates_lib.Scorer] | None = None,
) -> Report:
  """Writes hard negatives for pairs, found by a search.

  An anchor's negatives are the nearest documents that are no positive of it, nor the
  anchor itself, and that the guards let pass. PATH.mining keeps embeddings and what was
  found: a command that was killed goes on, to the same bytes, and one with other guards
  begins there.

  Args:
    encoder: the model.
    pairs: from `mining.group`.
    path: from `table_writer.check_output`.
    table: its form.
    guards: which documents may be negatives.
    seed: draws from all that the guards let pass; None takes the nearest.
    index: one of `candidates.INDEXES`.
    prompts: see `candidates.BiEncoder`; None takes the folder's "query" and "document".
    batch_size: sentences in a compiled batch.
    make_scorer: makes what scores for the guards in place of the model, and ranks what
      they let pass; takes the folder for what is kept.

  Raises:
    UserError: the guards leave no room for the negatives, or leave out all candidates;
      there are fewer documents; the model yields NaN; or something cannot be written.
  """
  wanted, rescored = table.num_negatives, make_scorer is not None
  depth = guards.depth(wanted, pairs.most, rescored=rescored)
  if len(pairs.documents) <= wanted:
    raise UserError(
      f"num_negatives={wanted}, and there are {len(pairs.documents)} documents in all: "
      "ask for fewer, or add a --corpus"
    )
  top_k = depth + pairs.most + bool((pairs.itself >= 0).any())
  if prompts is None:
    prompts = {role: {"prompt_name": role} for role in ("query", "document")}
  with locks.output_locked(path):
    folder = kept_in(path)
    encoded = candidates_lib.BiEncoder(
      folder, encoder, pairs, prompts, batch_size=batch_size
    )
    found = candidates_lib.search(folder, encoded, top_k, index=index)
    if make_scorer is None:
      scores = candidates_lib.of_search(encoded, pairs, found)
    else:
      scores = candidates_lib.rescore(folder, make_scorer(folder), pairs, found)
    report = Report()
    rng = None if seed is None else random.Random(seed)
    with table_writer.writing(path, table.columns) as write:
      for start in range(0, len(pairs.anchors), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(pairs.anchors)))
        block = _Block(pairs, found, scores, part)
        if table.form == "candidates":
          rows = list(block.candidates())
        else:
          chosen = block.choose(guards, wanted, depth, rng, report)
          rows = list(block.rows(chosen, table, report))
        write(rows)
        report.rows += len(rows)
      if not report.rows:
        said = "; ".join(report.lines())
        raise UserError(f"no pair has any negative ({said}): loosen the guards")
  return report


class _Block:
  """Some anchors with their candidates.

  Args:
    pairs: anchors and documents.
    found: the candidates of all anchors.
    scores: those that guards look at.
    part: which anchors.
  """

  def __init__(
    self,
    pairs: Pairs,
    found: candidates_lib.Found,
    scores: candidates_lib.Scores,
    part: slice,
  ):
    self._pairs, self._start = pairs, part.start
    self._rows, self._scores = found.rows[part], np.asarray(scores.candidates[part])
    self._of = pairs.of_anchors(part.start, part.stop)
    self._positives = np.asarray(scores.positives[self._of])
    is_own = pairs.are_own(part.start, self._rows)
    self._may = np.isfinite(found.cosines[part]) & ~is_own

  def _pair_texts(self) -> Iterator[tuple[int, str, str, float]]:
    """Yields each pair's anchor, counted in the block, both texts and the score."""
    pairs = self._pairs
    numbers = (pairs.anchor_of[self._of], pairs.document_of[self._of], self._positives)
    for anchor, document, score in zip(*(x.tolist() for x in numbers)):
      texts = pairs.anchors[anchor], pairs.documents[document]
      yield anchor - self._start, *texts, score

  def candidates(self) -> Iterator[list[table_writer.Cell]]:
    """Yields the rows of positives and candidates, with their scores."""
    for _, text, positive, score in self._pair_texts():
      yield [text, positive, _number(score)]
    for i, (rows, scores) in enumerate(zip(self._rows, self._scores)):
      for place in np.flatnonzero(self._may[i]):
        document = self._pairs.documents[rows[place]]
        yield [self._pairs.anchors[self._start + i], document, _number(scores[place])]

  def choose(
    self,
    guards: Guards,
    num_negatives: int,
    depth: int,
    rng: random.Random | None,
    report: Report,
  ) -> np.ndarray:
    """Returns `mining.choose`'s places for the anchors, and reports what is left out."""
    positive, may = self._pairs.least(self._start, self._positives), self._may
    unscored = ~np.isfinite(self._scores)
    if {"absolute_margin", "relative_margin"} & set(guards.bounds):
      unscored = unscored | ~np.isfinite(positive)[:, None]
    report.candidates += int(may.sum())
    if number := int(np.sum(may & unscored)):
      report.count("unscored", number)
    places, counts = choose(
      self._scores,
      may & ~unscored,
      positive,
      guards,
      num_negatives=num_negatives,
      depth=depth,
      rng=rng,
    )
    for name, number in counts.items():
      report.count(name, number)
    return places

  def rows(
    self, chosen: np.ndarray, table: Table, report: Report
  ) -> Iterator[list[table_writer.Cell]]:
    """Yields the rows of pairs that have negatives, and reports on all."""
    for anchor, text, positive, score in self._pair_texts():
      places = chosen[anchor][chosen[anchor] >= 0]
      report.pairs += 1
      report.short += len(places) < table.num_negatives
      report.without += not len(places)
      if not len(places):
        continue
      negatives = [self._pairs.documents[row] for row in self._rows[anchor][places]]
      scores = self._scores[anchor][places]
      report.negatives += len(places)
      report.positive_sum += score
      report.negative_sum += float(scores.sum())
      numbers = [_number(x) for x in (score, *scores)]
      yield from table.rows(text, positive, negatives, numbers)


def _number(score: float) -> float | None:
  """Returns a score with the digits that float32 has; None if there is none."""
  return float(str(np.float32(score))) if np.isfinite(score) else None

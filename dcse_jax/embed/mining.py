"""Hard negatives: documents that a model takes for answers, and that are none."""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools

import numpy as np

from dcse_jax.embed.ranking import search_stream
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model.inference import CHUNK
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Guards:
  """What keeps false negatives out, as sentence-transformers' mining has it.

  Attributes:
    range_min: as many of the nearest documents are skipped.
    range_max: no document further down is taken; None looks as far as is needed, ten
      times further where any bound below may leave documents out.
    max_score: the largest cosine with the anchor.
    min_score: the smallest.
    absolute_margin: the cosine is below that of the anchor with the furthest of its
      positives by this much, or more.
    relative_margin: likewise, as a share of that cosine's size.
  """

  range_min: int = 0
  range_max: int | None = None
  max_score: float | None = None
  min_score: float | None = None
  absolute_margin: float | None = None
  relative_margin: float | None = None

  def depth(self, num_negatives: int, most_positives: int) -> int:
    """Returns `range_max`, or what stands for None.

    Raises:
      UserError: no range holds as many negatives.
    """
    bounds = (self.max_score, self.absolute_margin, self.relative_margin)
    depth = self.range_max
    if depth is None:
      times = 10 if any(bound is not None for bound in bounds) else 1
      depth = self.range_min + times * num_negatives + most_positives
    if depth - self.range_min < num_negatives:
      raise UserError(
        f"range_min={self.range_min} and range_max={depth} leave no room for "
        f"num_negatives={num_negatives}: widen the range"
      )
    return depth

  def left_out(self, cosines: np.ndarray, positive: float) -> dict[str, np.ndarray]:
    """Returns which candidates each bound leaves out, by its name, [k] each.

    Args:
      cosines: those of the anchor with candidates, [k].
      positive: that with the furthest of its positives.
    """
    found = {}
    if (margin := self.absolute_margin) is not None:
      found["absolute_margin"] = cosines + np.float32(margin) > positive
    if (margin := self.relative_margin) is not None:
      found["relative_margin"] = cosines > positive - np.float32(margin) * abs(positive)
    if self.max_score is not None:
      found["max_score"] = cosines > np.float32(self.max_score)
    if self.min_score is not None:
      found["min_score"] = cosines < np.float32(self.min_score)
    return found


@dataclasses.dataclass(frozen=True)
class Mined:
  """Triplets, and what was left out.

  Attributes:
    triplets: anchor, positive and negative, in the order of the anchors.
    left_out: how many candidates each bound left out, by its name; one that several
      leave out counts for the first.
    without: how many pairs have fewer negatives than were asked for.
  """

  triplets: list[tuple[str, str, str]]
  left_out: dict[str, int]
  without: int


def mine(
  encoder: SentenceEncoder,
  anchors: Sequence[str],
  positives: Sequence[str],
  corpus: Iterable[str] = (),
  *,
  guards: Guards,
  num_negatives: int,
  sample: bool = False,
  seed: int = 0,
) -> Mined:
  """Finds hard negatives for pairs by an exact search.

  An anchor's negatives are the nearest documents, of all positives and a corpus, that
  are no positive of it, nor the anchor itself, and that the guards let pass.

  Args:
    encoder: the model; its prompts "query" and "document" stand before texts.
    anchors: one for each pair.
    positives: likewise.
    corpus: more documents.
    guards: which documents may be negatives.
    num_negatives: how many are wanted for each pair.
    sample: draws them from all that the guards let pass, in place of the nearest.
    seed: the draw's.

  Raises:
    UserError: the guards have no room for as many, or the model yields NaN.

  References:
    Moreira et al., NV-Retriever, 2024 (arXiv:2407.15831).
  """
  documents = list(dict.fromkeys(positives))
  num_positives = len(documents)
  documents = list(dict.fromkeys([*documents, *corpus]))
  place = {text: row for row, text in enumerate(documents)}
  own: dict[str, list[int]] = {}
  for anchor, positive in zip(anchors, positives, strict=True):
    rows = own.setdefault(anchor, [])
    if place[positive] not in rows:
      rows.append(place[positive])
  most = max(map(len, own.values()))
  depth = guards.depth(num_negatives, most)
  queries = encoder.encode(list(own), prompt_name="query")
  known = encoder.encode(documents[:num_positives], prompt_name="document")
  rest = encoder.encode_stream(documents[num_positives:], prompt_name="document")
  blocks = (known[i : i + CHUNK] for i in range(0, num_positives, CHUNK))
  top_k = depth + most + any(anchor in place for anchor in own)
  cosines, rows = search_stream(queries, itertools.chain(blocks, rest), top_k)
  queries, known = unit_length(queries), unit_length(known)
  rng, triplets, left_out, without = np.random.default_rng(seed), [], {}, 0
  for i, (anchor, answers) in enumerate(own.items()):
    may = np.isfinite(cosines[i]) & ~np.isin(rows[i], [*answers, place.get(anchor, -1)])
    positive = float(np.min(known[answers] @ queries[i]))
    for name, is_out in guards.left_out(cosines[i], positive).items():
      left_out[name] = left_out.get(name, 0) + int(np.sum(may & is_out))
      may &= ~is_out
    found = rows[i][may][guards.range_min : depth]
    if sample and len(found) > num_negatives:
      found = found[np.sort(rng.choice(len(found), num_negatives, replace=False))]
    found = found[:num_negatives]
    without += len(answers) * (len(found) < num_negatives)
    triplets += [
      (anchor, documents[answer], documents[row]) for answer in answers for row in found
    ]
  return Mined(triplets, left_out, without)

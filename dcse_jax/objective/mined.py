"""Hard negatives of a text's pairs, found by the model in training.

They are columns of a batch as those of a text are, but another model finds others: every
`Mining.every` steps documents and anchors are embedded anew.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import logging
from typing import Any

import numpy as np

from dcse_jax.data.tokens import TokenCache
from dcse_jax.embed import mining
from dcse_jax.embed.neighbours import ExactIndex
from dcse_jax.model.packing import count_tokens
from dcse_jax.model.vectors import unit_length

_log = logging.getLogger(__name__)

_BLOCK = 1024  # Anchors searched for at a time.

Embed = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Mining:
  """How negatives are mined.

  Attributes:
    every: after how many steps anew.
    num_negatives: how many a row has, K.
    relative_margin: see `mining.Guards`.
  """

  every: int
  num_negatives: int
  relative_margin: float


class Miner:
  """Finds negatives among the positives of a text, and perhaps other documents.

  Args:
    settings: how.
    tokens: the text, of two columns.
    corpus: more documents, of one column, or None.

  Attributes:
    settings: as given.
    about: what the negatives depend on besides the model, JSON.
  """

  def __init__(self, settings: Mining, tokens: TokenCache, corpus: TokenCache | None):
    self.settings, self._tokens, self._corpus = settings, tokens, corpus
    self.about = [tokens.key, corpus and corpus.key, dataclasses.asdict(settings)]
    anchors, positives = tokens.sentence_ids[:, :2].T.tolist()
    more = _numbers(tokens, corpus) if corpus else []
    self._pairs = pairs = mining.group(anchors, positives, more)
    number = {sentence: i for i, sentence in enumerate(pairs.anchors)}
    self._anchor_of_row = np.asarray([number[sentence] for sentence in anchors])
    self._anchor_rows = _first_rows(anchors, pairs.anchors)
    # A document is a positive's first row, or one of the corpus.
    cut = pairs.num_positives
    self._rows = np.asarray(
      [
        *_first_rows(positives, pairs.documents[:cut]),
        *_first_rows(more, pairs.documents[cut:]),
      ],
      int,
    )

  @property
  def num_documents(self) -> int:
    """How many documents there are to choose from."""
    return len(self._rows)

  @property
  def lengths(self) -> np.ndarray:
    """The number of tokens of each document, [documents]."""
    return self._num_tokens(np.arange(self.num_documents))

  def mine(self, embed: Embed) -> dict[str, np.ndarray]:
    """Finds negatives of every anchor.

    Args:
      embed: takes the token ids of sentences and returns their embeddings, [n, D].

    Returns:
      `negatives`, numbers of documents, [anchors, 2 K] int32, the nearest first, -1
      where there are fewer: spare ones take the place of those that a batch cannot have.
    """
    pairs, wanted = self._pairs, 2 * self.settings.num_negatives
    guards = mining.Guards(relative_margin=self.settings.relative_margin)
    depth = guards.depth(wanted, pairs.most)
    queries = unit_length(embed(self._sentences(self._tokens, 0, self._anchor_rows)))
    cut = pairs.num_positives
    documents = self._sentences(self._tokens, 1, self._rows[:cut])
    if self._corpus:
      documents += self._sentences(self._corpus, 0, self._rows[cut:])
    documents = unit_length(embed(documents))
    index, found, out = ExactIndex(documents), [], 0
    for start in range(0, len(queries), _BLOCK):
      block = queries[start : start + _BLOCK]
      scores, rows = index.search(block, depth + pairs.most + 1)
      part = pairs.of_anchors(start, start + len(block))
      positive = np.sum(
        queries[pairs.anchor_of[part]] * documents[pairs.document_of[part]], axis=1
      )
      places, counts = mining.choose(
        scores,
        np.isfinite(scores) & ~pairs.are_own(start, rows),
        pairs.least(start, positive),
        guards,
        num_negatives=wanted,
        depth=depth,
      )
      negatives = np.take_along_axis(rows, np.maximum(places, 0), axis=1)
      found.append(np.where(places >= 0, negatives, -1).astype(np.int32))
      out += counts["relative_margin"]
    found = np.concatenate(found)
    _log.info(
      "mined hard negatives of %d anchors among %d documents: relative_margin left out "
      "%d candidates, and %d anchors have none",
      *(len(found), self.num_documents, out, np.sum(found[:, 0] < 0)),
    )
    return {"negatives": found}

  def join(
    self,
    batch: dict[str, Any],
    negatives: np.ndarray,
    *,
    groups: int,
    host: int,
  ) -> dict[str, Any]:
    """Returns a batch with columns of negatives.

    One that is a sentence of another row's anchor is left out of the batch: it would be
    a false negative there.

    Args:
      batch: from `make_batches`, with `batch_ids`.
      negatives: from `mine`.
      groups: equal parts of the global batch, of which `num_tokens` counts the fullest.
      host: the number of this process.
    """
    batch, wanted, pairs = dict(batch), self.settings.num_negatives, self._pairs
    rows, every = batch["example_id"], batch.pop("batch_ids")
    anchors = self._anchor_of_row[every]
    answers = [pairs.document_of[pairs.of_anchors(a, a + 1)] for a in anchors]
    own = np.concatenate([*answers, pairs.itself[anchors]])
    found = negatives[anchors]
    may = (found >= 0) & ~np.isin(found, own)
    order = np.argsort(~may, axis=1, kind="stable")[:, :wanted]
    found = np.where(
      np.take_along_axis(may, order, axis=1),
      np.take_along_axis(found, order, axis=1),
      -1,
    )
    num_tokens = self._tokens.num_tokens(every) + self._num_tokens(found).sum(axis=1)
    batch["num_tokens"] = np.asarray(count_tokens(num_tokens, groups))
    mine = found[host * len(rows) : (host + 1) * len(rows)]
    ids, mask = self._gather(mine.reshape(-1))
    by_row = lambda x: x.reshape(len(rows), wanted, -1)
    for name, more in (("input_ids", ids), ("attention_mask", mask)):
      batch[name] = np.concatenate([batch[name], by_row(more)], axis=1)
    batch["has_negative"] = mine >= 0
    return batch

  def _sentences(self, cache, column, rows) -> list[np.ndarray]:
    tokens, offsets = cache.tokens[column], cache.offsets[column]
    return [tokens[offsets[row] : offsets[row + 1]] for row in rows]

  def _num_tokens(self, documents: np.ndarray) -> np.ndarray:
    """Counts the tokens of documents, 1 where there is none."""
    rows = self._rows[documents]
    length = lambda offsets, rows: offsets[rows + 1] - offsets[rows]
    is_positive = documents < self._pairs.num_positives
    found = length(self._tokens.offsets[1], np.where(is_positive, rows, 0))
    if self._corpus:
      others = length(self._corpus.offsets[0], np.where(is_positive, 0, rows))
      found = np.where(is_positive, found, others)
    return np.where(documents >= 0, found, 1)

  def _gather(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids and masks, [n, S]; the first token of any where there is none."""
    rows = self._rows[documents]
    is_positive = documents < self._pairs.num_positives
    arrays = self._tokens.gather(np.where(is_positive, rows, 0))
    ids, mask = arrays["input_ids"][:, 1], arrays["attention_mask"][:, 1]
    if self._corpus:
      arrays = self._corpus.gather(np.where(is_positive, 0, rows))
      choose = lambda ours, theirs: np.where(is_positive[:, None], ours, theirs)
      ids = choose(ids, arrays["input_ids"][:, 0])
      mask = choose(mask, arrays["attention_mask"][:, 0])
    is_first = np.arange(mask.shape[1]) == 0
    mask = mask & ((documents >= 0)[:, None] | is_first)
    return np.where(mask, ids, self._tokens.pad_token_id), mask


def _first_rows(sentences: Sequence[int], wanted: Sequence[int]) -> np.ndarray:
  """Returns the row where each wanted sentence comes first."""
  first: dict[int, int] = {}
  for row, sentence in enumerate(sentences):
    first.setdefault(sentence, row)
  return np.asarray([first[sentence] for sentence in wanted], int)


def _numbers(tokens: TokenCache, corpus: TokenCache) -> list[int]:
  """Numbers the sentences of a corpus; equal ones have the number they have in a text."""
  digest = lambda ids: hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
  known: dict[bytes, int] = {}
  for column, numbers in enumerate(tokens.sentence_ids[:, :2].T.tolist()):
    every, offsets = tokens.tokens[column], tokens.offsets[column]
    for row, number in enumerate(numbers):
      known.setdefault(digest(every[offsets[row] : offsets[row + 1]]), number)
  size = 1 + max(known.values())
  found = corpus.sentences(0, len(corpus))
  return [known.get(digest(ids), size + row) for row, ids in enumerate(found)]

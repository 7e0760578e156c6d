"""The token cache: text tokenised once into memory-mapped files.

A cache lives in a folder named by what it was made from (the sentences, the
tokenizer, max_length), so a changed text or tokenizer never meets an old cache. One
whose digests do not hold is made anew. Each column is a flat file with its sentences
end to end, and an offset for each.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import pathlib

import numpy as np

from dcse_jax.data import token_files
from dcse_jax.model.pooling import LEFT_OUT
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import files
from dcse_jax.runtime import processes

_log = logging.getLogger(__name__)

# This is part of every key: raise it when the layout or the cleaning changes.
_LAYOUT = 2


@dataclasses.dataclass(frozen=True, eq=False)  # Two caches are equal if their keys are.
class TokenCache:
  """Tokenised rows; a row's number is the example id that others refer to.

  Attributes:
    key: names the content; equal keys mean equal rows.
    tokens: for each column, all token ids end to end, memory-mapped.
    offsets: for each column, where row i begins, [rows + 1].
    sentence_ids: numbers that are equal where token ids are equal, [rows, columns]; -1
      where a row has fewer hard negatives than columns.
    source_rows: which row of the text each row is, ascending, [rows].
    max_length: tokens that a row may have, special tokens included.
    pad_token_id: fills `gather`'s rows.
    dropped: how many rows were left out because they repeat an earlier row.
    contradicting: how many rows were left out because each of their hard negatives is
      their own anchor or positive.
    scores: what the text says of each row's positive and hard negatives, [rows,
      columns - 1] float32, or None.
    left_out: for each column, how many first tokens of a sentence are not pooled; empty
      for none.
  """

  key: str
  tokens: tuple[np.ndarray, ...]
  offsets: tuple[np.ndarray, ...]
  sentence_ids: np.ndarray
  source_rows: np.ndarray
  max_length: int
  pad_token_id: int
  dropped: int
  contradicting: int
  scores: np.ndarray | None = None
  left_out: tuple[int, ...] = ()

  def __len__(self) -> int:
    return len(self.sentence_ids)

  # These are cached: each takes a pass over all rows, and every round and seed asks.
  @functools.cached_property
  def num_twins(self) -> int:
    """How many rows cannot meet another row in a batch: see `Meeting`."""
    if self.sentence_ids.shape[1] == 1:
      return 0  # Rows with equal sentences were left out.
    ids = np.sort(self.sentence_ids, axis=1)
    is_own = ids >= 0
    is_own[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    counts = np.bincount(ids[is_own])
    of_pair = np.zeros(len(counts), bool)
    of_pair[self.sentence_ids[:, :2]] = True
    cannot_meet = of_pair & (counts > 1)
    return int((cannot_meet[ids] & is_own).any(axis=1).sum())

  @functools.cached_property
  def rows_apart(self) -> np.ndarray:
    """Rows that may all meet in one batch, as many as one pass finds."""
    meeting = Meeting()
    starts = range(0, len(self), token_files.CHUNK)
    parts = (self.sentence_ids[i : i + token_files.CHUNK].tolist() for i in starts)
    rows = enumerate(itertools.chain.from_iterable(parts))
    return np.asarray([row for row, ids in rows if meeting.join(ids)])

  @property
  def max_batch_size(self) -> int:
    """The largest batch that rows can fill without a shared sentence."""
    return len(self.rows_apart) if self.num_twins else len(self)

  def num_tokens(self, rows: np.ndarray) -> np.ndarray:
    """Counts the tokens that rows [B] have in all columns together, [B]."""
    return sum(offsets[rows + 1] - offsets[rows] for offsets in self.offsets)

  def longest(self, rows: np.ndarray) -> np.ndarray:
    """Counts the tokens of the longest column of rows [B], [B]."""
    return np.max([offsets[rows + 1] - offsets[rows] for offsets in self.offsets], 0)

  def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the batch of these rows.

    Args:
      rows: example ids, [B].

    Returns:
      `input_ids` [B, C, S] int32 and `attention_mask` [B, C, S] bool, with C
      columns and S = max_length, and `example_id` [B] int32. Where tokens are not pooled
      the mask is int8 and marks them by `pooling.LEFT_OUT`. Where rows may have unlike
      numbers of hard negatives, `has_negative` [B, C - 2] bool; where there are scores,
      `scores` [B, C - 1] float32.
    """
    position = np.arange(self.max_length)
    ids, masks = [], []
    for c, (tokens, offsets) in enumerate(zip(self.tokens, self.offsets)):
      start, end = offsets[rows][:, None], offsets[rows + 1][:, None]
      index = start + position
      mask = index < end
      ids.append(np.where(mask, tokens[np.minimum(index, end - 1)], self.pad_token_id))
      if any(self.left_out):
        is_left_out = mask & (position < self.left_out[c])
        mask = np.where(is_left_out, np.int8(LEFT_OUT), mask.astype(np.int8))
      masks.append(mask)
    batch = {
      "input_ids": np.stack(ids, axis=1).astype(np.int32),
      "attention_mask": np.stack(masks, axis=1),
      "example_id": rows.astype(np.int32),
    }
    if len(self.tokens) > 3:
      batch["has_negative"] = self.sentence_ids[rows, 2:] >= 0
    if self.scores is not None:
      batch["scores"] = self.scores[rows]
    return batch

  def sentences(self, start: int, stop: int) -> list[np.ndarray]:
    """Returns the token ids of the first column's rows from start to stop - 1."""
    tokens, offsets = self.tokens[0], self.offsets[0]
    return [tokens[offsets[i] : offsets[i + 1]] for i in range(start, stop)]


class Meeting:
  """The sentences of rows that meet in a batch.

  A sentence of two rows is a false negative of one of them, unless it is a hard negative
  of both.
  """

  def __init__(self):
    self._pairs: set[int] = set()
    self._every: set[int] = set()

  def join(self, ids: Sequence[int]) -> bool:
    """Lets a row join by its sentence ids, and returns whether it may."""
    own = {number for number in ids if number >= 0}
    if not (self._every.isdisjoint(ids[:2]) and self._pairs.isdisjoint(own)):
      return False
    self._pairs.update(ids[:2])
    self._every |= own
    return True


def content_key(columns: Sequence[Sequence[str]], *facts: str | int) -> str:
  """Returns a name for what is made from sentences; it changes when any of them does.

  Args:
    columns: the sentences, none with a line feed.
    *facts: what else it is made from, such as the state of a tokenizer.
  """
  digest = hashlib.blake2b(digest_size=16)
  digest.update(json.dumps([_LAYOUT, len(columns), *facts]).encode())
  for column in columns:
    # Sentences hold no line feed, so this joins without ambiguity.
    for start in range(0, len(column), token_files.CHUNK):
      digest.update("\n".join(column[start : start + token_files.CHUNK]).encode())
      digest.update(b"\n")
    digest.update(b"\0")
  return digest.hexdigest()


def build_token_cache(
  folder: pathlib.Path,
  columns: Sequence[Sequence[str]],
  *,
  tokenize: token_files.Tokenize,
  tokenizer_state: str,
  max_length: int,
  pad_token_id: int,
  vocab_size: int,
  keep_repeats: bool = False,
  show_progress: bool = False,
) -> TokenCache:
  """Opens the cache of this content, making it first if there is none.

  If several processes share the folder, one of them makes it.

  A row whose tokens all repeat an earlier row's is left out: in one batch the two
  would be each other's false negatives. Columns after the second are hard negatives. One
  that is blank, repeats another of its row, or has the tokens of its own anchor or
  positive is none, and a row that keeps none is left out.

  Args:
    folder: holds the caches, one folder each.
    columns: cleaned sentences, columns of equal length.
    tokenize: turns sentences into token ids, at most max_length each.
    tokenizer_state: all that `tokenize` depends on, for the key.
    max_length: tokens of the longest row.
    pad_token_id: fills short rows.
    vocab_size: picks the width of the stored ids.
    keep_repeats: keeps repeated rows, for a second tokenizer of rows that are chosen
      already.
    show_progress: draws a progress bar while tokenising.

  Returns:
    The opened cache.
  """
  key = content_key(columns, tokenizer_state, max_length, pad_token_id, keep_repeats)
  path = folder / f"tokens-{key}"

  def make():
    damage = digests_lib.find_damage(path) if path.exists() else None
    # An earlier version kept rows whose negative is their own sentence.
    if path.exists() and not damage and _has_contradictions(path):
      damage = "rows are their own negatives"
    if damage:
      _log.warning("%s is damaged (%s): tokenising the text anew", path, damage)
    if damage or not path.exists():
      dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
      with files.whole(path) as beside:
        beside.mkdir()
        token_files.write(
          beside,
          columns,
          tokenize,
          dtype,
          keep_repeats=keep_repeats,
          show_progress=show_progress,
        )
        digests_lib.write(beside)

  processes.first_makes(folder, make)
  meta = json.loads((path / "meta.json").read_text())
  load = lambda name: tuple(
    np.load(path / f"{name}_{c}.npy", mmap_mode="r") for c in range(len(columns))
  )
  contradicting = meta.get("contradicting", 0)
  if contradicting:  # A cache with the same name once held these rows too.
    key = hashlib.blake2b(f"{key} apart".encode(), digest_size=16).hexdigest()
  return TokenCache(
    key=key,
    tokens=load("tokens"),
    offsets=load("offsets"),
    # These are mapped too, but plain arrays to all who use parts of them.
    sentence_ids=np.asarray(np.load(path / "sentence_ids.npy", mmap_mode="r")),
    source_rows=np.asarray(np.load(path / "source_rows.npy", mmap_mode="r")),
    max_length=max_length,
    pad_token_id=pad_token_id,
    dropped=meta["dropped"],
    contradicting=contradicting,
  )


def _has_contradictions(path: pathlib.Path) -> bool:
  ids = np.load(path / "sentence_ids.npy")
  return bool((ids[:, 2:] == ids[:, :2]).any()) if ids.shape[1] == 3 else False

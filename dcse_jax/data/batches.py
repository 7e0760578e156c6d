"""The batches of training in their order: shuffled, divided by host, resumable.

grain shuffles row numbers and cuts them into batches before it repeats, so that
no batch spans two epochs and holds a sentence twice; whole batches are then
gathered from the token cache. Batches may have rows of like length.
"""

from collections.abc import Sequence
import functools
from typing import Any, Protocol

import grain
import numpy as np

from dcse_jax.data.tokens import Meeting
from dcse_jax.data.tokens import TokenCache
from dcse_jax.model.packing import count_tokens


class _KeepTwinsApart(grain.transforms.RandomMap):
  """A transform that replaces a row that may not meet an earlier one: see `Meeting`.

  Dropping one of the two would lose data; instead another row takes its place in this
  batch, and the row has its turn in other epochs.
  """

  def __init__(self, sentence_ids: np.ndarray, apart: np.ndarray):
    self._sentence_ids, self._apart = sentence_ids, apart

  def random_map(self, rows, rng: np.random.Generator):
    sentences = self._sentence_ids
    meeting = Meeting()
    kept = []
    waiting = list(rows[::-1])
    for _ in range(2 * len(rows) + 1000):
      if not waiting:
        return np.asarray(kept, dtype=rows.dtype)
      row = waiting.pop()
      if meeting.join(sentences[row].tolist()):
        kept.append(row)
      else:
        waiting.insert(0, int(rng.integers(len(sentences))))
    # Nearly all rows are twins: rows that may all meet fill the batch.
    return rng.choice(self._apart, len(rows), replace=False).astype(rows.dtype)


class _Buckets(grain.MapDataset):
  """Batches of rows of like length, in random order.

  Shuffled rows are taken some batches at a time and sorted; the rows of a batch, which
  devices and microbatches divide, and the batches are then shuffled again. All follows
  from the seed and a batch's number, so a position is still one number.

  Args:
    order: row numbers, with another order in each epoch.
    longest: the tokens of each row's longest column, [rows].
    batch_size: rows of a batch.
    together: how many batches are sorted together.
    seed: draws what is shuffled again.
  """

  def __init__(self, order, longest, *, batch_size: int, together: int, seed: int):
    super().__init__(order)
    self._longest, self._seed = longest, seed
    self._batch_size, self._together = batch_size, together
    # Batches are asked for one after the other, and each would sort all anew.
    self._sorted = functools.lru_cache(maxsize=4)(self._sort)

  def __len__(self) -> int:
    return len(self._parent) // self._batch_size

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    epoch, place = divmod(index, len(self))
    part, number = divmod(place, self._together)
    return self._sorted(epoch, part)[number]

  def _sort(self, epoch: int, part: int) -> np.ndarray:
    """Returns the batches that are sorted together, [batches, batch_size]."""
    first = part * self._together
    number = min(self._together, len(self) - first)
    start = epoch * len(self._parent) + first * self._batch_size
    places = range(start, start + number * self._batch_size)
    rows = np.asarray([self._parent[place] for place in places])
    rows = rows[np.argsort(self._longest[rows], kind="stable")]
    rng = np.random.default_rng([self._seed, epoch, part])
    return rng.permutation(rng.permuted(rows.reshape(number, -1), axis=1))


class Source(Protocol):
  """An object that gives parts of a batch by example id."""

  def gather(self, rows: np.ndarray) -> dict[str, Any]:
    """Returns named arrays, or trees of arrays, with a row for each id in rows [B]."""


class _Gather(grain.transforms.Map):
  def __init__(self, cache, others, groups, host, num_hosts, with_ids):
    self._cache, self._sources, self._groups = cache, (cache, *others), groups
    self._host, self._num_hosts, self._with_ids = host, num_hosts, with_ids

  def map(self, rows):
    share = len(rows) // self._num_hosts
    mine = rows[self._host * share : (self._host + 1) * share]
    # They are counted over the whole batch: all processes must choose one packing.
    num_tokens = count_tokens(self._cache.num_tokens(rows), self._groups)
    longest = self._cache.longest(rows).max()
    batch = {"num_tokens": np.asarray(num_tokens), "longest": np.asarray(longest)}
    for source in self._sources:
      batch.update(source.gather(mine))
    if self._with_ids:
      batch["batch_ids"] = rows.astype(np.int32)
    return batch


def make_batches(
  cache: TokenCache,
  *,
  batch_size: int,
  seed: int,
  others: Sequence[Source] = (),
  groups: int = 1,
  bucket_batches: int = 0,
  host: int = 0,
  num_hosts: int = 1,
  with_ids: bool = False,
) -> grain.DatasetIterator:
  """Makes an endless iterator of training batches, with a new shuffle each epoch.

  Args:
    cache: the tokenised corpus; its `max_batch_size` is batch_size or more.
    batch_size: that of the global batch, a multiple of num_hosts.
    seed: draws the order.
    others: what else goes into a batch, by the example ids of the cache.
    groups: equal parts of the global batch; `num_tokens` counts the fullest one.
    bucket_batches: the rows of as many batches are sorted by length together; 0 lets
      any lengths meet.
    host: which host this is.
    num_hosts: each host gathers its own part of the same global batch.
    with_ids: whether a batch has `batch_ids`, the example ids of the global batch.

  Returns:
    An iterator whose `get_state` and `set_state` resume it exactly. Its batches have
    batch_size / num_hosts rows of what `TokenCache.gather` and the others give, and
    two scalars of the global batch: `num_tokens`, and the tokens of the `longest`
    sentence.
  """
  order = grain.MapDataset.range(len(cache)).seed(seed).shuffle()
  if bucket_batches:
    order = _Buckets(
      order,
      cache.longest(np.arange(len(cache))),
      batch_size=batch_size,
      together=bucket_batches,
      seed=seed,
    )
  else:
    order = order.batch(batch_size, drop_remainder=True)
  if cache.num_twins:
    order = order.random_map(_KeepTwinsApart(cache.sentence_ids, cache.rows_apart))
  batches = order.repeat().map(
    _Gather(cache, others, groups, host, num_hosts, with_ids)
  )
  # Two threads keep ahead of any step; the only work is to gather each batch.
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  return iter(batches.to_iter_dataset(options))

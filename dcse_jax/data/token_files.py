"""Writes the files of a token cache, whatever the number of rows."""

import array
from collections.abc import Callable, Sequence
import contextlib
import itertools
import json
import pathlib
import sys

import numpy as np
import tqdm

from dcse_jax.data import duplicates

# Rows that are Python objects at a time.
CHUNK = 10_000
# The id of a hard negative that a row does not have.
NONE = -1

Tokenize = Callable[[Sequence[str]], list[list[int]]]


class _GrowingArray:
  """An .npy file [n] that is written part by part, to the bytes that numpy.save writes.

  Args:
    path: the file to make.
    dtype: the array's.
  """

  def __init__(self, path: pathlib.Path, dtype: type):
    self._dtype = np.dtype(dtype)
    self._length = 0
    self._file = path.open("wb")
    self._write_header()

  def __enter__(self) -> "_GrowingArray":
    return self

  def __exit__(self, *_) -> None:
    with self._file:
      self._file.seek(0)
      self._write_header()  # It has room for any number.

  def append(self, values: np.ndarray) -> None:
    """Writes values after those that are there."""
    self._length += len(values)
    self._file.write(np.ascontiguousarray(values, self._dtype).data)

  def _write_header(self) -> None:
    about = {"fortran_order": False, "shape": (self._length,)}
    about["descr"] = np.lib.format.dtype_to_descr(self._dtype)
    np.lib.format.write_array_header_1_0(self._file, about)


def write(
  path: pathlib.Path,
  columns: Sequence[Sequence[str]],
  tokenize: Tokenize,
  dtype: type,
  *,
  keep_repeats: bool,
  show_progress: bool,
) -> None:
  """Tokenises columns chunk by chunk, and writes a cache's files into a folder.

  All rows are tokenised into files first. Then digests say which are left out, and the
  others move together. Memory has some 40 bytes for each sentence.

  Args:
    path: the folder, which is there.
    columns: as in `tokens.build_token_cache`.
    tokenize: likewise.
    dtype: that of stored ids.
    keep_repeats: as there.
    show_progress: as there.
  """
  digests, is_there, lengths = _tokenize_all(
    path, columns, tokenize, dtype, show_progress
  )
  ids, kept, meta = _number(digests, is_there, keep_repeats)
  for c, each in enumerate(lengths):
    if not kept.all():
      _keep(path / f"tokens_{c}.npy", dtype, each, kept)
      each = each[kept]
    offsets = np.zeros(len(each) + 1, np.int64)
    np.cumsum(each, out=offsets[1:])
    np.save(path / f"offsets_{c}.npy", offsets)
  if not kept.all():
    ids = ids[kept]
  np.save(path / "sentence_ids.npy", ids)
  np.save(path / "source_rows.npy", np.flatnonzero(kept))
  (path / "meta.json").write_text(json.dumps(meta))


def _tokenize_all(
  path: pathlib.Path,
  columns: Sequence[Sequence[str]],
  tokenize: Tokenize,
  dtype: type,
  show_progress: bool,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
  """Writes the tokens of every row.

  Returns:
    A digest of each sentence, [rows, C]; whether the row has it, [rows, C]; and for each
    column the number of its tokens, [rows].
  """
  digests, is_there = array.array("Q"), bytearray()
  lengths = [array.array("i") for _ in columns]
  bar = tqdm.tqdm(
    total=len(columns[0]),
    desc="tokenising",
    unit="row",
    # A log file is easier to read without a bar.
    disable=not show_progress or not sys.stderr.isatty(),
  )
  with bar, contextlib.ExitStack() as stack:
    tokens = [
      stack.enter_context(_GrowingArray(path / f"tokens_{c}.npy", dtype))
      for c in range(len(columns))
    ]
    for start in range(0, len(columns[0]), CHUNK):
      parts = [column[start : start + CHUNK] for column in columns]
      found = []
      for c, part in enumerate(parts):
        ids = [np.asarray(each, dtype) for each in tokenize(part)]
        tokens[c].append(np.concatenate(ids))
        lengths[c].extend(map(len, ids))
        found.append([duplicates.digest(each.tobytes()) for each in ids])
      digests.extend(itertools.chain.from_iterable(zip(*found)))
      is_there.extend(bool(each) for row in zip(*parts) for each in row)
      bar.update(len(parts[0]))
  shape = (-1, len(columns))
  return (
    np.frombuffer(digests, np.uint64).reshape(shape),
    np.frombuffer(is_there, bool).reshape(shape),
    [np.frombuffer(each, np.int32) for each in lengths],
  )


def _number(
  digests: np.ndarray, is_there: np.ndarray, keep_repeats: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
  """Numbers sentences, and finds the rows to keep.

  Args:
    digests: those of each row's sentences, [rows, C].
    is_there: which of these the row has, [rows, C].
    keep_repeats: whether to keep rows that repeat an earlier one.

  Returns:
    The numbers, [rows, C], -1 for hard negatives that are none; whether each row stays,
    [rows]; and how many do not, by why.
  """
  if is_there.all():
    ids = duplicates.number(digests.reshape(-1)).reshape(digests.shape)
  else:
    ids = np.full(digests.shape, NONE)
    ids[is_there] = duplicates.number(digests[is_there])
  for c in range(2, ids.shape[1]):
    # A negative that is another sentence of its row is struck out.
    ids[(ids[:, c : c + 1] == ids[:, :c]).any(axis=1), c] = NONE
  contradicts = np.zeros(len(ids), bool)
  if ids.shape[1] > 2:
    contradicts = (ids[:, 2:] == NONE).all(axis=1)
  repeats = np.zeros(len(ids), bool)
  if not keep_repeats:
    rows = ids[:, 0]
    if ids.shape[1] > 1:
      rows = duplicates.number(_mixed(digests, ids))
    repeats = ~duplicates.are_first(rows) & ~contradicts
  meta = {"dropped": int(repeats.sum()), "contradicting": int(contradicts.sum())}
  return ids, ~(repeats | contradicts), meta


def _mixed(digests: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """Returns one digest for each row of digests, [rows, C] to [rows]."""
  mixed = np.zeros(len(digests), np.uint64)
  for c in range(digests.shape[1]):
    # An odd factor loses nothing; what is too large for 64 bits falls away.
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed += np.where(ids[:, c] == NONE, np.uint64(0), digests[:, c])
  return mixed


def _keep(
  path: pathlib.Path, dtype: type, lengths: np.ndarray, kept: np.ndarray
) -> None:
  """Leaves out the tokens of some rows."""
  new = path.with_suffix(".tmp")
  with path.open("rb") as file, _GrowingArray(new, dtype) as shorter:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    for start in range(0, len(kept), CHUNK):
      part = slice(start, start + CHUNK)
      tokens = np.fromfile(file, dtype, lengths[part].sum())
      shorter.append(tokens[np.repeat(kept[part], lengths[part])])
  new.replace(path)

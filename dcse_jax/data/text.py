"""Reads the user's text, from files or from TFDS, into columns of sentences."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import os
from typing import Any

import numpy as np

from dcse_jax.data import arrow
from dcse_jax.data import decoding
from dcse_jax.data import hf
from dcse_jax.data import tables
from dcse_jax.data import tfds

# How many characters of a text are kept: more than an encoder of 8,192 tokens reads.
# A tokenizer takes up to 600 bytes for each, also past the last token that is read.
MAX_CHARACTERS = 100_000


@dataclasses.dataclass(frozen=True)
class Text:
  """Sentences in columns of equal length.

  Attributes:
    columns: one column of sentences; or anchors and positives; or anchors,
      positives and hard negatives. Row i of one pairs with row i of another.
    empty_rows: rows left out because a column was blank after cleaning.
    cut_rows: rows with a column that was longer than `MAX_CHARACTERS`.
    left_out: which rows of the source were left out, counted from 0.
  """

  columns: tuple[list[str], ...]
  empty_rows: int
  cut_rows: int = 0
  left_out: tuple[int, ...] = dataclasses.field(default=(), compare=False)

  @functools.cached_property
  def source_rows(self) -> np.ndarray:
    """The row of the source of each row, counted from 0 without a header, [rows]."""
    every = np.arange(len(self.columns[0]) + len(self.left_out))
    return np.delete(every, np.asarray(self.left_out, int))


def read_text(source: str, columns: Sequence[str] = ()) -> Text:
  """Reads and cleans every row of a file or of a prepared TFDS split.

  Runs of white space and NUL become one space and the ends are stripped; then
  everything past the first `MAX_CHARACTERS` characters is cut. Nothing else in a
  sentence changes. A row with a blank column is left out. Only a line feed ends a line.

  Args:
    source: a path that ends in .txt, .csv, .tsv or .jsonl, optionally with .gz, or in
      .parquet or .arrow; a folder that `datasets` saved; or
      `hf:NAME:SPLIT:COLUMN[,COLUMN...]` or `tfds:NAME:SPLIT:FEATURE[,FEATURE...]`.
    columns: the 1 to 3 columns to read from a table, in the order anchor, positive,
      hard negative; empty for .txt, hf: and tfds:.

  Returns:
    The cleaned rows, in the order of the source.

  Raises:
    UserError: the source cannot be read, is not UTF-8 or not what its suffix says
      (it names the line), or holds no sentence.
  """
  return _collect(source, iterate_rows(source, columns))


def iterate_rows(source: str, columns: Sequence[str] = ()) -> Iterator[list[str]]:
  """Yields the rows of `read_text` one by one, blank ones and long cells too.

  Args:
    source: see `read_text`.
    columns: see `read_text`.

  Yields:
    The cleaned cells of a row, uncut; an empty list for an empty line of a table.

  Raises:
    UserError: see `read_text`; a source that holds nothing is no error here.
  """
  reader = _reader(source)
  if reader.columns:
    if columns:
      raise decoding.user_error(
        f"{source}: columns {decoding.names(columns)} named, but only "
        f"{', '.join(_TABLES)} files have columns to choose from; name none"
      )
    columns = reader.columns(source)
  if not 1 <= len(columns) <= 3 or len(set(columns)) < len(columns):
    raise decoding.user_error(
      f"{source}: columns named: {decoding.names(columns)}; name 1 to 3 different "
      "columns: anchor, positive, hard negative"
    )
  return (list(map(_clean, row)) for row in reader.rows(source, columns))


def num_columns(source: str, columns: Sequence[str]) -> int:
  """Returns how many columns `read_text` would give, without reading anything."""
  if source.startswith(_TFDS):
    columns = tfds.columns(source)
  elif source.startswith(hf.PREFIX):
    columns = hf.columns(source)
  return max(1, len(columns))


def cut(cell: str) -> str:
  """Cuts a cleaned cell to what is kept."""
  return cell[:MAX_CHARACTERS].rstrip()


def _collect(source: str, rows: Iterable[Sequence[str]]) -> Text:
  columns, left_out, cut_rows = None, [], 0
  for number, cells in enumerate(rows):
    if not cells or not all(cells):
      left_out.append(number)
      continue
    cut_rows += any(len(cell) > MAX_CHARACTERS for cell in cells)
    columns = columns or tuple([] for _ in cells)
    for column, cell in zip(columns, cells, strict=True):
      column.append(cut(cell))
  if not columns:
    raise decoding.user_error(
      f"{source}: holds no sentence ({len(left_out)} blank rows); give a "
      "source with a row whose columns all hold text"
    )
  return Text(columns, len(left_out), cut_rows, tuple(left_out))


def _clean(cell: str) -> str:
  # This many words with spaces between are longer than what is kept. The rest of a
  # huge line is never split, which would take many times its size.
  words = cell.replace("\0", " ").split(maxsplit=MAX_CHARACTERS)
  return " ".join(words[:MAX_CHARACTERS])


def _plain_rows(
  source: str, columns: Sequence[str], types: tuple[type, ...] = (str,)
) -> Iterator[Sequence[str]]:
  del columns, types
  return ((line,) for line in decoding.lines(source))


@dataclasses.dataclass(frozen=True)
class _Reader:
  """The reader of one kind of source.

  Attributes:
    rows: yields the cells of each row, from the source, its columns and the types that
      a cell may have; [] for a blank row.
    columns: returns the columns of a source that has none to choose from; None where
      the user names them.
  """

  rows: Callable[..., Iterator[Sequence[Any]]]
  columns: Callable[[str], Sequence[str]] | None = None


_TFDS = "tfds:"
# The readers of files by suffix; a new kind of file is one more line.
_FILES = {
  ".txt": _Reader(_plain_rows, columns=lambda source: ("sentence",)),
  ".csv": _Reader(tables.csv_rows),
  ".tsv": _Reader(tables.tsv_rows),
  ".jsonl": _Reader(tables.jsonl_rows),
  ".parquet": _Reader(arrow.rows),
  ".arrow": _Reader(arrow.rows),
}
_TABLES = [suffix for suffix, reader in _FILES.items() if not reader.columns]


def _reader(source: str) -> _Reader:
  if source.startswith(_TFDS):
    return _Reader(tfds.rows, columns=tfds.columns)
  if source.startswith(hf.PREFIX):
    return _Reader(hf.rows, columns=hf.columns)
  if hf.is_saved(source):
    return _Reader(hf.saved_rows)
  decoding.check_file(source)
  suffix = os.path.splitext(source.lower().removesuffix(".gz"))[1]
  if suffix not in _FILES:
    raise decoding.user_error(
      f"{source}: unknown kind of file; its name must end in {', '.join(_FILES)}; text "
      "may be followed by .gz"
    )
  return _FILES[suffix]


def first_cells(source: str, columns: Sequence[str] = ()) -> Iterator[str]:
  """Yields the first column's sentence of every row, "" for a row that is left out."""
  for cells in iterate_rows(source, columns):
    yield cut(cells[0]) if cells and all(cells) else ""


def measure(source: str, columns: Sequence[str] = ()) -> tuple[int, str]:
  """Counts the rows of a source, and digests their first column.

  Args:
    source: as in `read_text`.
    columns: as in `read_text`.
  """
  number, digest = 0, hashlib.blake2b(digest_size=16)
  for cell in first_cells(source, columns):
    digest.update(f"{cell}\n".encode())
    number += 1
  if not number:
    raise decoding.user_error(f"{source}: is empty; give a source with a row of text")
  return number, digest.hexdigest()


def read_ids(source: str, column: str) -> list[str]:
  """Reads the id of each row of a source, blank rows included.

  Args:
    source: see `read_text`.
    column: the table's column of ids; without columns to choose from, a row's id is its
      number from 0.

  Raises:
    UserError: the source cannot be read, or has no such column.
  """
  reader = _reader(source)
  if reader.columns:
    return [str(number) for number, _ in enumerate(iterate_rows(source))]
  rows = reader.rows(source, (column,), (str, int))  # An id may be a number.
  return [str(row[0]).strip() if row else "" for row in rows]

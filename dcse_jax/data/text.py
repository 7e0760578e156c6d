"""Reads the user's text, from files or from TFDS, into columns of sentences."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import itertools
import os
from typing import Any

import numpy as np

from dcse_jax.data import arrow
from dcse_jax.data import candidates
from dcse_jax.data import decoding
from dcse_jax.data import tables
from dcse_jax.data import tfds

# How many characters of a text are kept: more than an encoder of 8,192 tokens reads.
# A tokenizer takes up to 600 bytes for each, also past the last token that is read.
MAX_CHARACTERS = 100_000


@dataclasses.dataclass(frozen=True)
class Text:
  """Sentences in columns of equal length.

  Attributes:
    columns: one column of sentences; or anchors and positives; or these and one or more
      of hard negatives, "" where a row has fewer. Row i of one goes with row i of
      another.
    empty_rows: rows left out because a sentence, or every hard negative, was blank after
      cleaning.
    cut_rows: rows with a column that was longer than `MAX_CHARACTERS`.
    left_out: which rows of the source were left out, counted from 0.
    scores: what the text says of each row's candidates, [rows, columns - 1] float32: its
      positive and its hard negatives, 0 where there is none; None if it says nothing.
  """

  columns: tuple[list[str], ...]
  empty_rows: int
  cut_rows: int = 0
  left_out: tuple[int, ...] = dataclasses.field(default=(), compare=False)
  scores: np.ndarray | None = dataclasses.field(default=None, compare=False)

  @functools.cached_property
  def source_rows(self) -> np.ndarray:
    """The row of the source of each row, counted from 0 without a header, [rows]."""
    every = np.arange(len(self.columns[0]) + len(self.left_out))
    return np.delete(every, np.asarray(self.left_out, int))


def read_text(
  source: str, columns: Sequence[str] = (), score_columns: Sequence[str] = ()
) -> Text:
  """Reads and cleans every row of a file or of a prepared TFDS split.

  Runs of white space and NUL become one space and the ends are stripped; then
  everything past the first `MAX_CHARACTERS` characters is cut. Nothing else in a
  sentence changes. A row is left out if a sentence in it, or all of its hard negatives,
  are blank. Only a line feed ends a line.

  Args:
    source: a path that ends in .txt, .csv, .tsv or .jsonl, optionally with .gz, or in
      .parquet or .arrow; or `tfds:NAME:SPLIT:FEATURE[,FEATURE...]`.
    columns: those to read from a table, in the order anchor, positive, hard negatives;
      one of hard negatives may hold lists. Empty for .txt and TFDS.
    score_columns: those of the candidates' scores, one for the positive and one for each
      hard negative, or columns of lists.

  Returns:
    The cleaned rows, in the order of the source.

  Raises:
    UserError: the source cannot be read, is not UTF-8 or not what its suffix says
      (it names the line), holds no sentence, or has not as many scores as candidates.
  """
  return _collect(source, _rows(source, columns, score_columns), bool(score_columns))


@dataclasses.dataclass(frozen=True)
class _Row:
  """A row of a source.

  Attributes:
    cells: cleaned, uncut, without blank hard negatives; none for an empty line of a table.
    scores: those of all cells but the first, or none.
    is_whole: whether it has what a row needs: anchor, positive, and a hard negative where
      there are columns of these.
  """

  cells: list[str]
  scores: list[float]
  is_whole: bool


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
  return (row.cells for row in _rows(source, columns))


def _rows(
  source: str, columns: Sequence[str], score_columns: Sequence[str] = ()
) -> Iterator[_Row]:
  reader = _reader(source)
  if reader.columns:
    if columns or score_columns:
      raise decoding.user_error(
        f"{source}: columns {decoding.names([*columns, *score_columns])} named, but only "
        f"{', '.join(_TABLES)} files have columns to choose from; name none"
      )
    columns = reader.columns(source)
  if not columns or len({*columns, *score_columns}) < len(columns) + len(score_columns):
    raise decoding.user_error(
      f"{source}: columns named: {decoding.names([*columns, *score_columns])}; name "
      "different ones: anchor, positive, hard negatives, and those of scores apart"
    )
  # A score is of a positive or a negative.
  if score_columns and len(columns) < 2:
    raise decoding.user_error(
      f"{source}: score_columns {decoding.names(score_columns)} say how an anchor and "
      "its candidates match; name columns of anchors and positives"
    )
  return _read_rows(reader, source, columns, score_columns)


def _read_rows(reader, source, columns, score_columns) -> Iterator[_Row]:
  types = [(str,)] * 2 + [candidates.NEGATIVE] * (len(columns) - 2)
  types = types[: len(columns)] + [candidates.SCORE] * len(score_columns)
  blank = set(columns[2:])
  number = -1
  for number, row in enumerate(reader.rows(source, [*columns, *score_columns], types)):
    if not row:
      yield _Row([], [], False)
      continue
    text, scores = row[: len(columns)], row[len(columns) :]
    blank = {name for name, cell in zip(columns, text) if name in blank and not cell}
    cells = list(map(_clean, text[:2]))
    negatives = list(map(_clean, candidates.negatives(source, number, text[2:])))
    is_whole = all(cells) and (len(columns) < 3 or any(negatives))
    if scores and is_whole:
      matched = [cells[1], *negatives]
      scores = candidates.scores(source, number, scores, matched)
      scores = [score for score, cell in zip(scores, matched) if cell]
    yield _Row(cells + [cell for cell in negatives if cell], list(scores), is_whole)
  if blank and number >= 0:
    raise decoding.user_error(
      f"{source}: column {min(blank)!r} is blank in every row; name other columns"
    )


def num_columns(source: str, columns: Sequence[str]) -> int:
  """Returns how many columns `read_text` would give.

  It reads the source only where that decides, which may have lists of hard negatives; a
  source that is not there is taken to have none.
  """
  if source.startswith(_TFDS):
    columns = tfds.columns(source)
  if len(columns) > 2 and os.path.exists(source):
    return max((len(row.cells) for row in _rows(source, columns)), default=3)
  return max(1, len(columns))


def cut(cell: str) -> str:
  """Cuts a cleaned cell to what is kept."""
  return cell[:MAX_CHARACTERS].rstrip()


def _collect(source: str, rows: Iterable[_Row], has_scores: bool) -> Text:
  columns: list[list[str]] = []
  scores: list[list[float]] = []
  left_out, cut_rows = [], 0
  for number, row in enumerate(rows):
    if not row.is_whole:
      left_out.append(number)
      continue
    cut_rows += any(len(cell) > MAX_CHARACTERS for cell in row.cells)
    # A row may have more hard negatives than any before it.
    for _ in range(len(columns), len(row.cells)):
      columns.append([""] * (number - len(left_out)))
    for column, cell in itertools.zip_longest(columns, row.cells, fillvalue=""):
      column.append(cut(cell))
    scores.append(row.scores)
  if not columns:
    raise decoding.user_error(
      f"{source}: holds no sentence ({len(left_out)} blank rows); give a "
      "source with a row whose columns all hold text"
    )
  return Text(
    tuple(columns),
    len(left_out),
    cut_rows,
    tuple(left_out),
    _padded(scores, len(columns) - 1) if has_scores else None,
  )


def _padded(rows: list[list[float]], width: int) -> np.ndarray:
  """Returns rows of unlike lengths, filled up by zeros."""
  padded = np.zeros((len(rows), width), np.float32)
  for row, values in zip(padded, rows):
    row[: len(values)] = values
  return padded


def _clean(cell: str) -> str:
  # This many words with spaces between are longer than what is kept. The rest of a
  # huge line is never split, which would take many times its size.
  words = cell.replace("\0", " ").split(maxsplit=MAX_CHARACTERS)
  return " ".join(words[:MAX_CHARACTERS])


def _plain_rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[str]]:
  del columns, types
  return ((line,) for line in decoding.lines(source))


@dataclasses.dataclass(frozen=True)
class _Reader:
  """The reader of one kind of source.

  Attributes:
    rows: yields the cells of each row, from the source, its columns and, for each, the
      types that a cell may have; [] for a blank row.
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
  for row in _rows(source, columns):
    yield cut(row.cells[0]) if row.is_whole else ""


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
  rows = reader.rows(source, (column,), [(str, int)])  # An id may be a number.
  return [str(row[0]).strip() if row else "" for row in rows]

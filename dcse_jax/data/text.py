"""Reads the user's text, from files or from sets, into columns of sentences."""

import array
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from dcse_jax.data import candidates
from dcse_jax.data import decoding
from dcse_jax.data import readers
from dcse_jax.data import sources
from dcse_jax.data import splitting
from dcse_jax.data.stored import StoredColumn
from dcse_jax.runtime.errors import UserError

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
    undrawn_rows: rows that a source's share left out.
    left_out: which rows of the sources, laid end to end, were left out, counted from 0.
    scores: what the text says of each row's candidates, [rows, columns - 1] float32: its
      positive and its hard negatives, 0 where there is none; None if it says nothing.
  """

  columns: tuple[Sequence[str], ...]
  empty_rows: int
  cut_rows: int = 0
  undrawn_rows: int = 0
  left_out: Sequence[int] = dataclasses.field(default=(), compare=False)
  scores: np.ndarray | None = dataclasses.field(default=None, compare=False)

  @functools.cached_property
  def source_rows(self) -> np.ndarray:
    """The row of the source of each row, counted from 0 without a header, [rows]."""
    every = np.arange(len(self.columns[0]) + len(self.left_out))
    return np.delete(every, np.asarray(self.left_out, int))


def read_text(
  source: sources.Names,
  columns: Sequence[str] = (),
  score_columns: Sequence[str] = (),
  *,
  split: str = "",
  store: pathlib.Path | None = None,
) -> Text:
  """Reads and cleans every row of a file, of several, or of a set.

  Runs of white space and NUL become one space and the ends are stripped; then
  everything past the first `MAX_CHARACTERS` characters is cut. Nothing else in a
  sentence changes. A row is left out if a sentence in it, or all of its hard negatives,
  are blank. Only a line feed ends a line.

  Args:
    source: a path that ends in .txt, .csv, .tsv or .jsonl, optionally with .gz, or in
      .parquet or .arrow; a folder that `datasets` saved, or one of Parquet parts, whose
      column is "text" if none is named; or
      `hf:NAME:SPLIT:COLUMN[,COLUMN...]` or `tfds:NAME:SPLIT:FEATURE[,FEATURE...]`.
      Or several of these, patterns, and shares: see `sources.expand`.
    columns: those to read from tables, in the order anchor, positive, hard negatives;
      one of hard negatives may hold lists. Empty if none of the sources is a table.
    score_columns: those of the candidates' scores, one for the positive and one for each
      hard negative, or columns of lists.
    split: makes each sentence of a document a row: see `splitting.make`.
    store: the folder of the disk that keeps the sentences, for a text beyond memory.
      None keeps them in memory.

  Returns:
    The cleaned rows, in the order of the sources.

  Raises:
    UserError: a source cannot be read, is not UTF-8 or not what its suffix says
      (it names the line), does not fit the others, or has not as many scores as
      candidates; or there is no sentence.
  """
  new = list if store is None else functools.partial(StoredColumn, store)
  opened = _open(source, columns, score_columns, split)
  return _collect(source, opened, bool(score_columns), new)


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


def _open(
  source: sources.Names,
  columns: Sequence[str],
  score_columns: Sequence[str] = (),
  split: str = "",
) -> list[tuple[sources.Source, Iterator[_Row]]]:
  """Returns the rows of each source, once all of them are known to fit together.

  The arguments are those of `read_text`.
  """
  splitter = splitting.make(split) if split else None
  every = [(each, readers.find(each.name)) for each in sources.expand(source)]
  some_tables = any(not reader.columns for _, reader in every)
  opened, widths = [], {}
  for each, reader in every:
    named, scores = columns or reader.default, score_columns
    if reader.columns:
      # Beside tables, a plain text has no part in the names of their columns.
      if (columns and not some_tables) or score_columns:
        raise decoding.user_error(
          f"{each.name}: columns {decoding.names([*columns, *score_columns])} named, but "
          f"only {', '.join(readers.TABLES)} files have columns to choose from; name none"
        )
      named = reader.columns(each.name)
    _check_columns(each.name, named, scores)
    if splitter and len(named) > 1:
      raise decoding.user_error(
        f"{each.name}: split={split!r} makes rows of documents, and there are "
        f"{len(named)} columns; name one"
      )
    widths.setdefault(len(named), each.name)
    if splitter:
      rows = _split_rows(reader, each.name, named, splitter)
    else:
      rows = _read_rows(reader, each.name, named, scores)
    opened.append((each, rows))
  if len(widths) > 1:
    (one, first), (other, second) = list(widths.items())[:2]
    raise decoding.user_error(
      f"{first} has {one} columns of text and {second} {other}; give them as many"
    )
  return opened


def _check_columns(
  source: str, columns: Sequence[str], score_columns: Sequence[str]
) -> None:
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


def _split_rows(reader, source, columns, splitter) -> Iterator[_Row]:
  for row in reader.rows(source, columns):
    sentences = list(map(clean, splitter(row[0]))) if row else []
    # A document without a sentence counts as one blank row.
    for cells in [[sentence] for sentence in sentences] or [[]]:
      yield _Row(cells, [], bool(cells))


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
    cells = list(map(clean, text[:2]))
    negatives = list(map(clean, candidates.negatives(source, number, text[2:])))
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


def num_columns(source: sources.Names, columns: Sequence[str]) -> int:
  """Returns how many columns `read_text` would give.

  It reads the sources only where that decides, which may have lists of hard negatives;
  one that is not there is taken to have none.
  """
  for name in [source] if isinstance(source, str) else source:
    if name.startswith(readers.PREFIXES):
      (each,) = sources.expand(name)
      columns = readers.find(each.name).columns(each.name)
  if len(columns) > 2 and source:
    with contextlib.suppress(UserError):
      every = sources.expand(source)
      if all(os.path.exists(each.name) for each in every):
        rows = itertools.chain.from_iterable(rows for _, rows in _open(source, columns))
        return max((len(row.cells) for row in rows), default=3)
  return max(1, len(columns))


def cut(cell: str) -> str:
  """Cuts a cleaned cell to what is kept."""
  return cell[:MAX_CHARACTERS].rstrip()


def _collect(
  source: sources.Names,
  opened: Iterable[tuple[sources.Source, Iterator[_Row]]],
  has_scores: bool,
  new: Callable[[], Any],
) -> Text:
  """Collects rows in columns that `new` makes."""
  columns, scores, widths = [], array.array("f"), array.array("i")
  left_out, blank, cut_rows = array.array("q"), 0, 0
  numbers = itertools.count()
  for place, (part, rows) in enumerate(opened):
    for row, is_drawn, number in zip(rows, part.drawn(place), numbers):
      if not is_drawn or not row.is_whole:
        left_out.append(number)
        blank += is_drawn
        continue
      cut_rows += any(len(cell) > MAX_CHARACTERS for cell in row.cells)
      # A row may have more hard negatives than any before it.
      for _ in range(len(columns), len(row.cells)):
        columns.append(new())
        for _ in range(number - len(left_out)):
          columns[-1].append("")
      for column, cell in itertools.zip_longest(columns, row.cells, fillvalue=""):
        column.append(cut(cell))
      scores.extend(row.scores)
      widths.append(len(row.scores))
  if not columns:
    raise decoding.user_error(
      f"{source}: holds no sentence ({len(left_out)} blank rows); give a "
      "source with a row whose columns all hold text"
    )
  return Text(
    tuple(columns),
    blank,
    cut_rows,
    len(left_out) - blank,
    left_out,
    _padded(scores, widths, len(columns) - 1) if has_scores else None,
  )


def _padded(values: Sequence[float], widths: Sequence[int], width: int) -> np.ndarray:
  """Returns rows of unlike lengths, which lie end to end, filled up by zeros."""
  is_there = np.arange(width) < np.asarray(widths)[:, None]
  padded = np.zeros(is_there.shape, np.float32)
  padded[is_there] = values
  return padded


def clean(cell: str) -> str:
  """Makes each run of white space and NUL one space, and none at the ends."""
  # This many words with spaces between are longer than what is kept. The rest of a
  # huge line is never split, which would take many times its size.
  words = cell.replace("\0", " ").split(maxsplit=MAX_CHARACTERS)
  return " ".join(words[:MAX_CHARACTERS])


def first_cells(source: sources.Names, columns: Sequence[str] = ()) -> Iterator[str]:
  """Yields the first column's sentence of every row, "" for a row that is left out.

  Shares have no part in it: every row has its place.
  """
  for _, rows in _open(source, columns):
    for row in rows:
      yield cut(row.cells[0]) if row.is_whole else ""


def measure(source: sources.Names, columns: Sequence[str] = ()) -> tuple[int, str]:
  """Counts the rows of a text, and digests their first column.

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


def read_ids(source: sources.Names, column: str) -> Iterator[str]:
  """Yields the id of each row of a text, blank rows included.

  Args:
    source: see `read_text`.
    column: the tables' column of ids; where there are no columns to choose from, a row's
      id is its number from 0, among the rows of all sources.

  Raises:
    UserError: a source cannot be read, or has no such column.
  """
  numbers = itertools.count()
  for each in sources.expand(source):
    reader = readers.find(each.name)
    if reader.columns:
      rows = reader.rows(each.name, reader.columns(each.name))
      yield from (str(number) for _, number in zip(rows, numbers))
    else:
      rows = reader.rows(each.name, (column,), [(str, int)])  # An id may be a number.
      yield from (str(row[0]).strip() if row else "" for row, _ in zip(rows, numbers))

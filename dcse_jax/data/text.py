"""Reads the user's text, from files or from TFDS, into columns of sentences."""

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
import contextlib
import csv
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import os
import re
from typing import BinaryIO
import zlib

import numpy as np

from dcse_jax.runtime.errors import UserError

# How many characters of a sentence are kept: more than an encoder of 512 tokens reads.
# A tokenizer takes up to 600 bytes for each, also past the last token that is read.
MAX_CHARACTERS = 10_000

_BLOCK_BYTES = 1 << 24

# A field's most characters: an open quote must not read the rest into memory.
_CSV_FIELD = 1 << 24

# The first bytes of files that are mistaken for UTF-8.
_NOT_UTF8 = {
  codecs.BOM_UTF16_LE: "looks like UTF-16; re-save it as UTF-8",
  codecs.BOM_UTF16_BE: "looks like UTF-16; re-save it as UTF-8",
  b"\x1f\x8b": "looks like a gzip file; add .gz to its name",
}

# The first bytes of files compressed by other programs than gzip; some look like text.
_COMPRESSED = {
  rb"BZh[1-9]1AY&SY": "bzip2",
  rb"\xfd7zXZ\0": "xz",
  rb"\x28\xb5\x2f\xfd": "zstd",
  rb"\x04\x22\x4d\x18": "lz4",
  rb"PK\x03\x04[\x0a-\x3f]\0": "zip",
  rb"7z\xbc\xaf\x27\x1c": "7-Zip",
}

# The name may carry a version (":1.0.0") and the split a slice ("train[:10%]").
_TFDS_SPEC = re.compile(r"tfds:([^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?):(.+):([^:]+)")

# JSON can spell half a surrogate pair, which no tokenizer can encode.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Text:
  """Sentences in columns of equal length.

  Attributes:
    columns: one column of sentences; or anchors and positives; or anchors,
      positives and hard negatives. Row i of one pairs with row i of another.
    empty_rows: rows left out because a column was blank after cleaning.
    cut_rows: rows with a column that was longer than `MAX_CHARACTERS`.
    left_out: the numbers of the rows left out, among all of the source from 0.
  """

  columns: tuple[list[str], ...]
  empty_rows: int
  cut_rows: int = 0
  left_out: tuple[int, ...] = dataclasses.field(default=(), compare=False)

  @functools.cached_property
  def source_rows(self) -> np.ndarray:
    """Which row of the source each one is, counted from 0 without a header, [rows]."""
    every = np.arange(len(self.columns[0]) + len(self.left_out))
    return np.delete(every, np.asarray(self.left_out, int))


def read_text(source: str, columns: Sequence[str] = ()) -> Text:
  """Reads and cleans every row of a file or of a prepared TFDS split.

  Runs of white space and NUL become one space and the ends are stripped; then
  everything past the first `MAX_CHARACTERS` characters is cut. Nothing else in a
  sentence changes. A row with a blank column is left out. Only a line feed ends a line.

  Args:
    source: a path that ends in .txt, .csv, .tsv or .jsonl, optionally with .gz,
      or `tfds:NAME:SPLIT:FEATURE[,FEATURE...]`.
    columns: the 1 to 3 columns to read from a .csv, .tsv or .jsonl file, in the
      order anchor, positive, hard negative; empty for the other sources.

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
    source: as in `read_text`.
    columns: as in `read_text`.

  Yields:
    The cleaned cells of a row, uncut; an empty list for an empty line of a table.

  Raises:
    UserError: as in `read_text`, but for a source that holds nothing.
  """
  is_tfds = source.startswith("tfds:")
  suffix = "" if is_tfds else _checked_suffix(source)
  if columns and (is_tfds or suffix == ".txt"):
    raise _error(
      f"{source}: columns {_names(columns)} named, but only .csv, .tsv "
      "and .jsonl files have columns to choose from; name none"
    )
  if is_tfds:
    name, split, columns = _parse_tfds_spec(source)
    rows = _tfds_rows(source, name, split, columns)
  elif suffix == ".txt":
    columns = ("sentence",)
    rows = ((line,) for line in _lines(source))
  else:
    rows = _COLUMN_READERS[suffix](source, columns)
  if not 1 <= len(columns) <= 3 or len(set(columns)) < len(columns):
    raise _error(
      f"{source}: columns named: {_names(columns)}; name 1 to 3 different "
      "columns: anchor, positive, hard negative"
    )
  return (list(map(_clean, row)) for row in rows)


def num_columns(source: str, columns: Sequence[str]) -> int:
  """Returns how many columns `read_text` would give, without reading anything."""
  if source.startswith("tfds:"):
    columns = _parse_tfds_spec(source)[-1]
  return max(1, len(columns))


def cut(cell: str) -> str:
  """As much of a cleaned cell as is kept."""
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
    raise _error(
      f"{source}: holds no sentence ({len(left_out)} blank rows); give a "
      "source with a row whose columns all hold text"
    )
  return Text(columns, len(left_out), cut_rows, tuple(left_out))


def _clean(cell: str) -> str:
  # This many words with spaces between are longer than what is kept. The rest of a
  # huge line is never split, which would take many times its size.
  words = cell.replace("\0", " ").split(maxsplit=MAX_CHARACTERS)
  return " ".join(words[:MAX_CHARACTERS])


def _error(message: str) -> UserError:
  # Names come from the user's files and may hold line breaks.
  return UserError(" ".join(message.split()))


def _names(names: Collection[str]) -> str:
  """Lists names for a message, cut short, since a bad file may have long ones."""
  shown = [
    repr(name if len(name) <= 60 else name[:60] + "...")
    for name in itertools.islice(names, 20)
  ]
  return ", ".join([*shown, "..."] if len(names) > 20 else shown) or "none"


def check_file(source: str) -> None:
  """Raises a UserError if this is not a file; a pipe would wait for its writer."""
  if os.path.isdir(source):
    raise _error(f"{source}: is a directory; name one file in it")
  if not os.path.exists(source):
    raise _error(f"{source}: no such file; check the path")
  if not os.path.isfile(source):
    raise _error(f"{source}: is a pipe or device; write the text to a file")


def _checked_suffix(source: str) -> str:
  check_file(source)
  suffix = os.path.splitext(source.lower().removesuffix(".gz"))[1]
  if suffix != ".txt" and suffix not in _COLUMN_READERS:
    raise _error(
      f"{source}: unknown kind of file; its name must end in .txt, .csv, "
      ".tsv or .jsonl, optionally followed by .gz"
    )
  return suffix


@contextlib.contextmanager
def open_bytes(source: str) -> Iterator[BinaryIO]:
  """Opens a file, unpacking .gz; what fails while it is open raises a UserError."""
  opener = gzip.open if source.lower().endswith(".gz") else open
  try:
    with opener(source, "rb") as file:
      begin = file.peek(16)
      for pattern, kind in _COMPRESSED.items():
        if re.match(pattern, begin):
          raise _error(
            f"{source}: is compressed by {kind}, which is not read: unpack it, or "
            "compress it by gzip"
          )
      yield file
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise _error(
      f"{source}: not a whole gzip file ({error}); copy or compress it "
      "again, or drop .gz if it is not compressed"
    ) from error
  except OSError as error:
    raise _error(
      f"{source}: cannot be read ({error.strerror}); check the file and its permissions"
    ) from error


def _lines(source: str) -> Iterator[str]:
  """Decodes lines and leaves out line feeds; no other character ends a line."""
  lines_before = 0
  with open_bytes(source) as file:
    while block := file.read(_BLOCK_BYTES):
      block += file.readline()  # A block ends where a line does.
      if lines_before == 0:
        block = block.removeprefix(codecs.BOM_UTF8)
      try:
        lines = block.decode("utf-8").split("\n")
      except UnicodeDecodeError as error:
        good = block[: block.rfind(b"\n", 0, error.start) + 1]
        lines = good.decode("utf-8").split("\n")[:-1]
        yield from lines  # An earlier fault must be named first.
        raise not_utf8(source, lines_before + len(lines) + 1, error) from error
      if lines_before == 0 and len(lines) == 1 and "\r" in lines[0]:
        raise old_line_ends(source)
      if not lines[-1]:
        lines.pop()  # This is what follows the block's last line feed.
      del block  # It may be one huge line.
      lines_before += len(lines)
      yield from lines


def not_utf8(source: str, line: int, error: UnicodeDecodeError) -> UserError:
  """Makes the error for a line, counted from 1, that could not be decoded."""
  content, at = error.object, error.start
  byte = at - content.rfind(b"\n", 0, at)
  what = f"not valid UTF-8 (byte {byte} is 0x{content[at]:02x}); re-save it as UTF-8"
  if line == 1:
    what = _NOT_UTF8.get(content[:2], what)
  return _error(f"{source} line {line}: {what}")


def old_line_ends(source: str) -> UserError:
  """Makes the error for a file whose only line ends are those of old Macs."""
  return _error(
    f"{source} line 1: its lines end in CR alone; re-save it with LF or CRLF line ends"
  )


def _csv_records(source: str) -> Iterator[tuple[int, list[str]]]:
  # With strict, an unclosed quote cannot silently swallow the rest of the file.
  reader = csv.reader((line + "\n" for line in _lines(source)), strict=True)
  limit = csv.field_size_limit(_CSV_FIELD)
  try:
    while True:
      first_line = reader.line_num + 1  # A quoted field may span several lines.
      record = next(reader, None)
      if record is None:
        return
      yield first_line, record
  except csv.Error as error:
    raise _error(
      f"{source} line {first_line}: not valid CSV ({error}); quote a field that "
      "holds a comma, quote or line break, double the quotes in it and close it"
    ) from error
  finally:
    csv.field_size_limit(limit)


def _tsv_records(source: str) -> Iterator[tuple[int, list[str]]]:
  for number, line in enumerate(_lines(source), start=1):
    yield number, line.split("\t") if line.strip("\r") else []


def _table_rows(
  source: str, columns: Sequence[str], read_records: Callable
) -> Iterator[Sequence[str]]:
  records = read_records(source)
  _, header = next(records, (1, []))
  header = [name.strip() for name in header]
  for name in columns:
    if header.count(name) != 1:
      raise _error(
        f"{source} line 1: the header must hold column {name!r} once; "
        f"the columns there are: {_names(header)}"
      )
  places = [header.index(name) for name in columns]
  for number, record in records:
    if record and len(record) != len(header):
      raise _error(
        f"{source} line {number}: {len(record)} fields where the header "
        f"has {len(header)}; mend or remove that row"
      )
    # An empty line is a blank row, not a ragged one.
    yield [record[place] for place in places] if record else []


def _jsonl_rows(
  source: str, columns: Sequence[str], types: tuple[type, ...] = (str,)
) -> Iterator[Sequence[str]]:
  for number, line in enumerate(_lines(source), start=1):
    where = f"{source} line {number}"
    yield _json_row(where, line, columns, types) if line.strip() else []


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
    raise _error(f"{source}: is empty; give a source with a row of text")
  return number, digest.hexdigest()


def read_ids(source: str, column: str) -> list[str]:
  """Reads what names each row of a source, blank rows included.

  Args:
    source: as in `read_text`.
    column: of a table; where there are no columns to choose from a row is named by its
      number from 0.

  Raises:
    UserError: the source cannot be read, or has no such column.
  """
  if source.startswith("tfds:") or _checked_suffix(source) == ".txt":
    return [str(number) for number, _ in enumerate(iterate_rows(source))]
  read = _COLUMN_READERS[_checked_suffix(source)]
  if read is _jsonl_rows:  # There an id may be a number.
    read = functools.partial(_jsonl_rows, types=(str, int))
  return [str(row[0]).strip() if row else "" for row in read(source, (column,))]


def _json_row(
  where: str, line: str, columns: Sequence[str], types: tuple[type, ...]
) -> Sequence[str]:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    # msg leaves out JSON's own "line 1", which would contradict the file's line.
    raise _error(
      f"{where}: not valid JSON ({getattr(error, 'msg', error)}); "
      "put one object on each line"
    ) from error
  if not isinstance(record, dict):
    raise _error(
      f"{where}: a {type(record).__name__}, not an object; put one object on each line"
    )
  for name in columns:
    if name not in record:
      raise _error(
        f"{where}: no column {name!r}; the columns there are: {_names(record)}"
      )
    value = record[name]
    if not isinstance(value, types):
      raise _error(
        f"{where}: column {name!r} holds a {type(value).__name__}; make it a string"
      )
    if isinstance(value, str) and _SURROGATE.search(value):
      raise _error(
        f"{where}: column {name!r} holds half a surrogate pair; re-save it as UTF-8"
      )
  return [record[name] for name in columns]


_COLUMN_READERS = {
  ".csv": lambda source, columns: _table_rows(source, columns, _csv_records),
  ".tsv": lambda source, columns: _table_rows(source, columns, _tsv_records),
  ".jsonl": _jsonl_rows,
}


def _parse_tfds_spec(source: str) -> tuple[str, str, list[str]]:
  match = _TFDS_SPEC.fullmatch(source)
  features = match.group(3).split(",") if match else []
  if not features or not all(features):
    raise _error(
      f"{source}: not a TFDS source; write tfds:NAME:SPLIT:FEATURE[,FEATURE...]"
    )
  return match.group(1), match.group(2), features


def _tfds_rows(
  source: str, name: str, split: str, features: Sequence[str]
) -> Iterator[Sequence[str]]:
  import tensorflow_datasets as tfds  # Most runs read files, and need not wait for it.

  # TFDS reads the variable only when it is imported; here a later change counts too.
  data_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser(
    "~/tensorflow_datasets"
  )
  options = dict(
    data_dir=data_dir, download=False, builder_kwargs={"file_format": "array_record"}
  )
  unprepared = _error(
    f"{source}: no whole array_record copy of {name!r} in {data_dir}; prepare it by "
    f'tfds.builder("{name}", file_format="array_record").download_and_prepare(), '
    "or set TFDS_DATA_DIR to the folder that holds it"
  )
  try:
    splits = tfds.data_source(name, split=None, **options)
  except Exception as error:  # TFDS raises half a dozen types, many lines long.
    raise unprepared from error
  if not splits:
    raise unprepared
  try:
    rows = tfds.data_source(name, split=split, **options)
  except Exception as error:
    raise _error(
      f"{source}: no split {split!r}; the splits there are: {_names(splits)}"
    ) from error
  known = sorted(rows.dataset_info.features)
  for feature in features:
    if feature not in known:
      raise _error(
        f"{source}: no feature {feature!r}; the features there are: {_names(known)}"
      )
  try:
    for number, row in enumerate(rows):
      where = f"{source} record {number}"
      yield [_tfds_cell(where, feature, row[feature]) for feature in features]
  except RuntimeError as error:
    # array_record raises it for a shard that is missing or cut short.
    raise unprepared from error


def _tfds_cell(where: str, feature: str, value: object) -> str:
  if not isinstance(value, bytes):
    raise _error(
      f"{where}: feature {feature!r} holds a {type(value).__name__}; "
      "name a Text feature"
    )
  try:
    return value.decode("utf-8")
  except UnicodeDecodeError as error:
    raise _error(
      f"{where}: feature {feature!r} is not valid UTF-8; "
      "prepare the dataset from UTF-8 text"
    ) from error

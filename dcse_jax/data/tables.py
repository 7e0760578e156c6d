"""Tables: .csv, .tsv and .jsonl files, read row by row."""

from collections.abc import Callable, Iterator, Sequence
import csv
import json
import re
from typing import Any

from dcse_jax.data import decoding

# A field's most characters: an open quote must not read the rest into memory.
_CSV_FIELD = 1 << 24

# JSON can spell half a surrogate pair, which no tokenizer can encode.
_SURROGATE = re.compile("[\ud800-\udfff]")


def _csv_records(source: str) -> Iterator[tuple[int, list[str]]]:
  # With strict, an unclosed quote cannot silently swallow the rest of the file.
  reader = csv.reader((line + "\n" for line in decoding.lines(source)), strict=True)
  limit = csv.field_size_limit(_CSV_FIELD)
  try:
    while True:
      first_line = reader.line_num + 1  # A quoted field may span several lines.
      record = next(reader, None)
      if record is None:
        return
      yield first_line, record
  except csv.Error as error:
    raise decoding.user_error(
      f"{source} line {first_line}: not valid CSV ({error}); quote a field that "
      "holds a comma, quote or line break, double the quotes in it and close it"
    ) from error
  finally:
    csv.field_size_limit(limit)


def _tsv_records(source: str) -> Iterator[tuple[int, list[str]]]:
  for number, line in enumerate(decoding.lines(source), start=1):
    yield number, line.split("\t") if line.strip("\r") else []


def _table_rows(
  source: str, columns: Sequence[str], read_records: Callable
) -> Iterator[Sequence[str]]:
  records = read_records(source)
  _, header = next(records, (1, []))
  header = [name.strip() for name in header]
  for name in columns:
    if header.count(name) != 1:
      raise decoding.user_error(
        f"{source} line 1: the header must hold column {name!r} once; "
        f"the columns there are: {decoding.names(header)}"
      )
  places = [header.index(name) for name in columns]
  for number, record in records:
    if record and len(record) != len(header):
      raise decoding.user_error(
        f"{source} line {number}: {len(record)} fields where the header "
        f"has {len(header)}; mend or remove that row"
      )
    # An empty line is a blank row, not a ragged one.
    yield [record[place] for place in places] if record else []


def csv_rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[str]]:
  """Yields the cells of a .csv file, all strings; [] for an empty line."""
  del types
  return _table_rows(source, columns, _csv_records)


def tsv_rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[str]]:
  """Yields the cells of a .tsv file, all strings; [] for an empty line."""
  del types
  return _table_rows(source, columns, _tsv_records)


def jsonl_rows(
  source: str,
  columns: Sequence[str],
  types: Sequence[tuple[type, ...]] = (),
  optional: Sequence[str] = (),
) -> Iterator[Sequence[Any]]:
  """Yields the cells of a .jsonl file; [] for an empty line.

  Args:
    source: the file's path.
    columns: names.
    types: for each column, the types that a cell may have; all strings by default.
      Where None is one of them, a column may be missing.
    optional: columns of which a missing or null cell is "".
  """
  types = types or [(str,)] * len(columns)
  for number, line in enumerate(decoding.lines(source), start=1):
    where = f"{source} line {number}"
    yield _json_row(where, line, columns, types, optional) if line.strip() else []


def _json_row(
  where: str,
  line: str,
  columns: Sequence[str],
  types: Sequence[tuple[type, ...]],
  optional: Sequence[str],
) -> Sequence[Any]:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    # msg leaves out JSON's own "line 1", which would contradict the file's line.
    raise decoding.user_error(
      f"{where}: not valid JSON ({getattr(error, 'msg', error)}); "
      "put one object on each line"
    ) from error
  if not isinstance(record, dict):
    raise decoding.user_error(
      f"{where}: a {type(record).__name__}, not an object; put one object on each line"
    )
  record |= {name: "" for name in optional if record.get(name) is None}
  for name, known in zip(columns, types, strict=True):
    if name not in record and type(None) in known:
      record[name] = None
    if name not in record:
      raise decoding.user_error(
        f"{where}: no column {name!r}; the columns there are: {decoding.names(record)}"
      )
    value = record[name]
    if not isinstance(value, known):
      raise decoding.user_error(
        f"{where}: column {name!r} holds a {type(value).__name__}; make it "
        f"a {decoding.kind_of(known)}"
      )
    if any(
      isinstance(each, str) and _SURROGATE.search(each)
      for each in (value if isinstance(value, list) else [value])
    ):
      raise decoding.user_error(
        f"{where}: column {name!r} holds half a surrogate pair; re-save it as UTF-8"
      )
  return [record[name] for name in columns]

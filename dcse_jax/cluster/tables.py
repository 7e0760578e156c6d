"""The rows of a part, read from a text or a table: sentences, ids, and columns to keep."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
from typing import Any

import numpy as np

from dcse_jax.cluster import places
from dcse_jax.data import decoding
from dcse_jax.runtime.errors import UserError

# The columns of what is written; the first also of a plain text's sentences.
TEXT, ID, EMBEDDING = "text", "id", "embedding"

_BATCH_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns that a user asks for.

  Attributes:
    text: that of the sentences; None for "text".
    id: that of the ids; None for "id" where there is one, or else the number of each
      row from 0, among the rows of all files.
    kept: those that are written as they are.
  """

  text: str | None = None
  id: str | None = None
  kept: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
  """The columns that are read, the same in all files.

  Attributes:
    text: that of the sentences.
    id: that of the ids; None for the numbers of rows.
    kept: those that are written as they are, without the ids.
  """

  text: str
  id: str | None
  kept: tuple[str, ...]

  @property
  def read(self) -> list[str]:
    """All that is read of a table, each once."""
    named = [self.text, *([self.id] if self.id else []), *self.kept]
    return list(dict.fromkeys(named))


def layout_of(columns: Columns, schemas: Mapping[str, Any]) -> Layout:
  """Finds the columns in the files, or refuses files that do not have them.

  Args:
    columns: those that are asked for.
    schemas: pyarrow's of each file, by its name; None for a plain text.
  """
  text = columns.text or TEXT
  with_id = [n for n, s in schemas.items() if s is not None and ID in s.names]
  id_column = columns.id or (ID if with_id else None)
  kept = tuple(c for c in columns.kept if not c == id_column == ID)
  if len(set(kept)) < len(kept) or {ID, EMBEDDING} & set(kept):
    raise UserError(
      f"--columns={','.join(columns.kept)}: name each once; {ID!r} and {EMBEDDING!r} are "
      "columns that are made, so rename yours"
    )
  layout, types = Layout(text, id_column, kept), {}
  for name, schema in schemas.items():
    found = _types(schema)
    for column in layout.read:
      if column not in found:
        raise decoding.user_error(
          f"{name}: no column {column!r}; the columns there are: "
          f"{decoding.names(list(found))}"
        )
      first, known = types.setdefault(column, (name, found[column]))
      if found[column] != known:
        raise decoding.user_error(
          f"{name}: column {column!r} holds {found[column]}, and that of {first} "
          f"{known}: write them alike"
        )
    if not _is_text(found[text]):
      raise decoding.user_error(
        f"{name}: column {text!r} holds {found[text]}; name a column of strings"
      )
  return layout


def _types(schema: Any) -> dict[str, Any]:
  import pyarrow as pa

  if schema is None:
    return {TEXT: pa.string()}
  # A name that two columns have is none.
  names = [name for name in schema.names if schema.names.count(name) == 1]
  return {name: schema.field(name).type for name in names}


def _is_text(kind: Any) -> bool:
  from pyarrow import types

  kind = kind.value_type if types.is_dictionary(kind) else kind
  return types.is_string(kind) or types.is_large_string(kind)


def measure(name: str) -> tuple[int, Any]:
  """Returns how many rows a table has, and its schema."""
  with _table(name) as table:
    if name.lower().endswith(".parquet"):
      return table.metadata.num_rows, table.schema_arrow
    return sum(batch.num_rows for batch in _arrow_batches(table)), table.schema


@dataclasses.dataclass(frozen=True)
class Rows:
  """Some rows, the bad ones left out.

  Attributes:
    sentences: as they are in the file.
    table: pyarrow's, with ids and what is kept.
    bad: how many were left out.
  """

  sentences: list[str]
  table: Any
  bad: int


def read(part: Any, layout: Layout, *, skip_bad_rows: bool = False) -> Iterator[Rows]:
  """Yields the rows of a part, some thousands at a time.

  A line of a text ends with a line feed, and an empty one is a sentence. A row is bad
  if its sentence is not UTF-8 or null, or if its id is null.

  Args:
    part: a `parts.Part`.
    layout: its columns.
    skip_bad_rows: whether to leave bad rows out.

  Raises:
    UserError: a row is bad; the error names it. Or the file has lost rows meanwhile.
  """
  is_text = part.file.lower().endswith((".txt", ".gz"))
  number = part.first
  for cells, table in (_text_rows if is_text else _table_rows)(part, layout):
    good = [i for i, cell in enumerate(cells) if not isinstance(cell, _Fault)]
    if len(good) < len(cells) and not skip_bad_rows:
      at = next(i for i, cell in enumerate(cells) if isinstance(cell, _Fault))
      # Editors count lines from 1.
      row = f"line {number + at + 1}" if is_text else f"row {number + at} (from 0)"
      raise decoding.user_error(
        f"{part.file} {row}: {cells[at].reason}; mend it, or leave such rows out by "
        "--skip_bad_rows"
      )
    sentences = [cells[i] for i in good]
    table = _with_ids(table, cells, part.before + number, layout)
    if len(good) < len(cells):
      table = table.take(np.asarray(good, np.int64))
    yield Rows(sentences, table, len(cells) - len(good))
    number += len(cells)
  if number != part.first + part.rows:
    raise UserError(
      f"{part.file} has lost rows while it was read: run the same command again"
    )


@dataclasses.dataclass(frozen=True)
class _Fault:
  """What stands for the sentence of a row that cannot be read."""

  reason: str


def _with_ids(table: Any, cells: list, first: int, layout: Layout) -> Any:
  """Returns the columns that are written, but for the embedding."""
  import pyarrow as pa

  ids = range(first, first + len(cells)) if layout.id is None else None
  ids = table.column(layout.id) if ids is None else pa.array(ids, pa.int64())
  columns = {ID: ids, **{name: table.column(name) for name in layout.kept}}
  return pa.table(columns)


def _text_rows(part: Any, layout: Layout) -> Iterator[tuple[list, Any]]:
  import pyarrow as pa

  with places.opened(part.file) as file:
    file.seek(part.start)
    for begin in range(0, part.rows, _BATCH_ROWS):
      number = min(_BATCH_ROWS, part.rows - begin)
      lines = list(itertools.takewhile(bool, (file.readline() for _ in range(number))))
      cells = [_decoded(line.rstrip(b"\r\n")) for line in lines]
      if part.first + begin == 0 and cells and isinstance(cells[0], str):
        cells[0] = cells[0].removeprefix("\ufeff")
      shown = [cell if isinstance(cell, str) else None for cell in cells]
      yield cells, pa.table({TEXT: pa.array(shown, pa.string())})
      if len(lines) < number:
        return


def _decoded(line: bytes) -> "str | _Fault":
  try:
    return line.decode()
  except UnicodeDecodeError:
    return _Fault("not valid UTF-8")


def _table_rows(part: Any, layout: Layout) -> Iterator[tuple[list, Any]]:
  import pyarrow as pa

  with _table(part.file) as table:
    if part.file.lower().endswith(".parquet"):
      batches = _parquet_batches(table, layout.read, part.first)
    else:
      batches = _arrow_batches(table)
    done = 0
    for start, batch in _placed(batches):
      for first in range(max(start, part.first), start + batch.num_rows, _BATCH_ROWS):
        rows = min(_BATCH_ROWS, start + batch.num_rows - first, part.rows - done)
        if rows <= 0:
          return
        block = pa.Table.from_batches([batch.slice(first - start, rows)])
        yield _cells(block, layout), block
        done += rows


def _cells(block: Any, layout: Layout) -> "list[str | _Fault]":
  """Returns the sentences of a table, and faults in place of bad ones."""
  column = block.column(layout.text)
  try:
    cells = column.to_pylist()
  except UnicodeDecodeError:
    cells = [_cell(value) for value in column]
  no_text = _Fault(f"column {layout.text!r} is null")
  cells = [no_text if cell is None else cell for cell in cells]
  if layout.id and block.column(layout.id).null_count:
    no_id = _Fault(f"column {layout.id!r} is null")
    has_id = block.column(layout.id).is_valid().to_pylist()
    cells = [cell if known else no_id for cell, known in zip(cells, has_id)]
  return cells


def _cell(value: Any) -> "str | _Fault | None":
  try:
    return value.as_py()
  except UnicodeDecodeError:
    return _Fault("not valid UTF-8")


@contextlib.contextmanager
def _table(name: str) -> Iterator[Any]:
  """Opens a Parquet file, or the batches of an Arrow file."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  with contextlib.ExitStack() as stack:
    try:
      if places.is_remote(name):
        file = stack.enter_context(places.opened(name))
      else:
        # What is mapped is the file's own memory, which the system takes back at need.
        file = stack.enter_context(pa.memory_map(name))
      if name.lower().endswith(".parquet"):
        yield stack.enter_context(pq.ParquetFile(file))
        return
      # Data sets that libraries save are streams; Feather files are not.
      begin = file.read(6)
      file.seek(0)
      yield (pa.ipc.open_file if begin == b"ARROW1" else pa.ipc.open_stream)(file)
    except (pa.ArrowException, OSError) as error:
      raise decoding.user_error(
        f"{name}: cannot be read as its suffix says ({error}); copy or write it again"
      ) from error


def _parquet_batches(file: Any, columns: Sequence[str], first: int) -> Iterator[Any]:
  """Yields batches of a Parquet file; those of groups before a row are empty of columns."""
  start = 0
  for group in range(file.num_row_groups):
    rows = file.metadata.row_group(group).num_rows
    if start + rows > first:
      yield from file.iter_batches(_BATCH_ROWS, [group], columns=list(columns))
    else:
      yield _Skipped(rows)
    start += rows


@dataclasses.dataclass(frozen=True)
class _Skipped:
  """A batch that nobody reads."""

  num_rows: int


def _arrow_batches(opened: Any) -> Iterator[Any]:
  if hasattr(opened, "num_record_batches"):
    return (opened.get_batch(i) for i in range(opened.num_record_batches))
  return iter(opened)


def _placed(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
  """Yields batches with the number of their first row."""
  start = 0
  for batch in batches:
    yield start, batch
    start += batch.num_rows

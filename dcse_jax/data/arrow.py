"""Parquet and Arrow files, read one row group or record batch at a time."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import itertools
from typing import Any

from dcse_jax.data import decoding
from dcse_jax.runtime.errors import UserError

# How many rows are Python objects at a time.
BATCH_ROWS = 4096


def load(source: str) -> Any:
  """Imports pyarrow, which is an extra and slow to load.

  Args:
    source: what it is to read, for the error.

  Raises:
    UserError: it is missing.
  """
  try:
    import pyarrow
  except ImportError as error:
    raise UserError(
      f"{source}: tables of Parquet and Arrow need pyarrow: pip install 'dcse_jax[data]'"
    ) from error
  return pyarrow


def rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[Any]]:
  """Yields the cells of a .parquet or .arrow file; a row with a null may be blank.

  Args:
    source: the file's path.
    columns: names, or paths as in "answer.text" to fields of structs.
    types: for each column, the types that a cell may have; all strings by default. A
      null where None is none of them makes the row blank.

  Raises:
    UserError: the file cannot be read, or a column is missing or has another type.
  """
  pa = load(source)
  try:
    with opened(source, columns) as (schema, batches):
      yield from cells(source, columns, schema, batches, types)
  except (pa.ArrowException, OSError) as error:
    raise decoding.user_error(
      f"{source}: cannot be read as its suffix says ({error}); copy or write it again"
    ) from error


def cells(
  source: str,
  columns: Sequence[str],
  schema: Any,
  batches: Iterable[Any],
  types: Sequence[tuple[type, ...]],
) -> Iterator[Sequence[Any]]:
  """Yields the cells of each row of some record batches or tables, as `rows` does.

  Args:
    source: where they come from, for errors.
    columns: as in `rows`.
    schema: that of the batches, or of more columns.
    batches: pyarrow's.
    types: as in `rows`.
  """
  types = types or [(str,)] * len(columns)
  paths = [_path(source, name, schema) for name in columns]
  for batch in batches:
    for row in zip(*(_field(batch, path).to_pylist() for path in paths)):
      if any(cell is None and type(None) not in t for cell, t in zip(row, types)):
        yield []
        continue
      for name, cell, known in zip(columns, row, types):
        if not isinstance(cell, known):
          raise decoding.user_error(
            f"{source}: column {name!r} holds a {type(cell).__name__}; name a column "
            f"of {decoding.kind_of(known)}s"
          )
      yield row


@contextlib.contextmanager
def opened(source: str, columns: Sequence[str]) -> Iterator[tuple[Any, Iterator[Any]]]:
  """Opens a file, and yields its schema and its batches of some columns."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  if source.lower().endswith(".parquet"):
    with pq.ParquetFile(source) as file:
      # Only what is named is unpacked, a field of a struct without the others. Asked for
      # all groups at once, pyarrow reads far ahead.
      groups = range(file.num_row_groups)
      read = lambda i: file.iter_batches(BATCH_ROWS, [i], columns=list(columns))
      yield file.schema_arrow, itertools.chain.from_iterable(map(read, groups))
    return
  # What is mapped is the file's own memory, which the system takes back at need.
  with pa.memory_map(source) as file:
    # Data sets that libraries save are streams; Feather files are not.
    begin = file.read(6)
    file.seek(0)
    opened = (pa.ipc.open_file if begin == b"ARROW1" else pa.ipc.open_stream)(file)
    batches = opened
    if begin == b"ARROW1":
      batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
    yield (
      opened.schema,
      (
        batch.slice(start, BATCH_ROWS)
        for batch in batches
        for start in range(0, batch.num_rows, BATCH_ROWS)
      ),
    )


def _path(source: str, name: str, schema: Any) -> list[str]:
  """Returns the way to a column of a schema, or refuses one that is not there."""
  import pyarrow as pa

  path = [name] if name in schema.names else name.split(".")
  fields, known = schema, schema.names
  for part in path:
    # A plain column has no fields, so the other columns are named.
    if not isinstance(fields, pa.Schema | pa.StructType):
      fields = ()
    known = [field.name for field in fields] or known
    if sum(field.name == part for field in fields) != 1:
      raise decoding.user_error(
        f"{source}: no column {name!r}; the columns there are: {decoding.names(known)}"
      )
    fields = next(field.type for field in fields if field.name == part)
  return path


def _field(batch: Any, path: Sequence[str]) -> Any:
  """Returns the array of a column, which may be a field of structs."""
  import pyarrow.compute as pc

  top, *inner = path
  array = batch.column(batch.schema.get_field_index(top))
  return pc.struct_field(array, inner) if inner else array

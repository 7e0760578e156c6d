"""Parquet and Arrow files, read one row group or record batch at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

from dcse_jax.data import decoding
from dcse_jax.runtime.errors import UserError

# How many rows are Python objects at a time.
_BATCH_ROWS = 4096


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
  try:
    import pyarrow as pa  # It is an extra, and slow to load.
  except ImportError as error:
    raise UserError(
      f"{source}: tables of Parquet and Arrow need pyarrow: pip install 'dcse_jax[data]'"
    ) from error

  types = types or [(str,)] * len(columns)
  try:
    for batch in _batches(source, columns):
      cells = [column.to_pylist() for column in batch]
      for row in zip(*cells):
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
  except (pa.ArrowException, OSError) as error:
    raise decoding.user_error(
      f"{source}: cannot be read as its suffix says ({error}); copy or write it again"
    ) from error


def _batches(source: str, columns: Sequence[str]) -> Iterator[list[Any]]:
  """Yields the arrays of some columns, batch by batch."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  tops = list(dict.fromkeys(name.partition(".")[0] for name in columns))
  if source.lower().endswith(".parquet"):
    with pq.ParquetFile(source) as file:
      for name in columns:
        _check(source, name, file.schema_arrow)
      for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=tops):
        yield [_field(batch, name) for name in columns]
    return
  with pa.memory_map(source) as file:
    # Data sets that libraries save are streams; Feather files are not.
    begin = file.read(6)
    file.seek(0)
    opened = (pa.ipc.open_file if begin == b"ARROW1" else pa.ipc.open_stream)(file)
    for name in columns:
      _check(source, name, opened.schema)
    batches = opened
    if begin == b"ARROW1":
      batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
    for batch in batches:
      for start in range(0, batch.num_rows, _BATCH_ROWS):
        part = batch.slice(start, _BATCH_ROWS)
        yield [_field(part, name) for name in columns]


def _check(source: str, name: str, schema: Any) -> None:
  """Refuses a column that is not in a schema."""
  import pyarrow as pa

  fields, known = schema, [field.name for field in schema]
  for part in name.split("."):
    # A plain column has no fields, so the other columns are named.
    if not isinstance(fields, pa.Schema | pa.StructType):
      fields = ()
    known = [field.name for field in fields] or known
    if sum(field.name == part for field in fields) != 1:
      raise decoding.user_error(
        f"{source}: no column {name!r}; the columns there are: {decoding.names(known)}"
      )
    fields = next(field.type for field in fields if field.name == part)


def _field(batch: Any, name: str) -> Any:
  """Returns the array of a column, which may be a field of structs."""
  import pyarrow.compute as pc

  top, *path = name.split(".")
  array = batch.column(batch.schema.get_field_index(top))
  return pc.struct_field(array, path) if path else array

"""Embeddings in columns of tables: Arrow files, Parquet files and folders of these.

Arrow files are mapped. Parquet cannot be, so it is unpacked once into a file that can, part
by part: memory holds a few thousand rows however many there are.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import logging
import pathlib
from typing import Any

import numpy as np

from dcse_jax.data import arrow
from dcse_jax.data import parts as parts_lib
from dcse_jax.runtime import files
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """A column of vectors, and perhaps one of ids, of files that follow each other.

  Attributes:
    name: as the user wrote it.
    paths: the files, all .parquet or all .arrow.
    vector: the column of vectors.
    id_column: the column of ids; "" without ids.
    shapes: rows and width of each file.
    dtypes: the type of each file's numbers.
  """

  name: str
  paths: tuple[pathlib.Path, ...]
  vector: str
  id_column: str
  shapes: tuple[tuple[int, int], ...]
  dtypes: tuple[np.dtype, ...]

  def ids(self) -> Iterator[str]:
    """Yields the id of each row."""
    for path in self.paths:
      with _reading(self.name), arrow.opened(str(path), [self.id_column]) as opened:
        for batch in opened[1]:
          yield from map(str, batch.column(self.id_column).to_pylist())

  def load(self, store: pathlib.Path | None) -> tuple[np.ndarray, ...]:
    """Maps the vectors, as arrays [n, D] that follow each other.

    Args:
      store: the folder of the disk that keeps what is unpacked, by its content. None
        unpacks into memory.

    Raises:
      UserError: a row is null or of another width, or a file cannot be read.
    """
    if self.paths[0].suffix.lower() != ".parquet":
      return tuple(array for _, array in self._arrays())
    rows, width = sum(rows for rows, _ in self.shapes), self.shapes[0][1]
    # A step computes in float32 in any case.
    dtype = np.result_type(*(np.float32 if d.itemsize > 4 else d for d in self.dtypes))
    if store is None:
      unpacked = np.empty((rows, width), dtype)
      for start, array in self._arrays():
        unpacked[start : start + len(array)] = array
      return (unpacked,)
    path = store / f"embeddings-{self._digest()}.npy"

    def make():
      if not path.exists():
        _log.info("unpacking %s, %d rows, into %s", self.name, rows, store)
        with files.whole(path) as new, new.open("wb") as file:
          about = {"shape": (rows, width), "fortran_order": False}
          about["descr"] = np.lib.format.dtype_to_descr(dtype)
          np.lib.format.write_array_header_1_0(file, about)
          for _, array in self._arrays():
            file.write(np.ascontiguousarray(array, dtype).data)

    processes.first_makes(store, make)
    return (np.load(path, mmap_mode="r"),)

  def _digest(self) -> str:
    digest = hashlib.blake2b(self.vector.encode(), digest_size=16)
    for path in self.paths:
      with _reading(self.name), path.open("rb") as file:
        digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return digest.hexdigest()

  def _arrays(self) -> Iterator[tuple[int, np.ndarray]]:
    """Yields arrays with the number of their first row."""
    row = 0
    for path, (_, width) in zip(self.paths, self.shapes):
      with _reading(self.name):
        for chunk in _chunks(path, self.vector):
          yield row, _array(self.name, chunk, row, width)
          row += len(chunk)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
  """Turns what pyarrow raises into a UserError."""
  import pyarrow as pa

  try:
    yield
  except (OSError, pa.ArrowException) as error:
    raise UserError(
      f"teacher {name}: cannot be read ({str(error).splitlines()[0]}); write it again"
    ) from error


def open_table(name: str, path: pathlib.Path, columns: Sequence[str]) -> Table:
  """Opens a file, or a folder of parts, without reading its rows.

  Args:
    name: as the user wrote it.
    path: the file or folder.
    columns: that of vectors, or those of ids and vectors; empty finds the one of lists.

  Raises:
    UserError: something is missing or cannot be read, or there are no rows.
  """
  arrow.load(f"teacher {name}")
  if not path.exists():
    raise UserError(f"teacher {name}: no such file; check the path")
  paths = parts_lib.paths(path) if path.is_dir() else [path]
  about = []
  for each in paths:
    with _reading(name):
      about.append(_about(name, each, columns))
  # A part without rows has no width to compare.
  kept = [(each, found) for each, found in zip(paths, about) if found[1][0]]
  if not kept:
    raise UserError(f"teacher {name}: has no rows; write one for each row of the text")
  return Table(
    name,
    tuple(each for each, _ in kept),
    kept[0][1][0],
    columns[0] if len(columns) > 1 else "",
    tuple(shape for _, (_, shape, _) in kept),
    tuple(dtype for _, (_, _, dtype) in kept),
  )


def _about(
  name: str, path: pathlib.Path, columns: Sequence[str]
) -> tuple[str, tuple[int, int], np.dtype]:
  """Returns a file's column of vectors, its rows and their width, and their type."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  if path.suffix.lower() == ".parquet":
    with pq.ParquetFile(path) as file:
      schema, rows = file.schema_arrow, file.metadata.num_rows
  else:
    table = _map(path)
    schema, rows = table.schema, table.num_rows
  for column in columns:
    if schema.names.count(column) != 1:
      raise UserError(
        f"teacher {name}: no column {column!r}; the columns there are: "
        + ", ".join(schema.names)
      )
  vector = columns[-1] if columns else _only_lists(name, schema)
  kind = schema.field(vector).type
  if "list" not in str(kind):
    raise UserError(f"teacher {name}: holds {kind}; name a column of lists")
  width = 0
  if pa.types.is_fixed_size_list(kind):
    width = kind.list_size
  elif rows:
    # A null is refused when its row is read.
    width = len(next(_chunks(path, vector))[0].as_py() or ())
  return vector, (rows, width), np.dtype(kind.value_type.to_pandas_dtype())


def _only_lists(name: str, schema: Any) -> str:
  """Finds the one column of lists that a table has."""
  lists = [field.name for field in schema if "list" in str(field.type)]
  if len(lists) != 1:
    raise UserError(
      f"teacher {name}: name the column of vectors, FILE:COLUMN; the columns there "
      f"are: {', '.join(schema.names)}"
    )
  return lists[0]


def _chunks(path: pathlib.Path, column: str) -> Iterator[Any]:
  """Yields the arrays of a column that hold rows, pyarrow's."""
  if path.suffix.lower() == ".parquet":
    with arrow.opened(str(path), [column]) as (_, batches):
      yield from (batch.column(column) for batch in batches if batch.num_rows)
  else:
    yield from (chunk for chunk in _map(path)[column].chunks if len(chunk))


def _map(path: pathlib.Path) -> Any:
  import pyarrow as pa

  source = pa.memory_map(str(path))
  try:
    return pa.ipc.open_file(source).read_all()
  except pa.ArrowInvalid:
    # datasets.Dataset keeps this form on disk.
    source.seek(0)
    return pa.ipc.open_stream(source).read_all()


def _array(name: str, chunk: Any, first_row: int, width: int) -> np.ndarray:
  """Turns a chunk of a column of lists into [n, D]; copies only if there are nulls."""
  import pyarrow as pa

  if chunk.null_count:
    row = first_row + chunk.is_null().to_pylist().index(True)
    raise UserError(
      f"teacher {name}: row {row} is null, counted from 0: embed it again"
    )
  if not pa.types.is_fixed_size_list(chunk.type):
    lengths = chunk.value_lengths().to_numpy()
    if other := np.flatnonzero(lengths != width).tolist():
      raise UserError(
        f"teacher {name}: row {first_row + other[0]} is {lengths[other[0]]} wide and "
        f"row 0 {width}: embed all by one model"
      )
  return chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), width)

"""Tables, written row by row: .tsv, .jsonl or .parquet, as the name ends."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import pathlib
from typing import Any

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

# What a cell may hold: a string, a float, or a list of either; None is an empty cell.
Cell = str | float | list | None
Write = Callable[[Sequence[Sequence[Cell]]], None]


def check_output(output: str, columns: Mapping[str, type | tuple]) -> pathlib.Path:
  """Returns the path of a table to write.

  Args:
    output: as the user names it.
    columns: the type of each, by name: str or float, in a tuple if cells are lists.

  Raises:
    UserError: no table has such a name, or that kind cannot hold such columns.
  """
  path = files.user_path(output)
  if path.suffix not in _WRITERS:
    raise UserError(f"{output}: name a table that ends in {', '.join(_WRITERS)}")
  if path.suffix == ".tsv" and any(
    isinstance(each, tuple) for each in columns.values()
  ):
    raise UserError(f"{output}: a .tsv holds no lists: write .jsonl or .parquet")
  if path.suffix == ".parquet":
    _import_pyarrow(output)
  return path


@contextlib.contextmanager
def writing(path: pathlib.Path, columns: Mapping[str, type | tuple]) -> Iterator[Write]:
  """Yields a function that writes rows; the table appears when the block ends.

  Args:
    path: from `check_output`.
    columns: likewise.

  Raises:
    UserError: it cannot be written.
  """
  with files.whole(path) as beside:
    with _WRITERS[path.suffix](beside, columns) as write:
      yield write


@contextlib.contextmanager
def _tsv(path: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[Write]:
  cell = lambda x: f"{x:.7g}" if isinstance(x, float) else x or ""

  with path.open("w", encoding="utf-8", newline="\n") as file:

    def write(rows: Iterable[Sequence[Cell]]) -> None:
      file.writelines("\t".join(map(cell, row)) + "\n" for row in rows)

    write([list(columns)])
    yield write


@contextlib.contextmanager
def _jsonl(path: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[Write]:
  with path.open("w", encoding="utf-8", newline="\n") as file:

    def write(rows: Iterable[Sequence[Cell]]) -> None:
      file.writelines(
        json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n" for row in rows
      )

    yield write


@contextlib.contextmanager
def _parquet(path: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[Write]:
  pa = _import_pyarrow(str(path))
  import pyarrow.parquet as pq

  types = {str: pa.string(), float: pa.float32()}
  of = lambda kind: pa.list_(types[kind[0]]) if isinstance(kind, tuple) else types[kind]
  schema = pa.schema([(name, of(kind)) for name, kind in columns.items()])
  with pq.ParquetWriter(path, schema) as file:

    def write(rows: Iterable[Sequence[Cell]]) -> None:
      cells = list(zip(*rows))
      if cells:
        arrays = [pa.array(x, field.type) for x, field in zip(cells, schema)]
        file.write_batch(pa.record_batch(arrays, schema=schema))

    yield write


def _import_pyarrow(output: str) -> Any:
  try:
    import pyarrow
  except ImportError as error:
    raise UserError(
      f"{output}: Parquet needs pyarrow: pip install 'dcse_jax[data]', or write .jsonl"
    ) from error
  return pyarrow


_WRITERS = {".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}

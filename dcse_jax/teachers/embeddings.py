"""Embeddings from files as a teacher: .npy files and columns of tables.

A name is `FILE.npy`, a folder of such parts in the order of their names, or
`FILE.parquet` or `FILE.arrow` with the column of vectors after a colon, and that of ids
before it: `FILE.parquet:id:vector`. Row i belongs to row i of the text file, or to the
row with its id. Files that can be mapped are mapped; parquet is unpacked into memory.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import pathlib
import re
from typing import Any

import numpy as np

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_TABLE = re.compile(r"(.+\.(?:parquet|arrow))((?::[^:]+){0,2})", re.IGNORECASE)
_BLOCK_ROWS = 16_384
# A folder with one of these holds a model, whatever else is there.
_OF_MODELS = ("config.json", "modules.json")
_TYPES = ("float16", "float32", "float64")


def is_embeddings(name: str) -> bool:
  """Returns whether the name of a teacher is that of embeddings, not of a model."""
  if name.lower().endswith(".npy") or _TABLE.fullmatch(name):
    return True
  folder = files.user_path(name)
  if not folder.is_dir() or any((folder / each).exists() for each in _OF_MODELS):
    return False
  return any(folder.glob("*.npy"))


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
  """Embeddings in files, mapped where that can be.

  Attributes:
    name: as the user wrote it.
    parts: one or more arrays, [n, D], that follow each other.
    ids: a string for each row of all parts together; None if the order says it.
    id_column: the column of the ids; "" without ids.
    text_digest: the digest of the text's rows, as `data.text.measure` gives it, if the
      JSON file beside has it, as embed_with writes it.
  """

  name: str
  parts: tuple[np.ndarray, ...]
  ids: list[str] | None = None
  id_column: str = ""
  text_digest: str | None = None

  def __len__(self) -> int:
    return int(self._starts[-1])

  @property
  def width(self) -> int:
    """The width of an embedding."""
    return self.parts[0].shape[1]

  @functools.cached_property
  def _starts(self) -> np.ndarray:
    return np.cumsum([0] + [len(part) for part in self.parts])

  @property
  def dtype(self) -> np.dtype:
    """The dtype of what `take` returns."""
    return np.result_type(*(np.float16(0), *(part.dtype for part in self._narrow)))

  @property
  def _narrow(self) -> list[np.ndarray]:
    # A step computes in float32 in any case.
    empty = lambda part: part[:0].astype(np.float32) if part.itemsize > 4 else part[:0]
    return [empty(part) for part in self.parts]

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Reads rows by their numbers, [n] to [n, D]."""
    if len(self.parts) == 1:
      return self.parts[0][rows].astype(self.dtype)
    found = np.empty((len(rows), self.width), self.dtype)
    place = np.searchsorted(self._starts, rows, side="right") - 1
    for i in np.unique(place):
      of_part = place == i
      found[of_part] = self.parts[i][rows[of_part] - self._starts[i]]
    return found

  @functools.cached_property
  def digest(self) -> str:
    """The digest of all rows and ids, however they are divided among files."""
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{len(self)} {self.width} {self.dtype}".encode())
    for start in range(0, len(self), _BLOCK_ROWS):
      rows = np.arange(start, min(start + _BLOCK_ROWS, len(self)))
      state.update(np.ascontiguousarray(self.take(rows)).data)
    for each in self.ids or ():
      state.update(f"{each}\n".encode())
    return state.hexdigest()

  def rows_in_order(self, number: int, source: str) -> np.ndarray:
    """Numbers the rows of a text file, which are as many, [rows].

    Args:
      number: how many rows the text file has, blank ones included.
      source: the text file, for errors.

    Raises:
      UserError: there are more here, or fewer.
    """
    if len(self) != number:
      raise UserError(
        f"teacher {self.name} has {len(self)} rows and {source} has {number}: give one "
        "for each row of the text file, blank rows included, or name a column of ids, "
        "FILE.parquet:id:vector"
      )
    return np.arange(number)

  def rows_by_id(self, ids: Sequence[str], source: str) -> np.ndarray:
    """Finds rows by their ids, [ids].

    Args:
      ids: those of a text file's rows.
      source: the text file, for errors.

    Raises:
      UserError: an id stands here twice, or not at all.
    """
    places: dict[str, int] = {}
    for row, each in enumerate(self.ids):
      if each in places:
        raise UserError(
          f"teacher {self.name}: the id {each!r:.80} stands in rows {places[each]} and "
          f"{row}: leave one of them out"
        )
      places[each] = row
    missing = [each for each in ids if each not in places]
    if missing:
      raise UserError(
        f"teacher {self.name}: {len(missing)} of {len(ids)} rows of {source} have no "
        f"embedding, the first with the id {missing[0]!r:.80} in column "
        f"{self.id_column!r}: add them"
      )
    return np.asarray([places[each] for each in ids])

  def check(self, rows: np.ndarray) -> None:
    """Refuses embeddings without a direction.

    Args:
      rows: those of the sentences that are trained on.

    Raises:
      UserError: rows are not finite, or all zero; it names the first ones.
    """
    bad: dict[str, list[int]] = {"not finite": [], "all zero": []}
    for start in range(0, len(rows), _BLOCK_ROWS):
      block = rows[start : start + _BLOCK_ROWS]
      values = self.take(block)
      is_finite = np.isfinite(values).all(axis=1)
      bad["not finite"] += block[~is_finite].tolist()
      bad["all zero"] += block[~values.any(axis=1)].tolist()
    for what, found in bad.items():
      if found:
        shown = ", ".join(map(str, found[:10])) + ("..." if len(found) > 10 else "")
        raise UserError(
          f"teacher {self.name}: {len(found)} rows are {what}, counted from 0: {shown}; "
          "embed these sentences again"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleRows:
  """Embeddings by example id, which are read like a cache of them.

  Attributes:
    embeddings: those of a text file.
    rows: the row of each example in these, [examples].
  """

  embeddings: Embeddings
  rows: np.ndarray

  @property
  def shape(self) -> tuple[int, int]:
    """The number of examples, and the width."""
    return len(self.rows), self.embeddings.width

  def __getitem__(self, examples: np.ndarray) -> np.ndarray:
    return self.embeddings.take(self.rows[examples])


def open_embeddings(name: str) -> Embeddings:
  """Opens what `is_embeddings` knows, without reading the rows.

  Raises:
    UserError: a file cannot be read, or holds no embeddings of one width.
  """
  if table := _TABLE.fullmatch(name):
    path, columns = files.user_path(table[1]), table[2].split(":")[1:]
    parts, ids = _read_table(name, path, columns)
    id_column = columns[0] if len(columns) > 1 else ""
    made = Embeddings(name, parts, ids, id_column, _text_digest(path))
  else:
    path = files.user_path(name)
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    parts = tuple(map(_map, paths))
    made = Embeddings(name, parts, text_digest=_text_digest(path))
  first = made.parts[0]
  for i, part in enumerate(made.parts):
    if part.ndim != 2 or part.shape[1] == 0 or part.dtype.name not in _TYPES:
      raise UserError(
        f"teacher {name}: an array {list(part.shape)} of {part.dtype}: it must be "
        "[rows, width] of float16 or float32"
      )
    if part.shape[1] != first.shape[1]:
      raise UserError(
        f"teacher {name}: part {i + 1} is {part.shape[1]} wide and the first "
        f"{first.shape[1]}: embed all by one model"
      )
  return made


def _text_digest(path: pathlib.Path) -> str | None:
  beside = path.with_name(f"{path.name}.json")
  if not beside.is_file():
    return None
  about = files.read_json(beside)
  text = about.get("text") if isinstance(about, dict) else None
  return text.get("digest") if isinstance(text, dict) else None


def _map(path: pathlib.Path) -> np.ndarray:
  try:
    # A pickle is never loaded: that would run what it holds.
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    raise UserError(
      f"teacher {path}: no NumPy file that can be mapped ({reason}); write it by "
      "numpy.save, without pickle"
    ) from error


def _read_table(name: str, path: pathlib.Path, columns: list[str]):
  """Reads the parts of the column of vectors, and the ids or None."""
  try:
    import pyarrow as pa  # It is an extra, and slow to load.
    import pyarrow.parquet as pq
  except ImportError as error:
    raise UserError(
      f"teacher {name}: tables need pyarrow: pip install 'dcse_jax[data]'"
    ) from error
  if not path.is_file():
    raise UserError(f"teacher {name}: no such file; check the path")
  try:
    if path.suffix.lower() == ".parquet":
      known = pq.read_schema(path)
      _check_columns(name, known, columns)
      table = pq.read_table(path, columns=columns or _vectors(name, known))
    else:
      table = _map_arrow(pa, path)
      _check_columns(name, table.schema, columns)
  except (OSError, pa.ArrowInvalid) as error:
    raise UserError(
      f"teacher {name}: cannot be read ({str(error).splitlines()[0]}); write it again"
    ) from error
  vector = columns[-1] if columns else _vectors(name, table.schema)[0]
  parts, row = [], 0
  for chunk in table[vector].chunks:
    if len(chunk):
      parts.append(_array(pa, name, chunk, row))
      row += len(chunk)
  if not parts:
    raise UserError(f"teacher {name}: has no rows; write one for each row of the text")
  if len(columns) < 2:
    return tuple(parts), None
  return tuple(parts), [str(each) for each in table[columns[0]].to_pylist()]


def _map_arrow(pa: Any, path: pathlib.Path):
  source = pa.memory_map(str(path))
  try:
    return pa.ipc.open_file(source).read_all()
  except pa.ArrowInvalid:
    # datasets.Dataset keeps this form on disk.
    source.seek(0)
    return pa.ipc.open_stream(source).read_all()


def _vectors(name: str, schema: Any) -> list[str]:
  """Finds the one column of lists that a table has."""
  lists = [field.name for field in schema if "list" in str(field.type)]
  if len(lists) != 1:
    raise UserError(
      f"teacher {name}: name the column of vectors, FILE:COLUMN; the columns there "
      f"are: {', '.join(schema.names)}"
    )
  return lists


def _check_columns(name: str, schema: Any, columns: Sequence[str]) -> None:
  for column in columns:
    if schema.names.count(column) != 1:
      raise UserError(
        f"teacher {name}: no column {column!r}; the columns there are: "
        + ", ".join(schema.names)
      )


def _array(pa: Any, name: str, chunk: Any, first_row: int) -> np.ndarray:
  """Turns a chunk of a column of lists into [n, D]; copies only if there are nulls."""
  if not hasattr(chunk, "flatten") or "list" not in str(chunk.type):
    raise UserError(f"teacher {name}: holds {chunk.type}; name a column of lists")
  if chunk.null_count:
    row = first_row + chunk.is_null().to_pylist().index(True)
    raise UserError(
      f"teacher {name}: row {row} is null, counted from 0: embed it again"
    )
  values = chunk.flatten()
  if pa.types.is_fixed_size_list(chunk.type):
    width = chunk.type.list_size
  else:
    lengths = chunk.value_lengths().to_numpy()
    width = int(lengths[0])
    if other := np.flatnonzero(lengths != width).tolist():
      raise UserError(
        f"teacher {name}: row {first_row + other[0]} is {lengths[other[0]]} wide and "
        f"row {first_row} {width}: embed all by one model"
      )
  return values.to_numpy(zero_copy_only=False).reshape(len(chunk), width)

"""Embeddings from files as a teacher: .npy files and columns of tables.

A name is `FILE.npy`, a folder of such parts in the order of their names, or
`FILE.parquet`, `FILE.arrow` or a folder of Parquet parts with the column of vectors after a
colon, and that of ids before it: `DIR:id:vector`. Row i belongs to row i of the text, or to
the row with its id. Nothing is read into memory whole.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re

import numpy as np

from dcse_jax.data import duplicates
from dcse_jax.data import parts as parts_lib
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import tables

_TABLE = re.compile(r"(.+?)((?::[^:]+){0,2})", re.DOTALL)
_BLOCK_ROWS = 16_384
_TYPES = ("float16", "float32", "float64")


def is_embeddings(name: str) -> bool:
  """Returns whether the name of a teacher is that of embeddings, not of a model."""
  if name.lower().endswith(".npy") or _table_path(name):
    return True
  folder = files.user_path(name)
  if not folder.is_dir() or any(
    (folder / each).exists() for each in parts_lib.OF_MODELS
  ):
    return False
  return any(folder.glob("*.npy"))


def _table_path(name: str) -> tuple[pathlib.Path, list[str]] | None:
  """Returns the path and the columns of a table's name; None for any other name."""
  place, columns = _TABLE.fullmatch(name).groups()
  if place.lower().endswith((".parquet", ".arrow")):
    return files.user_path(place), columns.split(":")[1:]
  path = files.user_path(place)
  if not parts_lib.is_parts(path) or any(path.glob("*.npy")):
    return None
  return path, columns.split(":")[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
  """Embeddings in files, mapped.

  Attributes:
    name: as the user wrote it.
    shapes: the shapes of arrays, each [n, D], that follow each other.
    dtype: the dtype of what `take` returns.
    load: maps these arrays, once they are asked for.
    ids: yields a string for each row of all arrays together; None if the order says it.
    id_column: the column of the ids; "" without ids.
    text_digest: the digest of the text's rows, as `data.text.measure` gives it, if the
      JSON file beside has it, as embed_with writes it.
  """

  name: str
  shapes: tuple[tuple[int, ...], ...]
  dtype: np.dtype
  load: Callable[[], tuple[np.ndarray, ...]]
  ids: Callable[[], Iterator[str]] | None = None
  id_column: str = ""
  text_digest: str | None = None

  def __len__(self) -> int:
    return sum(shape[0] for shape in self.shapes)

  @property
  def width(self) -> int:
    """The width of an embedding."""
    return self.shapes[0][1]

  @functools.cached_property
  def parts(self) -> tuple[np.ndarray, ...]:
    """The arrays, [n, D]; those of a table may be divided in another way."""
    return self.load()

  @functools.cached_property
  def _starts(self) -> np.ndarray:
    return np.cumsum([0] + [len(part) for part in self.parts])

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
    for each in self.ids() if self.ids else ():
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

  def rows_by_id(self, ids: Iterable[str], source: str) -> np.ndarray:
    """Finds rows by their ids, [ids]; memory holds some 32 bytes for each.

    Args:
      ids: those of a text's rows.
      source: the text, for errors.

    Raises:
      UserError: an id stands here twice, or not at all.
    """
    own = np.concatenate([digests for _, digests in _digests(self.ids())])
    again = np.flatnonzero(duplicates.repeats(own))
    if len(again):
      row = int(again[0])
      first = int(np.argmax(own == own[row]))
      each = next(itertools.islice(self.ids(), row, None))
      raise UserError(
        f"teacher {self.name}: the id {each!r:.80} stands in rows {first} and "
        f"{row}: leave one of them out"
      )
    order = np.argsort(own)
    own = own[order]
    found, missing, example = [], 0, ""
    for names, digests in _digests(ids):
      places = np.minimum(np.searchsorted(own, digests), len(own) - 1)
      is_missing = own[places] != digests
      if is_missing.any():
        example = example or names[int(np.argmax(is_missing))]
        missing += int(is_missing.sum())
      found.append(order[places])
    found = np.concatenate(found)
    if missing:
      raise UserError(
        f"teacher {self.name}: {missing} of {len(found)} rows of {source} have no "
        f"embedding, the first with the id {example!r:.80} in column "
        f"{self.id_column!r}: add them"
      )
    return found

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


def _digests(ids: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray]]:
  """Yields ids, some at a time, with the digest of each."""
  ids = iter(ids)
  while names := list(itertools.islice(ids, _BLOCK_ROWS)):
    yield names, np.asarray([duplicates.digest(n.encode()) for n in names], np.uint64)


def open_embeddings(name: str, store: pathlib.Path | None = None) -> Embeddings:
  """Opens what `is_embeddings` knows, without reading the rows.

  Args:
    name: the teacher's.
    store: the folder of the disk that keeps what Parquet files hold, unpacked; None
      unpacks into memory.

  Raises:
    UserError: a file cannot be read, or holds no embeddings of one width.
  """
  if found := _table_path(name):
    path, columns = found
    table = tables.open_table(name, path, columns)
    shapes, dtypes = table.shapes, table.dtypes
    load = functools.partial(table.load, store)
    ids, id_column = table.ids if table.id_column else None, table.id_column
  else:
    path = files.user_path(name)
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    parts = tuple(map(_map, paths))
    shapes, dtypes = zip(*((part.shape, part.dtype) for part in parts))
    load, ids, id_column = lambda: parts, None, ""
  for i, (shape, dtype) in enumerate(zip(shapes, dtypes)):
    if len(shape) != 2 or shape[1] == 0 or dtype.name not in _TYPES:
      raise UserError(
        f"teacher {name}: an array {list(shape)} of {dtype}: it must be "
        "[rows, width] of float16 or float32"
      )
    if shape[1] != shapes[0][1]:
      raise UserError(
        f"teacher {name}: part {i + 1} is {shape[1]} wide and the first "
        f"{shapes[0][1]}: embed all by one model"
      )
  # A step computes in float32 in any case.
  narrow = [np.float32 if dtype.itemsize > 4 else dtype for dtype in dtypes]
  dtype = np.result_type(np.float16, *narrow)
  text_digest = _text_digest(path)
  return Embeddings(name, shapes, dtype, load, ids, id_column, text_digest)


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

"""Embeddings from files together with their sentences, read block by block."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from dcse_jax.data import arrow
from dcse_jax.data import parts
from dcse_jax.data.lines import Lines
from dcse_jax.embed import calibration
from dcse_jax.embed import row_file
from dcse_jax.embed.precision import has_ranges
from dcse_jax.embed.precision import middles
from dcse_jax.embed.precision import precision_of
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

# Rows that are read at a time.
BLOCK = 32_768
_ID, _EMBEDDING = "id", "embedding"


@dataclasses.dataclass(frozen=True)
class Embedded:
  """Embeddings and their sentences.

  Attributes:
    name: what people call them.
    rows: how many there are.
    width: the numbers of an embedding, D.
    text: a digest of the sentences.
    blocks: yields the embeddings in order, floats [m, D].
    sentences: yields the sentences in order.
  """

  name: str
  rows: int
  width: int
  text: str
  blocks: Callable[[], Iterator[np.ndarray]]
  sentences: Callable[[], Iterator[str]]


def of_rows(name: str, rows: np.ndarray, lines: Lines) -> Embedded:
  """Joins rows in memory or in a file, floats [n, D], with as many lines.

  Raises:
    UserError: there are more of one than of the other.
  """
  _check_number(name, len(rows), len(lines))
  return Embedded(
    name,
    *rows.shape,
    lines.digest,
    lambda: (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)),
    lines.iterate,
  )


def open_embedded(
  embeddings: str, width: int, lines: Lines | None, column: str | None = None
) -> Embedded:
  """Opens embeddings that were made before.

  Args:
    embeddings: a .npy file that encode wrote, of floats or of eight bits with their
      ranges beside; or a folder of Parquet parts in the order of their names, with a
      column "embedding" of lists, and ranges.npy for eight bits.
    width: the numbers of the model's embeddings.
    lines: the sentences; None where the parts have a column of them.
    column: its name; None where the parts have one column of text besides "id".

  Raises:
    UserError: they cannot be read, are not of that width, or not as many as the lines.
  """
  path = files.user_path(embeddings)
  if path.is_dir():
    return _open_parts(path, width, lines, column)
  if column:
    raise UserError(
      f"--column={column} is for a folder of parts, and {embeddings} is none: leave it out"
    )
  if lines is None:
    raise UserError(
      f"{embeddings} holds no sentences: give the text that it was made of by "
      "--sentences FILE.txt"
    )
  rows = row_file.read(path)
  precision = precision_of(rows, width)
  if precision is None or precision.endswith("binary"):
    raise UserError(
      f"{embeddings} holds {rows.dtype} of shape {rows.shape}, and an index is made of "
      f"floats or eight bits for each of this model's {width} numbers: encode with it"
    )
  made = of_rows(embeddings, rows, lines)
  if not has_ranges(precision):
    return made
  ranges = row_file.read(calibration.ranges_path(path))
  return dataclasses.replace(
    made, blocks=lambda: (middles(block, ranges) for block in made.blocks())
  )


def _check_number(name: str, rows: int, lines: int) -> None:
  if rows != lines:
    raise UserError(
      f"{name} has {rows} embeddings, and there are {lines} sentences: encode these"
    )


def _open_parts(
  folder: pathlib.Path, width: int, lines: Lines | None, column: str | None
) -> Embedded:
  """Opens a folder of Parquet parts."""
  paths = parts.paths(folder)
  if not paths:
    raise UserError(
      f"{folder} has no Parquet parts, NAME.parquet: name what encode wrote"
    )
  rows, ranges = 0, None
  for path in paths:
    with _opened(path) as file:
      rows += file.metadata.num_rows
      if _has_ranges(path, file.schema_arrow, width):
        ranges = row_file.read(folder / "ranges.npy")
      if lines is None:
        column = _text_column(path, file.schema_arrow, column)
  if lines is None:
    sentences = lambda: _column(paths, column)
    state = hashlib.blake2b()
    for sentence in sentences():  # As that of a file with these lines.
      state.update(f"{sentence}\n".encode())
    text = state.hexdigest()
  else:
    _check_number(str(folder), rows, len(lines))
    if column:
      raise UserError(f"--column={column} and --sentences exclude each other: give one")
    for number, each in enumerate(_column(paths, _ID)):
      if str(each) != str(number):
        raise UserError(
          f"{folder}: row {number} (from 0) has the id {each!r:.80}, so that its line is "
          "not known: keep the text in a column of the parts, and leave out --sentences"
        )
    sentences, text = lines.iterate, lines.digest
  blocks = lambda: _vectors(paths, width, ranges)
  return Embedded(str(folder), rows, width, text, blocks, sentences)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  """Opens a Parquet file."""
  pa = arrow.load(str(path))
  import pyarrow.parquet as pq

  try:
    with pq.ParquetFile(path) as file:
      yield file
  except (pa.ArrowException, OSError) as error:
    raise UserError(f"{path}: cannot be read ({error}): encode it again") from error


def _has_ranges(path: pathlib.Path, schema: Any, width: int) -> bool:
  """Checks the embeddings of a part; returns whether they are of eight bits."""
  import pyarrow as pa

  names = schema.names
  kind = schema.field(_EMBEDDING).type if names.count(_EMBEDDING) == 1 else None
  if kind is None or not pa.types.is_fixed_size_list(kind):
    raise UserError(
      f"{path}: no column {_EMBEDDING!r} of lists of one size; the columns there are: "
      f"{', '.join(names)}"
    )
  is_small = kind.value_type in (pa.int8(), pa.uint8())
  if kind.list_size != width or not (is_small or pa.types.is_floating(kind.value_type)):
    raise UserError(
      f"{path} has embeddings of {kind.list_size} {kind.value_type}, and an index is "
      f"made of floats or eight bits for each of this model's {width} numbers: encode "
      "with it"
    )
  return is_small


def _text_column(path: pathlib.Path, schema: Any, column: str | None) -> str:
  """Returns the name of the column of sentences."""
  import pyarrow as pa

  is_text = lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)
  names = [f.name for f in schema if is_text(f.type) and f.name != _ID]
  if column not in (names if column else [None]) or (not column and len(names) != 1):
    raise UserError(
      f"{path}: its columns of text are {', '.join(names) or 'none'}: name the one of "
      "the sentences by --column, or a text with as many lines by --sentences"
    )
  return column or names[0]


def _column(paths: list[pathlib.Path], name: str) -> Iterator[Any]:
  """Yields the values of a column."""
  types = [(str,)] if name != _ID else [(str, int)]
  for path in paths:
    for row, cells in enumerate(arrow.rows(os.fspath(path), [name], types)):
      if not cells:
        raise UserError(f"{path}: {name!r} of row {row} (from 0) is null: encode anew")
      yield cells[0]


def _vectors(
  paths: list[pathlib.Path], width: int, ranges: np.ndarray | None
) -> Iterator[np.ndarray]:
  """Yields the embeddings of parts, floats [m, D]."""
  for path in paths:
    with _opened(path) as file:
      for group in range(file.num_row_groups):
        for batch in file.iter_batches(BLOCK, [group], columns=[_EMBEDDING]):
          vectors = batch.column(0)
          numbers = vectors.flatten()
          if len(numbers) != len(vectors) * width or numbers.null_count:
            raise UserError(f"{path}: an embedding is null: encode it again")
          rows = numbers.to_numpy(zero_copy_only=False).reshape(-1, width)
          yield rows if ranges is None else middles(rows, ranges)

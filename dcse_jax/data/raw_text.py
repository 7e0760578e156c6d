"""Text that is to be cleaned: the files behind names, and their rows with ids."""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import os
import pathlib

from dcse_jax.data import decoding
from dcse_jax.data import hf
from dcse_jax.data import readers
from dcse_jax.data import sources
from dcse_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class File:
  """A file of text.

  Attributes:
    source: where it is, and which share of it is read.
    name: begins the ids of its rows: its path inside the folder that holds all files.
  """

  source: sources.Source
  name: str

  def identity(self) -> dict[str, str | int | float]:
    """Returns its name, its share, and a digest of its bytes."""
    try:
      with open(self.source.name, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        size = file.tell()
    except OSError as error:
      raise decoding.user_error(
        f"{self.source.name}: cannot be read ({error.strerror}); check its permissions"
      ) from error
    return {
      "name": self.name,
      "share": self.source.share,
      "bytes": size,
      "blake2b": digest.hexdigest(),
    }


def find(names: Sequence[str]) -> list[File]:
  """Lists files by their names, patterns and folders, as `sources.expand` orders them.

  A folder stands for the files in it that can be read, by name.

  Raises:
    UserError: there is no such file, or it comes twice.
  """
  found = []
  for each in sources.expand(names):
    if each.name.startswith(readers.PREFIXES) or hf.is_saved(each.name):
      raise decoding.user_error(
        f"{each.name}: is a set and no file of text; name the files, such as its .arrow "
        "or .parquet ones"
      )
    if os.path.isdir(each.name):
      found += [sources.Source(path, each.share) for path in _inside(each.name)]
    else:
      decoding.check_file(each.name)
      found.append(each)
  paths = [os.path.abspath(each.name) for each in found]
  path, times = collections.Counter(paths).most_common(1)[0]
  if times > 1:
    raise decoding.user_error(f"{path}: is named twice; name it once")
  root = os.path.commonpath([os.path.dirname(path) for path in paths])
  # A name that is not UTF-8 is spelled out.
  spell = lambda path: os.fsencode(path).decode("utf-8", "backslashreplace")
  name = lambda path: pathlib.PurePath(os.path.relpath(path, root)).as_posix()
  return [File(each, spell(name(path))) for each, path in zip(found, paths)]


def _inside(folder: str) -> list[str]:
  known = lambda name: name.lower().removesuffix(".gz").endswith(readers.SUFFIXES)
  names = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_file() and entry.name[0] not in "._" and known(entry.name)
  )
  if not names:
    raise decoding.user_error(
      f"{folder}: holds no text: no file in it ends in {', '.join(readers.SUFFIXES)}"
    )
  return [os.path.join(folder, name) for name in names]


def rows(
  file: File, place: int, column: str, id_column: str
) -> Iterator[tuple[str, str] | None]:
  """Yields the id and the text of each row of a file that is drawn.

  Args:
    file: the file.
    place: its number among all files.
    column: a table's column of text.
    id_column: a table's column of ids; "" makes ids of name and row, from 0.

  Yields:
    The id, and the text, "" for a blank row; None in place of both for one that the
    file's share leaves out.

  Raises:
    UserError: a row cannot be read, or has no id.
  """
  cells = _cells(file, column, id_column)
  for number, (row, is_drawn) in enumerate(zip(cells, file.source.drawn(place))):
    if not is_drawn:
      yield None
      continue
    text, own = row[0] if row else "", f"{file.name}:{number}"
    if id_column and row:
      own = "" if row[1] is None else str(row[1]).strip()
      if not own or "\n" in own:
        raise decoding.user_error(
          f"{file.source.name} row {number}: {row[1]!r:.80} in column {id_column!r} is no "
          "id: give each row one of a line, or leave out --id_column"
        )
    yield own, text or ""


def _cells(file: File, column: str, id_column: str) -> Iterator[Sequence]:
  path = file.source.name
  reader = readers.find(path)
  if not reader.columns:
    text = (str, type(None))
    named, types = [column], [text]
    if id_column:
      named, types = [column, id_column], [text, (str, int, type(None))]
    return reader.rows(path, named, types)
  if id_column:
    raise decoding.user_error(
      f"{path}: has no columns, so there is no {id_column!r}: leave out --id_column"
    )
  return reader.rows(path, reader.columns(path))


def check(files: Sequence[File], column: str, id_column: str) -> None:
  """Reads the first row of each file, so that what cannot be read is told early.

  Raises:
    UserError: one cannot be read, or lacks a column.
  """
  for place, file in enumerate(files):
    next(rows(file, place, column, id_column), None)
  if id_column and column == id_column:
    raise UserError(f"--column and --id_column are both {column!r}: name two")

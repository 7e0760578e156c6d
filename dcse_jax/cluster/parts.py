"""The parts that a text is divided into: which rows of which file each one has."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from dcse_jax.cluster import places
from dcse_jax.cluster import tables
from dcse_jax.data import arrow
from dcse_jax.data import decoding
from dcse_jax.runtime.errors import UserError

# Rows of a part: what is done again when the machine that does it dies.
PART_ROWS = 65_536

_BLOCK_BYTES = 1 << 24
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Part:
  """Some rows of one file.

  Attributes:
    number: that of the part, from 0.
    file: the file's name, as `places.resolve` takes it.
    shown: its name without the folder that all files share.
    first: the first row's number in the file, from 0.
    rows: how many there are.
    start: where the first row begins in a plain text, in bytes.
    before: how many rows the files before this one have.
  """

  number: int
  file: str
  shown: str
  first: int
  rows: int
  start: int
  before: int

  @property
  def name(self) -> str:
    """The name of what is made from it, without a suffix."""
    return f"part-{self.number:06d}"

  def begin(self, rows: int) -> "Part":
    """Returns the first rows of the part, at most as many as asked for."""
    return dataclasses.replace(self, rows=min(rows, self.rows))


@dataclasses.dataclass(frozen=True)
class Source:
  """A text, divided.

  Attributes:
    parts: in the order of files and rows.
    files: name, size and digest of each file, JSON.
    layout: which columns are read, the same in all files.
  """

  parts: list[Part]
  files: list[list[Any]]
  layout: tables.Layout

  @property
  def rows(self) -> int:
    """How many rows there are, bad ones included."""
    return sum(part.rows for part in self.parts)


@dataclasses.dataclass(frozen=True)
class _Survey:
  """What is known of a file before it is read.

  Attributes:
    rows: how many it has.
    size: its bytes.
    digest: that of its bytes; where it is Parquet, that of its footer, which has the
      sizes, places and extremes of all columns.
    starts: where parts begin, in bytes; () for tables.
    schema: the columns of a table; None for a plain text.
  """

  rows: int
  size: int
  digest: str
  starts: Sequence[int] = ()
  schema: Any = None


def divide(name: str, columns: tables.Columns, part_rows: int = PART_ROWS) -> Source:
  """Divides a text into parts, the same at every time.

  A text that is packed by gzip is one part, since its rows can only be reached through
  those before; everything else has `part_rows` rows in a part, or fewer at a file's end.

  Args:
    name: see `places.find`.
    columns: those that are asked for.
    part_rows: rows of a part, above 0.

  Raises:
    UserError: a file cannot be read, lacks a column or has another type of it than the
      files before; or there is no row at all.
  """
  arrow.load(name)
  names = places.find(name)
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    surveys = list(pool.map(functools.partial(_survey, part_rows=part_rows), names))
  layout = tables.layout_of(
    columns, {n: each.schema for n, each in zip(names, surveys) if each.rows}
  )
  parts, before = [], 0
  shown = places.short_names(names)
  for each, short, survey in zip(names, shown, surveys):
    is_packed = each.lower().endswith(".gz")
    step = survey.rows if is_packed else part_rows
    for number, first in enumerate(range(0, survey.rows, step or 1)):
      rows = min(step, survey.rows - first)
      start = survey.starts[number] if survey.starts else 0
      parts.append(Part(len(parts), each, short, first, rows, start, before))
    before += survey.rows
  if not parts:
    raise UserError(f"{name} is empty: nothing to embed")
  files = [[n, each.size, each.digest] for n, each in zip(shown, surveys)]
  return Source(parts, files, layout)


def _survey(name: str, part_rows: int) -> _Survey:
  if name.lower().endswith((".txt", ".gz")):
    return _survey_text(name, part_rows)
  if name.lower().endswith(".parquet"):
    size, footer = _footer(name)
    digest = hashlib.blake2b(footer, digest_size=16)
  else:
    size, digest = 0, hashlib.blake2b(digest_size=16)
    with places.opened(name) as file:
      while block := file.read(_BLOCK_BYTES):
        size += len(block)
        digest.update(block)
  rows, schema = tables.measure(name)
  return _Survey(rows, size, digest.hexdigest(), schema=schema)


def _survey_text(name: str, part_rows: int) -> _Survey:
  """Counts the lines of a text, and finds where every `part_rows`-th begins."""
  starts, lines, size, last = [0], 0, 0, b""
  digest, has_carriage_return = hashlib.blake2b(digest_size=16), False
  with places.opened(name) as file:
    while block := file.read(_BLOCK_BYTES):
      digest.update(block)
      ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
      # The line after the i-th end, from 0, is line i + 1.
      chosen = ends[(lines + 1 + np.arange(len(ends))) % part_rows == 0]
      starts += (chosen + size + 1).tolist()
      lines, size, last = lines + len(ends), size + len(block), block[-1:]
      has_carriage_return |= b"\r" in block
  if has_carriage_return and not lines:
    raise decoding.old_line_ends(name)
  lines += last not in (b"", b"\n")
  return _Survey(lines, size, digest.hexdigest(), starts)


def _footer(name: str) -> tuple[int, bytes]:
  """Returns the size of a Parquet file, and the bytes of its footer."""
  with places.opened(name) as file:
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > size - 8:
      raise UserError(
        f"{name}: cannot be read as its suffix says (it has no footer); copy or write it "
        "again"
      )
    file.seek(size - 8 - length)
    return size, file.read(length)

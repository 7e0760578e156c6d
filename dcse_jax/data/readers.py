"""The kinds of sources of text, and what reads each."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
from typing import Any

from dcse_jax.data import arrow
from dcse_jax.data import decoding
from dcse_jax.data import hf
from dcse_jax.data import parts
from dcse_jax.data import tables
from dcse_jax.data import tfds


@dataclasses.dataclass(frozen=True)
class Reader:
  """The reader of one kind of source.

  Attributes:
    rows: yields the cells of each row, from the source, its columns and, for each, the
      types that a cell may have; [] for a blank row.
    columns: returns the columns of a source that has none to choose from; None where
      the user names them.
    default: the columns of a source where the user may name others.
  """

  rows: Callable[..., Iterator[Sequence[Any]]]
  columns: Callable[[str], Sequence[str]] | None = None
  default: tuple[str, ...] = ()


def _plain_rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[str]]:
  del columns, types
  return ((line,) for line in decoding.lines(source))


# The readers of what is no path, by how the name begins.
_NAMED = {
  "tfds:": Reader(tfds.rows, columns=tfds.columns),
  "hf:": Reader(hf.rows, columns=hf.columns),
}
# The readers of files by suffix; a new kind of file is one more line.
_FILES = {
  ".txt": Reader(_plain_rows, columns=lambda source: ("sentence",)),
  ".csv": Reader(tables.csv_rows),
  ".tsv": Reader(tables.tsv_rows),
  ".jsonl": Reader(tables.jsonl_rows),
  ".parquet": Reader(arrow.rows),
  ".arrow": Reader(arrow.rows),
}
PREFIXES = tuple(_NAMED)
SUFFIXES = tuple(_FILES)
TABLES = [suffix for suffix, reader in _FILES.items() if not reader.columns]


def find(source: str) -> Reader:
  """Returns the reader of a source.

  Args:
    source: a path, or what begins with one of `PREFIXES`.

  Raises:
    UserError: there is no such file, or it is of no kind that is known.
  """
  for prefix, reader in _NAMED.items():
    if source.startswith(prefix):
      return reader
  if hf.is_saved(source):
    return Reader(hf.saved_rows)
  if parts.is_parts(source):
    return Reader(parts.rows, default=("text",))
  decoding.check_file(source)
  suffix = os.path.splitext(source.lower().removesuffix(".gz"))[1]
  if suffix not in _FILES:
    raise decoding.user_error(
      f"{source}: unknown kind of file; its name must end in {', '.join(_FILES)}; text "
      "may be followed by .gz"
    )
  return _FILES[suffix]

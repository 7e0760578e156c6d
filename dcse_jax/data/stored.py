"""Sentences on disk that are read like a list, for texts beyond memory."""

import array
from collections.abc import Iterator, Sequence
import errno
import operator
import os
import pathlib
import tempfile
import weakref

import numpy as np

from dcse_jax.runtime import files

# How many sentences are read at a time, and how many have one mark.
_BLOCK = 128


class StoredColumn(Sequence):
  """A list of sentences in a file that nobody sees; memory holds a block of them.

  The file has no name and is gone with the object, or with the process. Sentences are
  lines in it, and memory has the place of every 128th.

  Args:
    folder: on the disk that gets the file.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._starts = array.array("q", [0])
    self._last: list[str] = []  # Those after the last block.
    self._read: tuple[int, list[str]] = (-1, [])
    files.make_folder(folder)
    try:
      self._file, name = tempfile.mkstemp(dir=folder)
      os.unlink(name)
    except OSError as error:
      raise files.cannot_write(folder, error) from error
    weakref.finalize(self, os.close, self._file)

  def append(self, sentence: str) -> None:
    """Adds a sentence, which holds no line feed."""
    self._last.append(sentence)
    if len(self._last) < _BLOCK:
      return
    content = "\n".join(self._last).encode()
    try:
      if os.write(self._file, content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
      raise files.cannot_write(self._folder, error) from error
    self._starts.append(self._starts[-1] + len(content))
    self._last = []

  def __len__(self) -> int:
    return (len(self._starts) - 1) * _BLOCK + len(self._last)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self._get(row) for row in range(len(self))[index]]
    return self._get(range(len(self))[operator.index(index)])

  def __iter__(self) -> Iterator[str]:
    return map(self._get, range(len(self)))

  def _get(self, row: int) -> str:
    number, place = divmod(row, _BLOCK)
    if number == len(self._starts) - 1:
      return self._last[place]
    known, block = self._read
    if known != number:
      start, stop = self._starts[number : number + 2]
      # This moves no position, so that threads may read, and a writer go on.
      content = os.pread(self._file, stop - start, start)
      block = content.decode().split("\n")
      self._read = number, block
    return block[place]


class Chosen(Sequence):
  """Some rows of a column.

  Args:
    column: sentences.
    rows: the numbers of those to take, [n].
  """

  def __init__(self, column: Sequence[str], rows: np.ndarray):
    self._column, self._rows = column, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self._column[row] for row in self._rows[index].tolist()]
    return self._column[int(self._rows[index])]

"""Sentences in two files of a folder, read by their numbers."""

from collections.abc import Iterator, Sequence
import contextlib
import pathlib

import numpy as np

_TEXT, _ENDS = "text.utf8", "text.ends"


class Writer:
  """Two open files that sentences are added to: see `writing`."""

  def __init__(self, text, ends):
    self._text, self._ends, self._end = text, ends, 0

  def add(self, sentences: Sequence[str]) -> None:
    """Adds sentences, some thousands at a time."""
    contents = [sentence.encode() for sentence in sentences]
    self._text.write(b"".join(contents))
    ends = self._end + np.cumsum([len(each) for each in contents], dtype="<i8")
    self._ends.write(ends.tobytes())
    if contents:
      self._end = int(ends[-1])


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[Writer]:
  """Opens a folder's files, anew, for sentences to be added."""
  with (folder / _TEXT).open("wb") as text, (folder / _ENDS).open("wb") as ends:
    yield Writer(text, ends)


class KeptText(Sequence):
  """The sentences that were written to a folder; memory holds none of them.

  Args:
    folder: where they are.
  """

  def __init__(self, folder: pathlib.Path):
    self._ends = np.memmap(folder / _ENDS, "<i8", "r")
    self._path = folder / _TEXT

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, row: int) -> str:
    row = range(len(self))[row]
    start = int(self._ends[row - 1]) if row else 0
    with self._path.open("rb") as file:
      file.seek(start)
      return file.read(int(self._ends[row]) - start).decode()

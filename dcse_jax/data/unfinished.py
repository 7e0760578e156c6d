"""The folder beside an output that is not finished: files that grow chunk by chunk."""

import collections
from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import os
import pathlib
import sys
from typing import Any

import numpy as np
import tqdm

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

# After as many chunks what is there is brought to the disk, and a run can go on from it.
_CHUNKS_KEPT = 16


@dataclasses.dataclass(frozen=True)
class Chunk:
  """What comes of some rows.

  Attributes:
    content: what is appended to files, by name: bytes, or the rows of an array.
    counts: numbers that are added up.
  """

  content: dict[str, bytes | np.ndarray]
  counts: collections.Counter[str]


class Unfinished:
  """The folder of what is not finished: files that grow, and how far they are.

  Args:
    folder: it is made if need be.
    origin: what all is made from.

  Raises:
    UserError: the folder has something of another origin.
  """

  def __init__(self, folder: pathlib.Path, origin: dict[str, Any]):
    self.folder, self._progress = folder, folder / "progress.json"
    self.origin = origin
    self.about = {**origin, "chunks": 0, "is_read": False, "counts": {}, "sizes": {}}
    if self._progress.exists():
      about = files.read_json(self._progress)
      if {key: about.get(key) for key in origin} != origin:
        raise UserError(
          f"{folder} has the beginning of an output of other text or settings: remove it, "
          "or name another output"
        )
      self.about = about
    files.make_folder(folder)

  def array(self, name: str, dtype: type, width: int = 1) -> np.ndarray:
    """Maps a file of rows, [n] or [n, width]."""
    shape = (-1,) if width == 1 else (-1, width)
    path = self.folder / name
    if not path.exists() or not path.stat().st_size:  # Such a file cannot be mapped.
      return np.empty((0, width)[: len(shape)], dtype)
    return np.asarray(np.memmap(path, dtype, "r")).reshape(shape)

  def lines(self, name: str) -> Iterator[str]:
    """Yields the lines of a file."""
    with (self.folder / name).open(encoding="utf-8", newline="\n") as file:
      for line in file:
        yield line[:-1]

  def grow(self, results: Iterable[Chunk]) -> None:
    """Appends results to files, which are cut to what counts of them first."""
    with contextlib.ExitStack() as stack:
      growing = {}

      def append(name: str, content: bytes | np.ndarray) -> None:
        if name not in growing:
          file = stack.enter_context((self.folder / name).open("ab"))
          file.truncate(self.about["sizes"].get(name, 0))
          growing[name] = file
        growing[name].write(content)

      def save(is_read: bool) -> None:
        for name, file in growing.items():
          file.flush()
          os.fsync(file.fileno())
          self.about["sizes"][name] = os.fstat(file.fileno()).st_size
        self.about["is_read"] = is_read
        files.write_json(self._progress, self.about)

      counts = collections.Counter(self.about["counts"])
      bar = tqdm.tqdm(
        desc="cleaning",
        unit="row",
        initial=counts["rows"],
        disable=not sys.stderr.isatty(),
      )
      stack.enter_context(bar)
      for result in results:
        bar.update(result.counts["rows"])
        for name, content in result.content.items():
          append(name, content)
        counts.update(result.counts)
        self.about["counts"] = dict(counts)
        self.about["chunks"] += 1
        if self.about["chunks"] % _CHUNKS_KEPT == 0:
          save(False)
      save(True)

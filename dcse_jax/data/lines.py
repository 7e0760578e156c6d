"""The lines of a text file as they are: line i belongs to row i elsewhere."""

from collections.abc import Iterator, Sequence
import hashlib
import itertools
import sys

import numpy as np

from dcse_jax.data import decoding
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_BLOCK_BYTES = 1 << 24


class Lines(Sequence):
  """A UTF-8 file with a sentence on each line, plain or gzipped, of any size.

  Memory holds only where lines begin. A line feed ends a line, and nothing else does;
  the last line may lack it. An empty line counts, so that the numbers fit. Lines are
  whole except for their ends, CRs included, and a byte order mark before the first. A
  gzipped file is unpacked anew up to a line whenever that line is read.

  Args:
    source: the file's path.

  Attributes:
    digest: a digest of the content.

  Raises:
    UserError: the file cannot be read, or its lines end in CR alone.
  """

  def __init__(self, source: str):
    self._source = str(files.user_path(source))
    decoding.check_file(self._source)
    starts, size, digest = [np.zeros(1, np.int64)], 0, hashlib.blake2b()
    carriage_return = False
    with decoding.open_bytes(self._source) as file:
      while block := file.read(_BLOCK_BYTES):
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        starts.append(ends + size + 1)
        size += len(block)
        carriage_return |= b"\r" in block
        digest.update(block)
    self.digest = digest.hexdigest()
    starts = np.concatenate(starts)
    self._starts = starts[starts < size]  # There is no line after the last end.
    if carriage_return and len(starts) == 1:
      self[0]  # A line that is not UTF-8 is refused for that.
      raise decoding.old_line_ends(self._source)

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, number: int) -> str:
    if not 0 <= number < len(self):
      raise IndexError(f"line {number} of {len(self)}")
    return next(self.iterate(number))

  def __iter__(self) -> Iterator[str]:
    return self.iterate()

  def iterate(self, first: int = 0) -> Iterator[str]:
    """Yields the lines from a number on, without their ends.

    Raises:
      UserError: a line, which it names, is not UTF-8; or there are fewer lines now.
    """
    if first >= len(self):
      return
    with decoding.open_bytes(self._source) as file:
      file.seek(int(self._starts[first]))
      for number in range(first, len(self)):
        content = file.readline()
        if not content:
          raise UserError(
            f"{self._source} has lost lines while it was read: run the same command again"
          )
        try:
          line = content.decode("utf-8")
        except UnicodeDecodeError as error:
          raise decoding.not_utf8(self._source, number + 1, error) from error
        line = line.removeprefix("\ufeff") if number == 0 else line
        yield line.rstrip("\r\n")


def input_lines() -> Iterator[str]:
  """Yields the lines of standard input as they come.

  Raises:
    UserError: a line is not UTF-8, or standard input cannot be read.
  """
  lines = iter(sys.stdin.buffer if sys.stdin else ())
  for number in itertools.count(1):
    try:
      content = next(lines, b"")
    except OSError as error:
      raise UserError(f"cannot read standard input ({error.strerror})") from error
    if not content:
      return
    try:
      line = content.decode("utf-8")
    except UnicodeDecodeError as error:
      raise decoding.not_utf8("standard input", number, error) from error
    yield line.removeprefix("\ufeff") if number == 1 else line

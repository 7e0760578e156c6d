"""Decodes the bytes of a user's file into lines, with errors that name the line."""

import codecs
from collections.abc import Collection, Iterator
import contextlib
import gzip
import itertools
import os
import re
from typing import BinaryIO
import zlib

from dcse_jax.runtime.errors import UserError

_BLOCK_BYTES = 1 << 24

# The first bytes of files that are mistaken for UTF-8.
_NOT_UTF8 = {
  codecs.BOM_UTF16_LE: "looks like UTF-16; re-save it as UTF-8",
  codecs.BOM_UTF16_BE: "looks like UTF-16; re-save it as UTF-8",
  b"\x1f\x8b": "looks like a gzip file; add .gz to its name",
}

# The first bytes of files compressed by other programs than gzip; some look like text.
_COMPRESSED = {
  rb"BZh[1-9]1AY&SY": "bzip2",
  rb"\xfd7zXZ\0": "xz",
  rb"\x28\xb5\x2f\xfd": "zstd",
  rb"\x04\x22\x4d\x18": "lz4",
  rb"PK\x03\x04[\x0a-\x3f]\0": "zip",
  rb"7z\xbc\xaf\x27\x1c": "7-Zip",
}


def user_error(message: str) -> UserError:
  """Makes an error of one line."""
  # Names come from the user's files and may hold line breaks.
  return UserError(" ".join(message.split()))


def kind_of(types: Collection[type]) -> str:
  """Names what a column of cells of these types holds, for errors."""
  return "number" if float in types else "string"


def names(values: Collection[str]) -> str:
  """Lists names for a message, cut short, since a bad file may have long ones."""
  shown = [
    repr(name if len(name) <= 60 else name[:60] + "...")
    for name in itertools.islice(values, 20)
  ]
  return ", ".join([*shown, "..."] if len(values) > 20 else shown) or "none"


def check_file(source: str) -> None:
  """Raises a UserError if this is not a file; a pipe would wait for its writer."""
  if os.path.isdir(source):
    raise user_error(f"{source}: is a directory; name one file in it")
  if not os.path.exists(source):
    raise user_error(f"{source}: no such file; check the path")
  if not os.path.isfile(source):
    raise user_error(f"{source}: is a pipe or device; write the text to a file")


@contextlib.contextmanager
def open_bytes(source: str) -> Iterator[BinaryIO]:
  """Opens a file, unpacking .gz; what fails while it is open raises a UserError."""
  opener = gzip.open if source.lower().endswith(".gz") else open
  try:
    with opener(source, "rb") as file:
      begin = file.peek(16)
      for pattern, kind in _COMPRESSED.items():
        if re.match(pattern, begin):
          raise user_error(
            f"{source}: is compressed by {kind}, which is not read: unpack it, or "
            "compress it by gzip"
          )
      yield file
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise user_error(
      f"{source}: not a whole gzip file ({error}); copy or compress it "
      "again, or drop .gz if it is not compressed"
    ) from error
  except OSError as error:
    raise user_error(
      f"{source}: cannot be read ({error.strerror}); check the file and its permissions"
    ) from error


def lines(source: str) -> Iterator[str]:
  """Decodes lines and leaves out line feeds; no other character ends a line."""
  lines_before = 0
  with open_bytes(source) as file:
    while block := file.read(_BLOCK_BYTES):
      block += file.readline()  # A block ends where a line does.
      if lines_before == 0:
        block = block.removeprefix(codecs.BOM_UTF8)
      try:
        lines = block.decode("utf-8").split("\n")
      except UnicodeDecodeError as error:
        good = block[: block.rfind(b"\n", 0, error.start) + 1]
        lines = good.decode("utf-8").split("\n")[:-1]
        yield from lines  # An earlier fault must be named first.
        raise not_utf8(source, lines_before + len(lines) + 1, error) from error
      if lines_before == 0 and len(lines) == 1 and "\r" in lines[0]:
        raise old_line_ends(source)
      if not lines[-1]:
        lines.pop()  # This is what follows the block's last line feed.
      del block  # It may be one huge line.
      lines_before += len(lines)
      yield from lines


def not_utf8(source: str, line: int, error: UnicodeDecodeError) -> UserError:
  """Makes the error for a line, counted from 1, that could not be decoded."""
  content, at = error.object, error.start
  byte = at - content.rfind(b"\n", 0, at)
  what = f"not valid UTF-8 (byte {byte} is 0x{content[at]:02x}); re-save it as UTF-8"
  if line == 1:
    what = _NOT_UTF8.get(content[:2], what)
  return user_error(f"{source} line {line}: {what}")


def old_line_ends(source: str) -> UserError:
  """Makes the error for a file whose only line ends are those of old Macs."""
  return user_error(
    f"{source} line 1: its lines end in CR alone; re-save it with LF or CRLF line ends"
  )

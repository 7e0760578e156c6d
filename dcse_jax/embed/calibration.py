"""The ranges that rows of eight bits are divided by: measured, kept, and read again."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import hashlib
import itertools
import logging
import pathlib
from typing import Any

import numpy as np

from dcse_jax.data import decoding
from dcse_jax.data.lines import Lines
from dcse_jax.embed import row_file
from dcse_jax.embed.precision import ranges_of
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# A text is calibrated by as many of its lines, or fewer, evenly spread.
SAMPLE = 10_000
# Fewer say little about the ends of a range.
_FEW = 100
# Rows of a file that are read at a time.
_BLOCK = 65_536


def ranges_path(path: pathlib.Path) -> pathlib.Path:
  """Returns where the ranges of NAME.npy are kept: beside it, in NAME.ranges.npy."""
  return path.with_name(f"{path.stem}.ranges.npy")


def check_source(source: str, width: int | None = None) -> None:
  """Refuses what is neither a text nor a .npy file of embeddings or of ranges.

  Args:
    source: what `calibrate` takes.
    width: the numbers of an embedding; None where they are not known yet.
  """
  if not source.endswith(".npy"):
    decoding.check_file(str(files.user_path(source)))
    return
  rows = row_file.read(source)
  if rows.dtype.kind != "f" or rows.shape[1] != (width or rows.shape[1]):
    raise UserError(
      f"{source} holds {rows.dtype} of shape {rows.shape}: ranges come from float "
      f"embeddings of {width or 'the model'}'s numbers, or from NAME.ranges.npy"
    )


def digest(source: str) -> str:
  """Returns a digest of a file that `calibrate` takes."""
  with files.user_path(source).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def calibrate(
  stream: Callable[[Iterable[str]], Iterator[np.ndarray]],
  lines: Lines,
  source: str | None,
) -> np.ndarray:
  """Measures the range of each dimension, [2, D].

  Args:
    stream: turns sentences into embeddings, [m, D] at a time.
    lines: the text that will be embedded.
    source: what is measured: a text, or a .npy file of embeddings, or of ranges, which
      stay as they are; None is a sample of the lines.

  Raises:
    UserError: there are fewer than two embeddings, or one is not finite.
  """
  if source is None:
    step = -(-len(lines) // SAMPLE)
    blocks = stream(itertools.islice(lines.iterate(), 0, None, step))
  elif source.endswith(".npy"):
    rows = row_file.read(source)
    blocks = (rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK))
  else:
    blocks = stream(Lines(source))
  number = 0

  def count(blocks):
    nonlocal number
    for block in blocks:
      number += len(block)
      yield block

  ranges = ranges_of(count(blocks))
  is_sentences = source is None or not source.endswith(".npy")
  if is_sentences and number < _FEW:
    _log.warning(
      "the ranges of embeddings are measured on %d sentences alone; --calibration names "
      "a text with more",
      number,
    )
  return ranges


def kept_ranges(
  path: pathlib.Path, origin: dict[str, Any], measure: Callable[[], np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns the ranges of a file that is under way, or measures and keeps them.

  Args:
    path: the file, which `row_file.write_rows` writes.
    origin: what its rows depend on besides the ranges.
    measure: gives the ranges, [2, D] float32.

  Returns:
    The ranges, and the origin with their digest.
  """
  kept = _kept(path)
  with_digest = lambda ranges: {
    **origin,
    "ranges": hashlib.sha256(ranges.tobytes()).hexdigest(),
  }
  before = row_file.begun(path)
  with contextlib.suppress(Exception):  # Damaged files fail in many ways.
    ranges = np.load(kept)
    if before == {**with_digest(ranges), "shape": before["shape"]}:
      return ranges, with_digest(ranges)
  ranges = measure()
  _save(kept, ranges)
  return ranges, with_digest(ranges)


def put_ranges(path: pathlib.Path, ranges: np.ndarray | None) -> None:
  """Writes the ranges of a file that is done, if it has any, beside it."""
  if ranges is not None:
    _save(ranges_path(path), ranges)
  files.remove(_kept(path))


def _kept(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.part.ranges.npy")


def _save(path: pathlib.Path, ranges: np.ndarray) -> None:
  with files.whole(path) as new, new.open("wb") as file:
    np.save(file, ranges)

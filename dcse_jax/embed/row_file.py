"""A .npy file that grows part by part, and goes on where it was interrupted."""

from collections.abc import Callable, Iterator
import hashlib
import json
import logging
import os
import pathlib
import sys
from typing import Any

import numpy as np
import tqdm

from dcse_jax.runtime import files
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

_BLOCK_ROWS = 65_536  # How many are read at a time.


def output_path(output: str) -> pathlib.Path:
  """Returns the path of a file to write; raises a UserError if it is no .npy."""
  path = files.user_path(output)
  if path.suffix != ".npy":
    raise UserError(f"{output}: the output is a NumPy file, name it NAME.npy")
  return path


def read(path: str | os.PathLike[str]) -> np.ndarray:
  """Opens a .npy file of embeddings, [n, D], or of rows of fewer bits, without reading.

  Raises:
    UserError: there is no such file, or it does not hold such an array.
  """
  try:
    # np.load also reads archives and pickles, which nobody should open.
    rows = np.lib.format.open_memmap(files.user_path(path), mode="r")
  except UserError:
    raise
  except Exception as error:  # Damaged headers fail in many ways.
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"cannot read {path} ({reason}): name what dcse_jax.encode wrote"
    ) from error
  is_row = rows.dtype.kind == "f" or str(rows.dtype) in ("int8", "uint8")
  if rows.ndim != 2 or not is_row:
    raise UserError(
      f"{path} holds {rows.dtype} of shape {rows.shape}, not rows of embeddings: name "
      "what dcse_jax.encode wrote"
    )
  return rows


def write_rows(
  path: pathlib.Path,
  parts: Callable[[int], Iterator[np.ndarray]],
  *,
  shape: tuple[int, int],
  origin: dict[str, Any],
  dtype: str = "float32",
  finish: Callable[[], None] = lambda: None,
) -> str:
  """Writes embeddings, [rows, D] in a .npy file.

  The file appears when it is whole. What is done of it stands beside it, and the next
  call of the same origin goes on from there.

  Args:
    path: the file.
    parts: gives the rows from a number on, which is the end of an earlier part, some at
      a time.
    shape: that of the whole file.
    origin: what the rows depend on, JSON.
    dtype: the file's.
    finish: is called when all rows are there, just before the file appears.

  Returns:
    The SHA-256 of the rows.

  Raises:
    UserError: it cannot be written, or another process writes it.
  """
  with locks.output_locked(path):
    try:
      origin = {**origin, "shape": list(shape)}
      return _write(path, parts, shape, origin, dtype, finish)
    except OSError as error:
      raise files.cannot_write(path, error) from error


def begun(path: pathlib.Path) -> dict[str, Any]:
  """Returns the origin of what is done of a file; empty where that is nothing."""
  try:
    return dict(json.loads(_progress(path).read_bytes())["origin"])
  except Exception:  # Damaged files fail in many ways.
    return {}


def _progress(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.part.json")


def _write(path, parts, shape, origin, dtype, finish) -> str:
  partial, progress = path.with_name(f".{path.name}.part"), _progress(path)
  done, digest = 0, hashlib.sha256()
  if progress.exists() and partial.exists():
    done, digest = _find_done(partial, progress, origin)
    if done:
      _log.info("going on from line %d of %d", done, shape[0])
    else:
      _log.info("%s is damaged or of another text or model: from the start", partial)
  if not done:
    progress.unlink(missing_ok=True)
    np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
    _reserve(partial)
  rows = np.lib.format.open_memmap(partial, mode="r+")
  with tqdm.tqdm(
    total=shape[0],
    initial=done,
    unit="sentence",
    disable=not sys.stderr.isatty(),
  ) as bar:
    for part in parts(done):
      rows[done : done + len(part)] = part
      rows.flush()
      digest.update(np.ascontiguousarray(rows[done : done + len(part)]))
      done += len(part)
      files.write_json(
        progress, {"origin": origin, "rows": done, "sha256": digest.hexdigest()}
      )
      bar.update(len(part))
  del rows
  files.to_disk(partial)
  finish()
  partial.replace(path)
  files.to_disk(path.parent)
  progress.unlink(missing_ok=True)
  return digest.hexdigest()


def _find_done(
  partial: pathlib.Path, progress: pathlib.Path, origin: dict[str, Any]
) -> tuple[int, Any]:
  """Returns how many rows are done and their digest; 0 if they are of another input."""
  digest = hashlib.sha256()
  try:
    before = json.loads(progress.read_bytes())
    # A map that can be written would fill up a file that was cut off with zeros.
    rows = np.lib.format.open_memmap(partial, mode="r")
    if before["origin"] != origin or list(rows.shape) != origin["shape"]:
      return 0, digest
    done = rows[: before["rows"]]
    for start in range(0, len(done), _BLOCK_ROWS):
      digest.update(done[start : start + _BLOCK_ROWS])
    if (len(done), digest.hexdigest()) == (before["rows"], before["sha256"]):
      return len(done), digest
  except Exception:  # Damaged files fail in many ways.
    pass
  return 0, hashlib.sha256()


def _reserve(path: pathlib.Path) -> None:
  """Reserves a file's disk: writing its map to a full disk would kill the process."""
  if hasattr(os, "posix_fallocate"):
    with path.open("r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

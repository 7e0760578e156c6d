"""Rows that a folder keeps by what they depend on, and makes only once."""

from collections.abc import Callable, Iterator
import hashlib
import json
import logging
import pathlib
from typing import Any

import numpy as np

from dcse_jax.embed import row_file
from dcse_jax.runtime import files

_log = logging.getLogger(__name__)

_BLOCK_ROWS = 65_536  # How many are read at a time.


def kept_rows(
  folder: pathlib.Path,
  name: str,
  parts: Callable[[int], Iterator[np.ndarray]],
  *,
  shape: tuple[int, int],
  origin: dict[str, Any],
  dtype: str = "float32",
) -> np.ndarray:
  """Opens rows that are kept, or writes them first, going on where that was cut off.

  Args:
    folder: it is made if need be.
    name: begins the name of the file.
    parts: as in `row_file.write_rows`, and so are the others.
    shape: that of the rows.
    origin: what they depend on.
    dtype: the file's.

  Returns:
    The rows, memory-mapped.

  Raises:
    UserError: as `write_rows` does.
  """
  about = json.dumps([origin, shape, dtype], sort_keys=True).encode()
  key = hashlib.blake2b(about, digest_size=8).hexdigest()
  path = folder / f"{name}-{key}.npy"
  listed = path.with_name(f"{path.name}.json")
  if path.exists():
    try:
      rows = np.lib.format.open_memmap(path, mode="r")
      known = json.loads(listed.read_bytes())["sha256"]
      if rows.shape == shape and _sha256(rows) == known:
        return rows
    except Exception:  # Damaged files fail in many ways.
      pass
    _log.warning("%s is damaged: made anew", path)
  digest = row_file.write_rows(path, parts, shape=shape, origin=origin, dtype=dtype)
  files.write_json(listed, {"sha256": digest})
  return np.lib.format.open_memmap(path, mode="r")


def _sha256(rows: np.ndarray) -> str:
  digest = hashlib.sha256()
  for start in range(0, len(rows), _BLOCK_ROWS):
    digest.update(np.ascontiguousarray(rows[start : start + _BLOCK_ROWS]))
  return digest.hexdigest()

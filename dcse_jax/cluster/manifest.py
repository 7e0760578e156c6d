"""The folder that parts are written to, and the manifest that makes it whole.

    FOLDER/part-000000.parquet ...
    FOLDER/manifest.json            when all parts are there
    FOLDER/ranges.npy               those that eight bits divide, [2, D]
    FOLDER/.progress/               until then: what is made, and an entry of each part

A part is finished when its entry is there. Whoever does a part again writes the same
bytes, so that two machines may, when one was taken for dead.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import io
import json
import pathlib
import tempfile
from typing import Any
import uuid

import numpy as np

from dcse_jax.cluster import places
from dcse_jax.runtime import files
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError

MANIFEST, RANGES = "manifest.json", "ranges.npy"
_PROGRESS, _ORIGIN = ".progress", "origin.json"
_VERSION = 1


class Folder:
  """A folder of parts, on this machine or in a bucket.

  Args:
    name: the folder, which is made if need be.
  """

  def __init__(self, name: str):
    self._name = name
    self._fs, self._root = places.resolve(name)
    self._local = None if places.is_remote(name) else pathlib.Path(self._root)

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other drivers of this folder out; buckets have no locks.

    Raises:
      UserError: another process has it.
    """
    if self._local is None:
      yield
      return
    with locks.output_locked(self._local):
      yield

  def ranges(self) -> np.ndarray | None:
    """Returns the ranges that are kept, [2, D]; None if there are none."""
    content = self._read(RANGES)
    return None if content is None else np.load(io.BytesIO(content))

  def put_ranges(self, ranges: np.ndarray) -> None:
    """Keeps ranges, [2, D]."""
    self.put(RANGES, lambda path: _save(path, ranges))

  def begin(self, origin: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Says what will be made, and returns the entries of what is finished of it.

    Args:
      origin: what the parts depend on, JSON.

    Returns:
      Entries by the numbers of their parts.

    Raises:
      UserError: the folder holds parts of another origin, or what is not ours.
    """
    before = self.begun()
    if before is None:
      self._check_ours()
      self._put_json(f"{_PROGRESS}/{_ORIGIN}", origin)
      return {}
    if different := [k for k in origin | before if origin.get(k) != before.get(k)]:
      raise UserError(
        f"{self._name} holds parts of another origin ({', '.join(different)} differ): "
        "name another folder, or remove it"
      )
    finished = {entry["part"]: entry for entry in self._manifest().get("parts", ())}
    sizes = self._sizes("")
    for name in self._sizes(_PROGRESS):
      if name.startswith("part-") and name.endswith(".json"):
        entry = self._read_json(f"{_PROGRESS}/{name}")
        finished[entry["part"]] = entry
    # Somebody may have removed a part, or cut it off.
    return {
      number: entry
      for number, entry in finished.items()
      if sizes.get(entry["name"]) == entry["bytes"]
    }

  def begun(self) -> dict[str, Any] | None:
    """Returns the origin of what is made here; None if nothing is."""
    origin = self._manifest().get("origin")
    return origin or self._read_json(f"{_PROGRESS}/{_ORIGIN}") or None

  def finish_part(self, entry: dict[str, Any]) -> None:
    """Writes the entry of a part, which makes it finished."""
    stem = entry["name"].removesuffix(".parquet")
    self._put_json(f"{_PROGRESS}/{stem}.json", entry)

  def finish(
    self, origin: dict[str, Any], about: dict[str, Any], parts: list[dict[str, Any]]
  ) -> dict[str, Any]:
    """Writes the manifest, when all parts are finished, and returns it.

    Args:
      origin: as in `begin`.
      about: what else readers want to know, JSON.
      parts: the entries of all parts, in their order.
    """
    total = {name: sum(entry[name] for entry in parts) for name in ("rows", "bad_rows")}
    content = {"version": _VERSION, **about, **total, "origin": origin, "parts": parts}
    self._put_json(MANIFEST, content)
    with places.errors(self._name):
      if self._fs.isdir(f"{self._root}/{_PROGRESS}"):
        self._fs.rm(f"{self._root}/{_PROGRESS}", recursive=True)
    return content

  def put(self, name: str, write: Callable[[pathlib.Path], None]) -> None:
    """Writes a file, which appears when it is whole.

    Args:
      name: the file's, in the folder.
      write: writes the file at another path.

    Raises:
      UserError: it cannot be written.
    """
    if self._local is None:
      with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "file"
        write(path)
        with places.errors(self._name):
          self._fs.put_file(str(path), f"{self._root}/{name}")
      return
    path = self._local / name
    # Another machine may be writing it, too, when this one was taken for dead.
    new = self._local / _PROGRESS / f"{path.name}.{uuid.uuid4().hex}"
    try:
      files.make_folder(new.parent)
      try:
        write(new)
        files.to_disk(new)
        new.replace(path)
        files.to_disk(path.parent)
      finally:
        new.unlink(missing_ok=True)
    except OSError as error:
      raise files.cannot_write(path, error) from error

  def _check_ours(self) -> None:
    names = set(self._sizes("")) - {_PROGRESS, RANGES}
    if names:
      raise UserError(
        f"{self._name} is there already and holds {min(names)}: name another folder"
      )

  def _sizes(self, folder: str) -> dict[str, int]:
    """Returns the sizes of the files of a folder, by name."""
    with places.errors(self._name):
      self._fs.invalidate_cache()  # Workers write, too.
      try:
        found = self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=True)
      except FileNotFoundError:
        return {}
    return {each["name"].rstrip("/").rpartition("/")[2]: each["size"] for each in found}

  def _manifest(self) -> dict[str, Any]:
    return self._read_json(MANIFEST)

  def _read(self, name: str) -> bytes | None:
    with places.errors(self._name):
      try:
        return self._fs.cat_file(f"{self._root}/{name}")
      except FileNotFoundError:
        return None

  def _read_json(self, name: str) -> dict[str, Any]:
    """Reads a file of the folder; {} if it is not there."""
    content = self._read(name)
    try:
      return {} if content is None else dict(json.loads(content))
    except ValueError as error:
      raise UserError(
        f"cannot read {self._name}/{name} ({error}): restore it, or remove the folder"
      ) from error

  def _put_json(self, name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    self.put(name, lambda path: path.write_text(text, encoding="utf-8"))


def ranges_digest(ranges: np.ndarray) -> str:
  """Returns the digest of ranges, [2, D], for an origin."""
  return hashlib.sha256(ranges.tobytes()).hexdigest()


def _save(path: pathlib.Path, ranges: np.ndarray) -> None:
  with path.open("wb") as file:
    np.save(file, ranges)

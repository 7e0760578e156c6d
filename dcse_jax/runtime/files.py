"""Reads and writes files: whole, or with an error of one line."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

from etils import epath

from dcse_jax.runtime.errors import UserError


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file, or raises a UserError."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"cannot read {path} ({error}): restore it, fetch it again, or remove it"
    ) from error


def user_path(name: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the path that a user names in a flag or a field, with ~ expanded.

  Every such name comes through here; none is taken as a pattern.

  Raises:
    UserError: no system can have such a path, or there is no such user.
  """
  try:
    path = pathlib.Path(name).expanduser()
    path.exists()
  except (OSError, RuntimeError, ValueError) as error:
    raise UserError(f"{name!s:.200} is no path ({error}): check it") from error
  return path


def short_name(name: str) -> str:
  """Returns what to show for a model: a hub id as it is, and the end of a path.

  WORKDIR/export and WORKDIR/ROUND/SEED/model are shown with the part that tells them
  from others of that name.
  """
  path = pathlib.PurePath(name)
  hub_id = name.partition("@")[0]  # A revision may hold a slash.
  if not name.startswith(("/", ".", "~")) and hub_id.count("/") < 2:
    return name
  parts = {"export": 2, "model": 3}.get(path.name, 1)
  return "/".join([p for p in path.parts if p != path.anchor][-parts:])


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder if there is none, or raises a UserError."""
  try:
    _make_folder(path)
  except OSError as error:
    raise UserError(
      f"cannot make the folder {path} ({error.strerror}): name another"
    ) from error


def _make_folder(path: pathlib.Path) -> None:
  missing = []
  while not path.exists():
    missing.append(path)
    path = path.parent
  for path in reversed(missing):
    path.mkdir(exist_ok=True)
    to_disk(path.parent)
  path.mkdir(exist_ok=True)  # Fails if the path is not a folder.


def cannot_write(path: str | os.PathLike[str], reason: object) -> UserError:
  """Makes the error for a full disk, a missing permission and the like."""
  if isinstance(reason, OSError):
    reason = reason.strerror or reason
  return UserError(
    f"cannot write {path} ({reason}): make room or mend the permissions, and run "
    "the same command again"
  )


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a name beside a path, and renames what was written there to the path.

  If the process or the machine ends before, the path still holds what it held; an
  error removes what stands beside. Missing parents are made. A folder at the path is
  replaced: `digests.replacing` is for those that may hold files that are not ours.

  Raises:
    UserError: the path cannot be written.
  """
  path = pathlib.Path(path)
  with beside(path) as new:
    yield new
    finish(new)
    old = path.with_name(f".{path.name}.old")
    if path.is_dir():
      # No system can replace a folder that holds something in one move.
      remove(old)
      path.rename(old)
    new.replace(path)
    to_disk(path.parent)
    remove(old)


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a free name beside a path; what is there when the block ends is removed.

  Raises:
    UserError: the block raised an OSError.
  """
  new = path.with_name(f".{path.name}.tmp")
  try:
    _make_folder(path.parent)
    remove(new)  # A process that was killed may have left it.
    try:
      yield new
    finally:
      with contextlib.suppress(OSError):
        remove(new)
  except OSError as error:
    raise cannot_write(path, error) from error


def finish(path: pathlib.Path) -> None:
  """Brings a file, or a folder with all in it, to the disk, with the umask's mode.

  Other libraries may write by way of a temporary file, which only its owner may read.
  """
  if path.is_dir():
    # The folder was just made, so its mode shows what the umask lets through.
    mode = path.stat().st_mode & 0o666
    for each in path.rglob("*"):
      if each.is_file():
        each.chmod(mode)
      to_disk(each)
  to_disk(path)


def to_disk(path: str | os.PathLike[str]) -> None:
  """Waits until a file's content, or a folder's list of names, is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def remove(path: pathlib.Path) -> None:
  """Removes a file, a link, or a folder with all that is in it, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def foreign_errors() -> Iterator[None]:
  """Turns what safetensors and tokenizers raise while they write into OSError."""
  try:
    yield
  except Exception as error:
    raise OSError(str(error)) from error


def is_in_bucket(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is in a bucket: files appear whole, and are not renamed."""
  return os.fspath(path).startswith("gs://")


def write_text(path: str | os.PathLike[str], content: str) -> None:
  """Writes a UTF-8 file, `whole`, unless it already has this content."""
  if is_in_bucket(path):
    epath.Path(path).write_text(content)
    return
  with contextlib.suppress(OSError):
    if pathlib.Path(path).read_bytes() == content.encode():
      return
  with whole(path) as new:
    new.write_text(content, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Writes a JSON file, `whole`."""
  write_text(path, json.dumps(content, indent=2) + "\n")

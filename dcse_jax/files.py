"""Reading and writing files: whole, or with an error of one line."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import socket
from typing import Any

from etils import epath

from dcse_jax.errors import UserError


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file; UserError where it cannot be."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"cannot read {path} ({error}): restore it, fetch it again, or remove it"
    ) from error


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder if there is none; UserError where it cannot be."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"cannot make the folder {path} ({error.strerror}): name another"
    ) from error


def cannot_write(path: str | os.PathLike[str], reason: object) -> UserError:
  """The error of a full disk, a missing permission and the like."""
  if isinstance(reason, OSError):
    reason = reason.strerror or reason
  return UserError(
    f"cannot write {path} ({reason}): make room or mend the permissions, and run "
    "the same command again"
  )


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a name beside, for a file or a folder, and renames what is there after.

  Whatever ends the process before, the path holds what it held; an error removes
  what stands beside. Missing parents are made.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(path)
  beside = path.with_name(f".{path.name}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(beside)  # Of a process that was killed.
    try:
      yield beside
      for file in [p for p in beside.rglob("*") if p.is_file()] or [beside]:
        _to_disk(file)
      old = path.with_name(f".{path.name}.old")
      if path.is_dir():
        # No system replaces a folder that holds something in one move.
        _remove(old)
        path.rename(old)
      beside.replace(path)
      _to_disk(path.parent)
      _remove(old)
    except BaseException:
      with contextlib.suppress(OSError):
        _remove(beside)
      raise
  except OSError as error:
    raise cannot_write(path, error) from error


@contextlib.contextmanager
def foreign_errors() -> Iterator[None]:
  """Turns what safetensors and tokenizers raise while they write into OSError."""
  try:
    yield
  except Exception as error:
    raise OSError(str(error)) from error


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _to_disk(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def is_in_bucket(path: str | os.PathLike[str]) -> bool:
  """Whether a path is of a bucket: its files come whole, and nothing is renamed."""
  return os.fspath(path).startswith("gs://")


def write_text(path: str | os.PathLike[str], content: str) -> None:
  """Writes a UTF-8 file, `whole`."""
  if is_in_bucket(path):
    epath.Path(path).write_text(content)
    return
  with whole(path) as beside:
    beside.write_text(content, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Writes a JSON file, `whole`."""
  write_text(path, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a folder while it lasts.

  The operating system drops the lock with its process, however that ends: a file
  left behind locks nothing.

  Raises:
    UserError: another process has it.
  """
  path = folder / ".lock"
  try:
    file = path.open("a+", encoding="utf-8")
  except OSError as error:
    raise cannot_write(path, error) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise UserError(
        f"{folder} is in use by {file.read() or 'another process'}: wait until it "
        "ends, or name another --workdir"
      ) from error
    except OSError:
      pass  # A file system without locks; a run there is as safe as it was.
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    yield

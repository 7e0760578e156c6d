"""Locks: one process at a time in a workdir, or at an output."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import uuid

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# How often an owner says that it lives, and how long a silent one counts as alive.
_REFRESH_SECONDS, _DEAD_SECONDS = 20, 180


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a folder during the block; the lock is inside it.

  Raises:
    UserError: another process has it.
  """
  with _held(folder / ".lock", folder, "--workdir"):
    yield


@contextlib.contextmanager
def output_locked(path: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from writing a file or folder; the lock is beside it.

  Raises:
    UserError: another process has it.
  """
  files.make_folder(path.parent)
  with _held(path.with_name(f".{path.name}.lock"), path, "output"):
    yield


@contextlib.contextmanager
def _held(lock: pathlib.Path, what: pathlib.Path, other: str) -> Iterator[None]:
  """Holds a lock file.

  The operating system drops the lock when its process ends, in whatever way: a file
  left behind locks nothing. Where there are no locks, as on some network file systems,
  an owner file takes their place.
  """
  busy = lambda owner: UserError(
    f"{what} is in use by {owner or 'another process'}: wait until it ends, or name "
    f"another {other}"
  )
  with contextlib.ExitStack() as stack:
    while True:
      try:
        file = stack.enter_context(lock.open("a+", encoding="utf-8"))
      except OSError as error:
        raise files.cannot_write(lock, error) from error
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        file.seek(0)
        raise busy(file.read()) from error
      except OSError as error:
        stack.enter_context(_owned(lock, error, busy))
        break
      # The previous holder may have removed the file after it was opened here.
      if _is_open_at(file.fileno(), lock):
        break
    with contextlib.suppress(OSError):  # With a full disk it is held without a name.
      file.truncate(0)
      os.pwrite(file.fileno(), _name().encode(), 0)
    # It is removed while still held, so that no other process can hold the same name.
    stack.callback(_unlink, lock)
    yield


def _unlink(path: pathlib.Path) -> None:
  with contextlib.suppress(OSError):  # The folder may have gone meanwhile.
    path.unlink()


def _is_open_at(descriptor: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), path.stat())
  except FileNotFoundError:
    return False


def _name() -> str:
  return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def _owned(lock: pathlib.Path, reason: OSError, busy) -> Iterator[None]:
  """Holds a lock by a file that only one process can make, and keeps it fresh."""
  owner = lock.with_name(f"{lock.name}-owner")
  _log.warning(
    "%s: no file locks here (%s); %s, kept fresh, holds other processes off instead",
    lock.parent,
    reason.strerror,
    owner.name,
  )
  ours = {"name": _name(), "where": _where(), "pid": os.getpid()}
  ours["id"] = uuid.uuid4().hex
  try:
    while not _make(owner, ours):
      theirs = _read(owner)
      if theirs is None:
        continue  # It was removed just now.
      if not _is_dead(owner, theirs):
        raise busy(theirs.get("name"))
      _remove(owner, theirs)
  except OSError as error:
    raise files.cannot_write(owner, error) from error
  done = threading.Event()
  thread = threading.Thread(target=_refresh, args=(owner, done), daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    if _read(owner) == ours:
      _unlink(owner)


def _where() -> str:
  """Names the system that gives process ids: each host and container has its own."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    parts.append(os.readlink("/proc/self/ns/pid"))
  return " ".join(parts)


def _make(owner: pathlib.Path, content: dict) -> bool:
  """Makes the file, whole, if it is not there; returns whether it did."""
  new = owner.with_name(f"{owner.name}-{content['id']}")
  try:
    new.write_text(json.dumps(content), encoding="utf-8")
    try:
      os.link(new, owner)
    except FileExistsError:
      return False
    except OSError as error:
      if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
        raise
      # There are no links: a reader may find it still empty, and counts it as fresh.
      try:
        with owner.open("x", encoding="utf-8") as file:
          file.write(json.dumps(content))
      except FileExistsError:
        return False
    return True
  finally:
    new.unlink(missing_ok=True)


def _read(owner: pathlib.Path) -> dict | None:
  """Reads what an owner wrote; {} if it cannot be read, None if there is no file."""
  try:
    content = json.loads(owner.read_bytes())
  except FileNotFoundError:
    return None
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _is_dead(owner: pathlib.Path, theirs: dict) -> bool:
  if theirs.get("where") == _where() and isinstance(theirs.get("pid"), int):
    try:
      os.kill(theirs["pid"], 0)
    except ProcessLookupError:
      return True
    except OSError:
      pass  # It lives, but belongs to another user.
    return False
  # The file system's own clock is used: those of hosts may differ.
  now = owner.with_name(f"{owner.name}-{uuid.uuid4().hex}")
  now.touch()
  try:
    age = now.stat().st_mtime - owner.stat().st_mtime
  except FileNotFoundError:
    return False
  finally:
    now.unlink(missing_ok=True)
  return age > _DEAD_SECONDS


def _remove(owner: pathlib.Path, theirs: dict) -> None:
  """Removes the file of a dead owner, unless another process has done so."""
  aside = owner.with_name(f"{owner.name}-{uuid.uuid4().hex}")
  try:
    owner.rename(aside)
  except FileNotFoundError:
    return
  # Between reading and renaming, a third may have removed it and made its own.
  if _read(aside) != theirs:
    with contextlib.suppress(OSError):
      os.link(aside, owner)
  aside.unlink(missing_ok=True)


def _refresh(owner: pathlib.Path, done: threading.Event) -> None:
  while not done.wait(_REFRESH_SECONDS):
    with contextlib.suppress(OSError):
      os.utime(owner)

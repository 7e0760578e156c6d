"""Files and folders of this machine, or of a bucket, by one interface: fsspec's."""

from collections.abc import Iterator
import contextlib
import glob
import io
import posixpath
from typing import Any

import fsspec

from dcse_jax.data import decoding
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

SUFFIXES = (".txt", ".txt.gz", ".parquet", ".arrow")
_BUFFER = 1 << 20


def is_remote(name: str) -> bool:
  """Returns whether a name is an address such as gs://BUCKET/PATH."""
  return "://" in name


def resolve(name: str) -> tuple[Any, str]:
  """Returns fsspec's file system of a name, and the path in it.

  Raises:
    UserError: nothing that is installed reads such addresses.
  """
  if not is_remote(name):
    return fsspec.filesystem("file"), str(files.user_path(name).absolute())
  try:
    file_system, path = fsspec.core.url_to_fs(name)
  except (ImportError, ValueError) as error:
    raise UserError(
      f"{name}: {error}; gs:// needs gcsfs and s3:// needs s3fs: install it on every "
      "machine, or name a folder that all of them see"
    ) from error
  return file_system, path.rstrip("/")


@contextlib.contextmanager
def errors(name: str) -> Iterator[None]:
  """Turns whatever fails at a place into one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Clients of buckets have errors of their own.
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise UserError(
      f"{name}: cannot be reached ({reason}); check the name and who may use it"
    ) from error


def find(name: str) -> list[str]:
  """Lists the files that a name stands for, in the order of their names.

  Args:
    name: a file, a pattern, or a folder, whose files of `SUFFIXES` at any depth are
      meant; of this machine, or of a bucket, gs:// or s3://. What begins with a dot or
      an underscore in a folder is left out.

  Returns:
    Their names as `resolve` takes them.

  Raises:
    UserError: there is none, or a name has another suffix.
  """
  file_system, path = resolve(name)
  full = file_system.unstrip_protocol if is_remote(name) else str
  with errors(name):
    file_system.invalidate_cache()
    if file_system.isfile(path):
      found = [path]
    elif file_system.isdir(path):
      inside = [p for p in file_system.find(path) if _is_shown(p, path)]
      found = [p for p in inside if p.lower().endswith(SUFFIXES)]
    elif glob.has_magic(path):
      found = [p for p in file_system.glob(path) if file_system.isfile(p)]
    else:
      raise UserError(f"{name}: no such file or folder; check the path")
  if not found:
    raise UserError(
      f"{name}: no file fits; files end in {', '.join(SUFFIXES)}: check the path"
    )
  for each in found:
    if not each.lower().endswith(SUFFIXES):
      raise UserError(
        f"{each}: unknown kind of file; its name must end in {', '.join(SUFFIXES)}"
      )
  return [full(each) for each in sorted(found)]


def _is_shown(path: str, folder: str) -> bool:
  inside = posixpath.relpath(path, folder).split("/")
  return not any(part.startswith((".", "_")) for part in inside)


def short_names(names: list[str]) -> list[str]:
  """Returns names without the folder that all of them share."""
  folder = posixpath.commonpath([posixpath.dirname(name) for name in names])
  return [posixpath.relpath(name, folder) for name in names]


@contextlib.contextmanager
def opened(name: str) -> Iterator[Any]:
  """Opens a file to read its bytes, which are unpacked if its name ends in .gz."""
  if not is_remote(name):
    with decoding.open_bytes(name) as file:
      yield file
    return
  file_system, path = resolve(name)
  packed = "gzip" if path.lower().endswith(".gz") else None
  with errors(name), file_system.open(path, "rb", compression=packed) as file:
    # Lines of fsspec's own files are found byte by byte.
    yield file if packed else io.BufferedReader(file, _BUFFER)

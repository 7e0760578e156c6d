"""Where a run writes: a folder, or a bucket with a local folder on each host.

In a bucket Orbax writes the checkpoints itself. Everything else is small: it is fetched
into the local folder at the start, and sent back before each checkpoint is saved, when
a model is finished and when the run ends. Caches are never sent: they are made anew.
"""

from collections.abc import Iterable, Iterator
import contextlib
import os
import pathlib
import shutil
from typing import Any
import urllib.parse

from etils import epath
import fsspec
import jax

from dcse_jax.runtime import files
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError

_SCHEME = "gs://"
_CACHE, _CHECKPOINTS = "cache", "checkpoints"
# These say that something is finished, so they are sent after it.
_SENT_LAST = ("result.json", "results.json")
# This is written at the start, to show whether the bucket may be written.
_MARK = ".dcse_jax"


class Workdir:
  """The workdir of one run at a time.

  Args:
    name: a folder, which is made if need be, or gs://BUCKET/PATH.

  Attributes:
    folder: the folder, or the bucket's local one in the user's cache.
    is_shared: whether processes on other hosts must see the same folder.

  Raises:
    UserError: it is another kind of address; or gcsfs, which reads buckets, is
      missing.
  """

  def __init__(self, name: str):
    self._name = name
    self._remote: epath.Path | None = None
    # The files in the bucket, by name: size and time when they were sent.
    self._sent: dict[str, tuple[int, int]] = {}
    if name.startswith(_SCHEME):
      url = _checked(name)
      self._remote = epath.Path(url)
      self._fs, self._root = _file_system(url)
      self.folder = _local_folder(url)
    elif "://" in name:
      raise UserError(f"--workdir={name} is neither a folder nor gs://BUCKET/PATH")
    else:
      self.folder = files.user_path(name)
    self.is_shared = self._remote is None
    files.make_folder(self.folder)

  @property
  def cache(self) -> pathlib.Path:
    """The folder for what can be made anew; it is always local."""
    return self.folder / _CACHE

  def address(self, path: pathlib.Path) -> pathlib.Path:
    """Returns where a file or folder of `folder` finally is."""
    if self._remote is None:
      return path
    return self._remote / str(path.relative_to(self.folder))

  def checkpoints(self, folder: pathlib.Path) -> epath.Path:
    """Returns where the checkpoints of the run in a folder of `folder` are."""
    if self._remote is None:
      folder = folder.absolute()
    return epath.Path(self.address(folder)) / _CHECKPOINTS

  @contextlib.contextmanager
  def synced(self) -> Iterator[None]:
    """Fetches what the bucket holds, and sends what the block wrote when it ends.

    All processes must call it together.

    Raises:
      UserError: there is no such bucket, or it may not be read or written.
    """
    if self._remote is None:
      yield
      return
    if processes.is_first():
      with self._errors():
        self._fs.pipe_file(f"{self._root}/{_MARK}", b"")
    processes.first_makes(self.folder, self._fetch_all)
    try:
      yield
    except BaseException:
      with contextlib.suppress(UserError):  # The first error is the one to show.
        self.push()
      raise
    self.push()

  def push(self) -> None:
    """Sends what is new in the folder to the bucket, in the first process only.

    If it ends before it is done, the same command continues from what is there.

    Raises:
      UserError: the bucket cannot be written.
    """
    if self._remote is None or not processes.is_first():
      return
    there = self._local_files()
    new = [name for name in there if self._sent.get(name) != there[name]]
    is_last = lambda name: name.rpartition("/")[2] in _SENT_LAST
    with self._errors():
      for names in (
        [name for name in new if not is_last(name)],
        [name for name in new if is_last(name)],
      ):
        if names:
          self._fs.put(self._local(names), self._objects(names))
      if gone := self._sent.keys() - there.keys():
        for name in self._objects(gone):
          self._fs.rm_file(name)  # `rm` takes names for patterns.
    self._sent = there

  def share(self, folder: pathlib.Path) -> None:
    """Brings what the first process wrote in a folder to the bucket and all hosts.

    All processes must call it together; they wait for the first.

    Raises:
      UserError: the bucket cannot be read or written.
    """
    self.push()
    processes.wait()
    if self._remote is None:
      return
    # Those that share the folder with the first have it already.
    leader = processes.sharing(self.folder)[0]
    if leader and leader == jax.process_index():
      self._fetch(*self._objects([str(folder.relative_to(self.folder))]))
    processes.wait()

  def _fetch_all(self) -> None:
    """Makes the folder equal to the bucket, which is right where the two differ."""
    for path in self.folder.iterdir():
      if _is_sent(path.name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    self._fetch(self._root)
    self._sent = self._local_files()

  def _fetch(self, within: str) -> None:
    with self._errors():
      names = [found[len(self._root) + 1 :] for found in self._fs.find(within)]
      if names := [name for name in names if _is_sent(name)]:
        self._fs.get(self._objects(names), self._local(names))

  def _local_files(self) -> dict[str, tuple[int, int]]:
    found = {}
    for root, folders, names in os.walk(self.folder):
      at = pathlib.Path(root).relative_to(self.folder)
      folders[:] = [name for name in folders if _is_sent(str(at / name))]
      for name in filter(_is_sent, (str(at / name) for name in names)):
        stat = (self.folder / name).stat()
        found[name] = (stat.st_size, stat.st_mtime_ns)
    return found

  def _objects(self, names: Iterable[str]) -> list[str]:
    return [f"{self._root}/{name}" for name in names]

  def _local(self, names: Iterable[str]) -> list[str]:
    return [str(self.folder / name) for name in names]

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # It may be gcsfs's, Google's or the system's.
      reason = " ".join(str(error).split())[:300] or type(error).__name__
      raise UserError(
        f"cannot use --workdir={self._name} ({reason}): make the bucket, and give this "
        "machine's account the roles of launch/README.md for it"
      ) from error


def _is_sent(name: str) -> bool:
  """Returns whether a file or folder of the workdir goes to and from the bucket."""
  parts = pathlib.PurePosixPath(name).parts
  # Locks are hidden, and so is what is written beside before it is renamed.
  is_hidden = any(part.startswith(".") for part in parts)
  return not is_hidden and parts[0] != _CACHE and parts[2:3] != (_CHECKPOINTS,)


def _checked(name: str) -> str:
  bucket, *parts = name.removeprefix(_SCHEME).rstrip("/").split("/")
  if not bucket or not all(parts) or {".", ".."} & set(parts):
    raise UserError(f"--workdir={name} is not gs://BUCKET/PATH")
  return _SCHEME + "/".join((bucket, *parts))


def _file_system(url: str) -> tuple[Any, str]:
  """Returns a bucket's file system, and the workdir's name there."""
  # Ordinary requests work for every kind of bucket, and need no further permission.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  # Orbax's paths too must see what TensorStore and other hosts write.
  fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
  try:
    return fsspec.core.url_to_fs(url)
  except ImportError as error:
    raise UserError(
      f"--workdir={url} needs gcsfs: pip install 'dcse_jax[gcs]', or name a folder"
    ) from error


def _local_folder(url: str) -> pathlib.Path:
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  name = urllib.parse.quote(url.removeprefix(_SCHEME), safe="")
  return pathlib.Path(base).expanduser() / "dcse_jax" / "gs" / name

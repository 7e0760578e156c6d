"""Digests of a folder's files, so that damage is noticed.

`sha256sum -c SHA256SUMS` reads the file. Its last line, a comment to that program, is
the digest of the lines before it, some of which may be comments too: the digests of
files that people may change.
"""

from collections.abc import Collection, Iterable, Iterator
import contextlib
import hashlib
import logging
import pathlib

from dcse_jax.runtime import files
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

NAME = "SHA256SUMS"
# How the line of a file that people may change begins.
_FREE = "# may change: "


def write(folder: pathlib.Path, names: Iterable[str] | None = None) -> None:
  """Writes the digests of files in a folder.

  Args:
    folder: gets the file `NAME`.
    names: files, relative to the folder; None takes all that are there.
  """
  if names is None:
    names = names_in(folder)
  _write_lines(folder, [_line(folder, name) for name in sorted(names) if name != NAME])


def names_in(folder: pathlib.Path) -> list[str]:
  """Lists all files of a folder, relative to it."""
  names = []
  for path in folder.iterdir():
    inner = names_in(path) if path.is_dir() else [""]
    names += [f"{path.name}/{name}".rstrip("/") for name in inner]
  return names


def listed(folder: pathlib.Path) -> list[str]:
  """Lists the files that have digests, without those that people may change."""
  return [_parse(line)[1] for line in _fixed_lines(folder)]


def are_alike(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Returns whether two folders list the same files with the same digests."""
  lines = _fixed_lines(one)
  return bool(lines) and lines == _fixed_lines(other)


def extend(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Adds the digests of files that are not listed, where there are digests."""
  there = set(listed(folder))
  if there and (new := [_line(folder, n) for n in names if n not in there]):
    _write_lines(folder, _read_lines(folder) + new)


def find_damage(folder: pathlib.Path) -> str | None:
  """Says what is wrong with a folder's files; None if nothing is.

  Files that are not listed may be there.
  """
  try:
    lines = (folder / NAME).read_text(encoding="utf-8").splitlines(True)
  except FileNotFoundError:
    return f"{NAME} is missing"
  except OSError as error:
    return f"{NAME} cannot be read ({error.strerror})"
  except UnicodeDecodeError:
    lines = []
  if lines[-1:] != [_last(lines[:-1])]:
    return f"{NAME} is not as it was written"
  for line in lines[:-1]:
    if line.startswith(_FREE):
      continue
    digest, name = _parse(line)
    if not _is_inside(name):
      return f"{NAME} lists {name!r}, which is no file of the folder"
    try:
      if _digest(folder / name) != digest:
        return f"{name} is not as it was written"
    except FileNotFoundError:
      return f"{name} is missing"
    except OSError as error:
      return f"{name} cannot be read ({error.strerror})"
  return None


@contextlib.contextmanager
def replacing(
  folder: pathlib.Path, *, free: Collection[str] = (), overwrite: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a folder beside, and puts its files in the place of an earlier one's.

  It works file by file: those that the earlier digests name, and that still fit, are
  removed; whatever else people put there stays. If it is interrupted, the folder is as
  it was, as it will be, or its digests do not hold.

  Args:
    folder: the one to make or replace.
    free: files that people may change: one that they changed stays as it is.
    overwrite: also replaces in a folder without digests, and files that were changed,
      except for those that people may change in a folder with digests.

  Raises:
    UserError: it cannot be written, is being written by another process, or holds
      something that must not be replaced.
  """
  folder = pathlib.Path(folder).resolve()
  with locks.output_locked(folder):
    check_replaceable(folder, overwrite=overwrite)
    with files.beside(folder) as new:
      new.mkdir()
      yield new
      names = [name for name in names_in(new) if name != NAME]
      lines = [("" if n not in free else _FREE) + _line(new, n) for n in sorted(names)]
      _write_lines(new, lines)
      files.finish(new)
      if folder.is_dir() and any(folder.iterdir()):
        _put(new, folder, lines, free=free, overwrite=overwrite)
      else:
        new.replace(folder)  # This also replaces an empty folder.
      files.to_disk(folder.parent)


def check_replaceable(folder: pathlib.Path, *, overwrite: bool = False) -> None:
  """Refuses a path where there is something without digests.

  Raises:
    UserError: it is a file, or a folder with other content.
  """
  if not folder.is_dir():
    if folder.exists() or folder.is_symlink():
      raise UserError(f"{folder} is there already and is no folder: name another")
  elif any(folder.iterdir()) and not overwrite and not _is_ours(folder):
    raise UserError(
      f"{folder} is there already and is not ours (it has no {NAME}): name another "
      "folder, or keep all in it but files of the same names by --overwrite"
    )


def _is_ours(folder: pathlib.Path) -> bool:
  try:
    lines = (folder / NAME).read_text(encoding="utf-8").splitlines(True)
  except (OSError, UnicodeDecodeError):
    return False
  return lines[-1:] == [_last(lines[:-1])]


def _put(
  new: pathlib.Path,
  folder: pathlib.Path,
  lines: list[str],
  *,
  free: Collection[str],
  overwrite: bool,
) -> None:
  """Moves files into a folder that holds some; moves none if one was changed."""
  is_ours = _is_ours(folder)
  before = _read_lines(folder) if is_ours else []
  old: dict[str, set[str]] = {}
  for digest, name in map(_parse_any, before):
    if _is_inside(name):
      old.setdefault(name, set()).add(digest)
  is_there = lambda name: (folder / name).exists() or (folder / name).is_symlink()
  fits = lambda name: _digest_or_none(folder / name) in old.get(name, ())
  names = [name for _, name in map(_parse_any, lines)]
  wanted = {name: digest for digest, name in map(_parse_any, lines)}
  changed = [
    name
    for name in names
    if is_there(name)
    and not fits(name)
    and _digest_or_none(folder / name) != wanted[name]
  ]
  kept = [name for name in changed if name in free and is_ours]
  if not overwrite and (lost := [name for name in changed if name not in kept]):
    raise UserError(
      f"{folder / lost[0]} is not as it was written and would be lost: move it away, "
      "name another folder, or replace it by --overwrite"
    )
  for name in kept:
    _log.warning("%s was changed by hand and stays as it is", folder / name)
  # First write both lists: they hold only after the last move, or if all is alike.
  _write_lines(folder, [line for line in before if line not in lines] + lines)
  for name in names:
    if name not in kept:
      files.make_folder((folder / name).parent)
      (new / name).replace(folder / name)
  for name in old.keys() - wanted.keys():
    if fits(name):
      (folder / name).unlink()
      with contextlib.suppress(OSError):  # The folder may hold files of others.
        (folder / name).parent.rmdir()
  for part in {(folder / name).parent for name in names}:
    files.to_disk(part)
  (new / NAME).replace(folder / NAME)
  files.to_disk(folder)


def _is_inside(name: str) -> bool:
  """Returns whether a listed name stays in the folder: others may have written it."""
  parts = pathlib.PurePosixPath(name).parts
  return bool(parts) and "\0" not in name and parts[0] != "/" and ".." not in parts


def _parse(line: str) -> tuple[str, str]:
  digest, _, name = line.rstrip("\n").partition("  ")
  return digest, name


def _parse_any(line: str) -> tuple[str, str]:
  """Parses a line, also that of a file that people may change."""
  return _parse(line.removeprefix(_FREE))


def _digest_or_none(path: pathlib.Path) -> str | None:
  try:
    return _digest(path)
  except OSError:
    return None


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _fixed_lines(folder: pathlib.Path) -> list[str]:
  """Returns all lines except those of files that people may change."""
  return [line for line in _read_lines(folder) if not line.startswith(_FREE)]


def _read_lines(folder: pathlib.Path) -> list[str]:
  if not (folder / NAME).exists():
    return []
  return (folder / NAME).read_text(encoding="utf-8").splitlines(True)[:-1]


def _line(folder: pathlib.Path, name: str) -> str:
  return f"{_digest(folder / name)}  {name}\n"


def _write_lines(folder: pathlib.Path, lines: list[str]) -> None:
  files.write_text(folder / NAME, "".join(lines) + _last(lines))


def _last(lines: list[str]) -> str:
  digest = hashlib.sha256("".join(lines).encode()).hexdigest()
  return f"# {len(lines)} files {digest}\n"

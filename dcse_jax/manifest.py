"""Digests of a folder's files, so that no damage passes for data.

The file is what `sha256sum -c SHA256SUMS` reads; its last line, a comment to that
program, is the digest of those before it.
"""

from collections.abc import Iterable
import hashlib
import pathlib

from dcse_jax import files

NAME = "SHA256SUMS"


def write(folder: pathlib.Path, names: Iterable[str] | None = None) -> None:
  """Writes the digests of files in a folder.

  Args:
    folder: gets the file `NAME`.
    names: relative to the folder; None takes all that is there.
  """
  if names is None:
    names = names_in(folder)
  _write_lines(folder, [_line(folder, name) for name in sorted(names) if name != NAME])


def names_in(folder: pathlib.Path) -> list[str]:
  """All files of a folder, relative to it."""
  names = []
  for path in folder.iterdir():
    inner = names_in(path) if path.is_dir() else [""]
    names += [f"{path.name}/{name}".rstrip("/") for name in inner]
  return names


def listed(folder: pathlib.Path) -> list[str]:
  """The files that the digests are of; none where there are no digests."""
  return [line.rstrip("\n").partition("  ")[2] for line in _read_lines(folder)]


def extend(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Adds the digests of files that are not listed, where there are digests."""
  there = set(listed(folder))
  if there and (new := [_line(folder, n) for n in names if n not in there]):
    _write_lines(folder, _read_lines(folder) + new)


def find_damage(folder: pathlib.Path) -> str | None:
  """What is wrong with a folder's files, for people; None if nothing is.

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
    digest, _, name = line.rstrip("\n").partition("  ")
    # What others wrote must not send us elsewhere.
    if "\0" in name or pathlib.Path(name).is_absolute() or ".." in name.split("/"):
      return f"{NAME} lists {name!r}, which is no file of the folder"
    try:
      if _digest(folder / name) != digest:
        return f"{name} is not as it was written"
    except FileNotFoundError:
      return f"{name} is missing"
    except OSError as error:
      return f"{name} cannot be read ({error.strerror})"
  return None


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


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

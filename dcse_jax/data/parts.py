"""A folder of Parquet parts: what `prepare` and `encode` write, and training reads.

Its `manifest.json` lists the parts with their rows. A folder without one is all of its
Parquet files in the order of their names.
"""

from collections.abc import Iterable, Iterator, Sequence
import hashlib
import itertools
import os
import pathlib
from typing import Any

from dcse_jax.data import arrow
from dcse_jax.data import decoding
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

MANIFEST = "manifest.json"
# A folder with one of these holds a model, whatever else is there.
OF_MODELS = ("config.json", "modules.json")
_SUFFIX = ".parquet"
# What `encode` keeps in a folder until it is whole.
_PROGRESS = ".progress"
_PART_ROWS, _GROUP_ROWS = 1 << 18, 1 << 16


def is_parts(folder: str | os.PathLike[str]) -> bool:
  """Returns whether this is a folder of Parquet parts."""
  path = pathlib.Path(folder)
  if not path.is_dir() or any((path / each).exists() for each in OF_MODELS):
    return False
  return any(path.glob(f"*{_SUFFIX}")) or _listed(path) is not None


def _listed(folder: pathlib.Path) -> list[dict[str, Any]] | None:
  """Returns what a manifest says of each part; None where there is no such manifest."""
  path = folder / MANIFEST
  manifest = files.read_json(path) if path.is_file() else None
  listed = manifest.get("parts") if isinstance(manifest, dict) else None
  if not isinstance(listed, list):
    return None
  if not all(isinstance(each, dict) and "name" in each for each in listed):
    raise decoding.user_error(f"{path}: not as it was written: make the folder again")
  return listed


def paths(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
  """Lists the parts of a folder in their order, each with the rows that it should have.

  Raises:
    UserError: one that the manifest lists is missing, or has other rows; or the folder
      is not finished.
  """
  pa = arrow.load(str(folder))
  import pyarrow.parquet as pq

  folder = pathlib.Path(folder)
  listed = _listed(folder)
  if listed is None and (folder / _PROGRESS).exists():
    raise decoding.user_error(
      f"{folder}: is not finished; run the command that makes it again"
    )
  if listed is None:
    hidden = lambda path: path.name[0] in "._"
    return [path for path in sorted(folder.glob(f"*{_SUFFIX}")) if not hidden(path)]
  found = []
  for each in listed:
    path = folder / str(each["name"])
    again = f"{MANIFEST} lists it with {each.get('rows')} rows: copy or make it again"
    if not path.is_file():
      raise decoding.user_error(f"{path}: is missing; {again}")
    try:
      rows = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
      raise decoding.user_error(f"{path}: cannot be read ({error}); {again}") from error
    if rows != each.get("rows", rows):
      raise decoding.user_error(f"{path}: has {rows} rows; {again}")
    found.append(path)
  return found


def rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[Any]]:
  """Yields the cells of all parts of a folder, as `arrow.rows` does."""
  for path in paths(source):
    yield from arrow.rows(str(path), columns, types)


def check_output(output: str) -> pathlib.Path:
  """Returns the path of a folder of parts, or of a .txt file, to write.

  Raises:
    UserError: it names something else, or the library is missing.
  """
  path = files.user_path(output)
  if path.suffix == ".txt":
    return path
  if path.suffix in (_SUFFIX, ".arrow", ".gz", ".csv", ".tsv", ".jsonl"):
    raise UserError(f"{output}: name a folder, or a file that ends in .txt")
  arrow.load(output)
  return path


def _manifest_path(path: pathlib.Path) -> pathlib.Path:
  return (
    path.with_name(f"{path.name}.json") if path.suffix == ".txt" else path / MANIFEST
  )


def read_manifest(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns what is known of an output of `write`; None where that is nothing."""
  listed = _manifest_path(path)
  manifest = files.read_json(listed) if listed.is_file() else None
  return manifest if isinstance(manifest, dict) else None


def write(
  path: pathlib.Path,
  work: pathlib.Path,
  rows: Iterable[tuple[str, str]],
  manifest: dict[str, Any],
) -> dict[str, Any]:
  """Writes ids and sentences; what is at the path appears when it is whole.

  Args:
    path: from `check_output`. A .txt gets the sentences alone.
    work: a folder on the same disk; parts that are finished there are kept.
    rows: the id and the sentence of each row.
    manifest: what is said of them.

  Returns:
    The manifest with a digest of each part.
  """
  if path.suffix == ".txt":
    with files.whole(path) as new:
      with new.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{sentence}\n" for _, sentence in rows)
      manifest = {**manifest, "sha256": _sha256(new)}
      # A manifest without its text says nothing, so it comes first.
      files.write_json(_manifest_path(path), manifest)
    return manifest
  folder, rows, listed = work / "parts", iter(rows), []
  files.make_folder(folder)
  while first := next(rows, None):
    part = itertools.chain([first], itertools.islice(rows, _PART_ROWS - 1))
    name = f"part-{len(listed):06}{_SUFFIX}"
    number = _write_part(folder / name, part)
    listed.append({"name": name, "rows": number, "sha256": _sha256(folder / name)})
  manifest = {**manifest, "columns": ["id", "text"], "parts": listed}
  files.write_json(folder / MANIFEST, manifest)
  folder.replace(path)
  files.to_disk(path.parent)
  return manifest


def _write_part(path: pathlib.Path, rows: Iterator[tuple[str, str]]) -> int:
  """Writes a part unless it is there, and returns how many rows it has."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  if path.exists():
    return sum(1 for _ in rows)
  schema, number = pa.schema([("id", pa.string()), ("text", pa.string())]), 0
  with files.whole(path) as new:
    with pq.ParquetWriter(new, schema, compression="zstd") as file:
      while group := list(itertools.islice(rows, _GROUP_ROWS)):
        columns = [pa.array(cells, pa.string()) for cells in zip(*group)]
        file.write_table(pa.table(columns, schema=schema))
        number += len(group)
  return number


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

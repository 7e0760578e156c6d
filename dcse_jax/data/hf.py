"""Sets of Hugging Face's `datasets`: folders that it saved, and what it loads by name.

A folder is a path: that of a Dataset, or DIR/SPLIT in that of a DatasetDict; pyarrow
alone reads it. `hf:NAME[@REVISION][:CONFIGURATION]:SPLIT:COLUMN[,COLUMN...]` is loaded
by the library, from its cache where it is there already.
"""

from collections.abc import Iterator, Sequence
import os
import pathlib
import re
from typing import Any

from dcse_jax.data import arrow
from dcse_jax.data import decoding
from dcse_jax.runtime import files

PREFIX = "hf:"
# A split may carry a slice ("train[:10%]").
_SPEC = re.compile(r"hf:([^:]+):(?:([^:\[\]]+):)?((?:[^:\[\]]|\[[^\]]*\])+):([^:]+)")
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: str) -> bool:
  """Returns whether `datasets` saved this folder: a set, or one for each split."""
  return any(os.path.isfile(os.path.join(folder, name)) for name in (_STATE, _SPLITS))


def saved_rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[Any]]:
  """Yields the cells of a folder that `datasets` saved, as `arrow.rows` does."""
  for path in _saved_files(pathlib.Path(source)):
    yield from arrow.rows(str(path), columns, types)


def _saved_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the Arrow files of a set in their order."""
  if not (folder / _STATE).is_file():
    splits = files.read_json(folder / _SPLITS)
    splits = splits.get("splits") if isinstance(splits, dict) else None
    names = [str(name) for name in splits or ()]
    raise decoding.user_error(
      f"{folder}: holds the splits {decoding.names(names)}; name one of them, as in "
      f"{folder / (names or ['train'])[0]}"
    )
  state = files.read_json(folder / _STATE)
  try:
    if state.get("_indices_files") or state.get("_indices_data_files"):
      raise decoding.user_error(
        f"{folder}: an old version of datasets saved its rows beside their order; load "
        "it with datasets.load_from_disk, flatten_indices() and save it again"
      )
    return [folder / file["filename"] for file in state["_data_files"]]
  except (AttributeError, KeyError, TypeError) as error:
    raise decoding.user_error(
      f"{folder / _STATE}: not as datasets writes it; copy or save the folder again"
    ) from error


def columns(source: str) -> list[str]:
  """Returns the columns that a source names."""
  return _parse(source)[-1]


def _parse(source: str) -> tuple[str, str | None, str, list[str]]:
  match = _SPEC.fullmatch(source)
  names = match.group(4).split(",") if match else []
  if not names or not all(names):
    raise decoding.user_error(
      f"{source}: not a set of Hugging Face's; write hf:NAME:SPLIT:COLUMN[,COLUMN...], "
      "or hf:NAME:CONFIGURATION:SPLIT:COLUMN"
    )
  return match.group(1), match.group(2), match.group(3), names


def rows(
  source: str, columns: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[Any]]:
  """Yields the cells of a set that `datasets` loads by its name.

  Args:
    source: see the module.
    columns: those that it names, or paths to fields of structs.
    types: as in `arrow.rows`.

  Raises:
    UserError: the library is missing, or it cannot load the set.
  """
  name, configuration, split, _ = _parse(source)
  try:
    import datasets  # It is an extra, and slow to load.
  except ImportError as error:
    raise decoding.user_error(
      f"{source}: sets of Hugging Face's need datasets: pip install 'dcse_jax[data]'"
    ) from error
  place, _, revision = name.partition("@")
  try:
    loaded = datasets.load_dataset(
      os.path.expanduser(place), configuration, split=split, revision=revision or None
    )
  except Exception as error:  # It raises whatever a set's files make it raise.
    reason = " ".join(str(error).split())[:300].rstrip(".")
    raise decoding.user_error(
      f"{source}: datasets cannot load it ({reason}); check the name, the split, the "
      "configuration where there are several, and the connection; without one it must "
      "be in the library's cache"
    ) from error
  batches = loaded.with_format("arrow").iter(arrow.BATCH_ROWS)
  yield from arrow.cells(source, columns, loaded.features.arrow_schema, batches, types)

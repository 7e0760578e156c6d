"""Reading and writing small files: whole, or with an error of one line."""

import json
import os
import pathlib
from typing import Any

from dcse_jax.errors import UserError


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file; UserError where it cannot be."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(
      f"cannot read {path} ({error}): restore it, or remove it"
    ) from error


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder if there is none; UserError where it cannot be."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"cannot make the folder {path} ({error.strerror}): name another"
    ) from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Writes a JSON file whole: beside, then renamed."""
  path = pathlib.Path(path)
  beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error

"""Writing files whole."""

import json
import os
import pathlib
from typing import Any

from dcse_jax.errors import UserError


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Writes a JSON file whole: beside, then renamed."""
  path = pathlib.Path(path)
  beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(content, indent=2) + "\n")
    beside.replace(path)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error

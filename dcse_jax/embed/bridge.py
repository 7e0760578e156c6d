"""The bridge to sentence-transformers, for models that run there alone.

It is imported only when it is crossed: nothing else needs PyTorch.
"""

from collections.abc import Sequence
import hashlib
import importlib.metadata
import pathlib
from typing import Any

import numpy as np

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_BYTES = 1 << 24


def load(kind: str, name: str, **settings: Any) -> Any:
  """Loads a model by sentence-transformers, never with code of its own.

  Args:
    kind: "SentenceTransformer" or "CrossEncoder".
    name: a folder or hub id, or ID@REVISION.
    **settings: of the class, such as truncate_dim.

  Raises:
    UserError: sentence-transformers is missing, or cannot load the model.
  """
  try:
    import sentence_transformers
  except ImportError as error:
    raise UserError(
      f"{name} runs by sentence-transformers: pip install 'dcse_jax[torch]'"
    ) from error
  place, _, revision = name.partition("@")
  if pathlib.Path(name).expanduser().exists():
    place, revision = str(files.user_path(name)), ""
  try:
    return getattr(sentence_transformers, kind)(
      place, revision=revision or None, trust_remote_code=False, **settings
    )
  except Exception as error:  # It raises whatever a model's files make it raise.
    first = " ".join(str(error).split())[:300]
    raise UserError(
      f"sentence-transformers cannot load {name} ({first}): check the folder or id"
    ) from error


def identity(name: str, config: Any) -> dict[str, Any]:
  """Returns what tells a model from others: its commit, or a digest of its folder.

  Args:
    name: as in `load`.
    config: transformers' config of the loaded model.
  """
  place, _, revision = name.partition("@")
  folder = files.user_path(name)
  known = {"model": name, "backend": "sentence-transformers"}
  known["version"] = importlib.metadata.version("sentence-transformers")
  if not folder.is_dir():
    return known | {
      "model": place,
      "revision": getattr(config, "_commit_hash", None) or revision or None,
    }
  digest = hashlib.sha256()
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    digest.update(f"{path.relative_to(folder)}\n".encode())
    with path.open("rb") as file:
      while block := file.read(_BYTES):
        digest.update(block)
  return known | {"revision": None, "folder": digest.hexdigest()}


class CrossEncoder:
  """A model that reads two texts together and scores how well they fit.

  Args:
    name: a folder or hub id, or ID@REVISION.
    batch_size: pairs that are scored at once.

  Attributes:
    origin: what the scores depend on, JSON.

  Raises:
    UserError: it cannot be loaded, or has more than one score.
  """

  def __init__(self, name: str, *, batch_size: int):
    self._model, self._batch_size = load("CrossEncoder", name), batch_size
    if self._model.num_labels != 1:
      raise UserError(
        f"{name} gives {self._model.num_labels} numbers for two texts: name a "
        "cross-encoder that gives one score"
      )
    self.origin = {**identity(name, self._model.config), "batch_size": batch_size}

  def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Returns the score of each pair of texts, [n] float32."""
    scores = self._model.predict(
      list(pairs), batch_size=self._batch_size, show_progress_bar=False
    )
    return np.asarray(scores, np.float32)

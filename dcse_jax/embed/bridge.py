"""The bridge to sentence-transformers, for models that run there alone.

It is imported only when it is crossed: nothing else needs PyTorch.
"""

from collections.abc import Iterable, Iterator, Sequence
import hashlib
import importlib.metadata
import itertools
import pathlib
from typing import Any
import weakref

import numpy as np

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

# Sentences that are sorted by length at a time.
CHUNK = 4096
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


class Teacher:
  """A model that embeds sentences, on one device or on several.

  Args:
    model: a folder or hub id, or ID@REVISION.
    prompt: the name of one of the model's prompts; None for its default, if any.
    prompt_text: stands before every sentence, in place of a prompt by name.
    truncate_dim: leading numbers that are kept; None for the model's own.
    batch_size: sentences that are embedded at once.
    devices: how many of this host's devices embed, each with a copy of the model in a
      process of its own; None takes all accelerators.

  Attributes:
    origin: what the embeddings depend on, JSON.
    width: the numbers of an embedding.

  Raises:
    UserError: it cannot be loaded, has no such prompt, or there are fewer devices.
  """

  def __init__(
    self,
    model: str,
    *,
    prompt: str | None = None,
    prompt_text: str | None = None,
    truncate_dim: int | None = None,
    batch_size: int = 64,
    devices: int | None = None,
  ):
    if prompt and prompt_text:
      raise UserError("--prompt and --prompt_text exclude each other: give one")
    self._model = load("SentenceTransformer", model, truncate_dim=truncate_dim)
    if prompt and prompt not in self._model.prompts:
      known = ", ".join(map(repr, self._model.prompts)) or "none"
      raise UserError(
        f"--prompt={prompt}: the prompts of {model} are: {known}; name one of them, or "
        "give the words themselves by --prompt_text"
      )
    name = prompt or self._model.default_prompt_name
    self._settings = {
      "prompt": prompt_text or self._model.prompts.get(name, "") or "",
      "batch_size": batch_size,
      "show_progress_bar": False,
      "convert_to_numpy": True,
    }
    self.origin = {
      **identity(model, self._model[0].auto_model.config),
      "prompt": self._settings["prompt"],
      "truncate_dim": truncate_dim,
      "batch_size": batch_size,
    }
    self.width = self._model.encode(["width"], show_progress_bar=False).shape[1]
    places = _devices(devices)
    self._at_once = CHUNK * len(places)
    if len(places) > 1:
      pool = self._model.start_multi_process_pool(places)
      weakref.finalize(self, self._model.stop_multi_process_pool, pool)
      self._settings |= {"pool": pool, "chunk_size": CHUNK}

  def stream(self, sentences: Iterable[str]) -> Iterator[np.ndarray]:
    """Yields the embeddings of sentences, [m, D] at a time.

    Sentences are sorted by length `CHUNK` at a time, whatever the number of devices, so
    that an interrupted file goes on to the same bytes at any multiple.
    """
    sentences = iter(sentences)
    while several := list(itertools.islice(sentences, self._at_once)):
      yield self._model.encode(several, **self._settings)


def _devices(number: int | None) -> list[str]:
  """Names the devices that embed; see `Teacher`."""
  import torch

  there = torch.cuda.device_count()
  if not there:
    # Processes share the CPU, so that there are several only if they are asked for.
    return ["cpu"] * (number or 1)
  if (number or 1) > there:
    raise UserError(f"--devices={number}: this host has {there}; give no more")
  return [f"cuda:{i}" for i in range(number or there)]


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

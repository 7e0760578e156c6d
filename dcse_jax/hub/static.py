"""sentence-transformers' StaticEmbedding: a table of embeddings beside a tokenizer.

Holds what `huggingface` needs of a family. There is no config.json: the weights say all.
model2vec's folders, which sentence-transformers loads as the same, are read, too.
"""

from collections.abc import Mapping
import pathlib
import re

import numpy as np
import safetensors

from dcse_jax.hub import tables
from dcse_jax.hub.settings import MEND
from dcse_jax.model import static
from dcse_jax.runtime.errors import UserError

_TABLE = "embedding.weight"
TENSORS = {"embeddings.word": ("embedding", tables.EMBEDDING)}
ABSENT: dict[str, float] = {}
IGNORED = re.compile("(?!)")


def rename(name: str) -> str:
  """Returns a tensor's name in `TENSORS`."""
  return name


def fold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Makes one table of model2vec's embeddings, its mapping from tokens and weights."""
  tensors = dict(tensors)
  if "embeddings" not in tensors:
    return tensors
  table = tensors.pop("embeddings")
  if "mapping" in tensors:
    table = table[tensors.pop("mapping")]
  if "weights" in tensors:
    table = np.float32(table) * np.float32(tensors.pop("weights"))[:, None]
  return {_TABLE: table, **tensors}


def read_config(folder: pathlib.Path) -> static.EncoderConfig:
  """Reads the shape of a folder's table.

  Raises:
    UserError: there is none, or it is damaged.
  """
  path = folder / "model.safetensors"
  if not path.exists():
    raise UserError(
      f"{folder} has no model.safetensors: save the model anew by sentence-transformers"
    )
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      names = list(file.keys())
      shape = lambda name: tuple(file.get_slice(name).get_shape())
      rows, width = shape(_TABLE if _TABLE in names else "embeddings")
      rows = shape("mapping")[0] if "mapping" in names else rows
  except Exception as error:  # Damaged files fail in many ways.
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"{path} holds no table of embeddings ({reason}): {MEND}"
    ) from error
  return static.EncoderConfig(vocab_size=rows, hidden_size=width)

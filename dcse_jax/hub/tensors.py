"""The files of a folder's weights, read as arrays by name."""

import pathlib

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from dcse_jax.hub import torch_file
from dcse_jax.hub.settings import MEND
from dcse_jax.hub.settings import read_settings
from dcse_jax.runtime.errors import UserError


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files of a module's weights: a single one or the shards of an index.

  Where there are several forms it takes the one that transformers takes: safetensors
  before PyTorch's, one file before shards. The list is empty where there is none.

  Raises:
    UserError: an index that names no files of its folder.
  """
  for single in ("model.safetensors", "pytorch_model.bin"):
    if (folder / single).exists():
      return [folder / single]
    index = folder / f"{single}.index.json"
    if not index.exists():
      continue
    weight_map = read_settings(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    # A name that leads elsewhere is not a file of the folder.
    is_name = lambda n: n == pathlib.PurePath(n).name and n not in ("", "..")
    if not all(type(name) is str and is_name(name) for name in names):
      raise UserError(f"{index} names no files of its folder: {MEND}")
    return [folder / name for name in sorted(set(names))]
  return []


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads model.safetensors or pytorch_model.bin, or the shards of one of them.

  Raises:
    UserError: no weights in these forms, or a damaged or missing file.
  """
  if (folder / "adapter_config.json").exists():
    raise UserError(
      f"{folder} holds an adapter (adapter_config.json), which is not supported: merge "
      "it into the model with merge_and_unload() of peft, and save that"
    )
  if not (shards := weight_files(folder)):
    raise UserError(
      f"{folder} has no model.safetensors, pytorch_model.bin or index of shards: save "
      "the model with model.save_pretrained(folder) from transformers"
    )
  tensors = {}
  for shard in shards:
    if shard.suffix == ".bin":
      tensors.update(torch_file.read_tensors(shard))
      continue
    try:
      tensors.update(safetensors.numpy.load_file(shard))
    except Exception as error:  # Damaged, missing, of types that NumPy lacks, ...
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      raise UserError(f"cannot read {shard} ({reason}): {MEND}") from error
  return tensors


def as_float32(tensor: np.ndarray) -> np.ndarray:
  """Converts a tensor of a checkpoint to finite float32, as an encoder takes it.

  Raises:
    ValueError: it does not hold floats, or some are not finite; it says which.
  """
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(f"holds {tensor.dtype}, not floats")
  with np.errstate(over="ignore"):
    tensor = np.ascontiguousarray(tensor, dtype=np.float32)
  if not np.isfinite(tensor).all():
    raise ValueError("holds NaN or infinity")
  return tensor

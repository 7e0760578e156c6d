"""Poolings as sentence-transformers' folders have them, read and written."""

import pathlib
from typing import Any

import numpy as np

from dcse_jax.hub.settings import check_settings
from dcse_jax.hub.settings import read_settings
from dcse_jax.hub.settings import wrong_value
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.family import EncoderConfig
from dcse_jax.runtime.errors import UserError

# Our name of a pooling: the value of "pooling_mode" in sentence-transformers 6.x, and
# the flag "pooling_mode_..." of earlier releases. Set flags count in this order.
_POOLING_MODES = {
  "cls": ("cls", "cls_token"),
  "max": ("max", "max_tokens"),
  "mean": ("mean", "mean_tokens"),
  "mean_sqrt_len": ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
  "weightedmean": ("weightedmean", "weightedmean_tokens"),
  "lasttoken": ("lasttoken", "lasttoken"),
}
# Flags that the first releases knew; others are written only where they are set.
_FIRST_FLAGS = ("cls", "max", "mean", "mean_sqrt_len")


def read_pooling(path: pathlib.Path, config: EncoderConfig) -> tuple[str, bool]:
  """Reads a Pooling module's config.json.

  Returns:
    The pooling, by our name, and whether it pools the tokens of a prompt.

  Raises:
    UserError: it is none that is known, or does not fit the encoder.
  """
  settings = read_settings(path)
  flags = {f"pooling_mode_{flag}": ours for ours, (_, flag) in _POOLING_MODES.items()}
  widths = ("embedding_dimension", "word_embedding_dimension")
  read = {*flags, *widths, "pooling_mode", "include_prompt"}
  check_settings(path, settings, read=read)
  width = next((settings[key] for key in widths if key in settings), None)
  if width != config.hidden_size:
    raise wrong_value(
      path, widths[1], width, f"{config.hidden_size}, the encoder's width"
    )
  included = settings.get("include_prompt", True)
  if type(included) is not bool:
    raise wrong_value(path, "include_prompt", included, "true or false")
  modes = settings.get("pooling_mode")
  if modes is None:
    pooling = "+".join(ours for key, ours in flags.items() if settings.get(key))
    return pooling or "mean", included
  names = {theirs: ours for ours, (theirs, _) in _POOLING_MODES.items()}
  modes = [modes] if isinstance(modes, str) else modes
  if type(modes) is not list or not modes or not all(m in list(names) for m in modes):
    raise wrong_value(path, "pooling_mode", modes, f"one or more of {', '.join(names)}")
  return "+".join(names[mode] for mode in modes), included


def pooling_settings(pooling: str, width: int) -> dict[str, Any]:
  """Returns the config.json of a Pooling: flags, if these can say the same."""
  modes = (pooling_lib.get(pooling).same_as or pooling).split("+")
  if modes != [mode for mode in _POOLING_MODES if mode in modes]:
    names = [_POOLING_MODES[mode][0] for mode in modes]
    return {"embedding_dimension": width, "pooling_mode": names}
  flags = {
    f"pooling_mode_{flag}": mode in modes
    for mode, (_, flag) in _POOLING_MODES.items()
    if mode in modes or mode in _FIRST_FLAGS
  }
  return {"word_embedding_dimension": width, **flags}


def layer_weights(pooling: str, num_layers: int) -> np.ndarray:
  """Returns the weight of the embedding layer and of each layer, [1 + layers]."""
  weights = np.zeros(num_layers + 1, np.float32)
  weights[[pooling_lib.get(pooling).beside, -1]] = 1.0
  return weights


def read_layers(
  path: pathlib.Path, encoder: pathlib.Path, config: EncoderConfig
) -> str:
  """Finds the pooling that a WeightedLayerPooling before a mean makes.

  Args:
    path: the module's folder.
    encoder: the folder of the Transformer.
    config: the encoder's.

  Raises:
    UserError: it is not one of ours.
  """
  settings = read_settings(path / "config.json")
  known = "embedding_dimension word_embedding_dimension num_hidden_layers layer_start"
  check_settings(path / "config.json", settings, read=known.split())
  if not read_settings(encoder / "config.json").get("output_hidden_states"):
    raise UserError(
      f"{path}: WeightedLayerPooling does nothing unless config.json says "
      "output_hidden_states: add it there, or remove the module from modules.json"
    )
  weights = read_tensors(path).get("layer_weights")
  if np.shape(weights) != (config.num_layers + 1,):
    raise UserError(
      f"{path}: layer_weights has shape {np.shape(weights)}, which does not fit the "
      f"{config.num_layers} layers of config.json: fetch the folder again"
    )
  start = settings.get("layer_start", 4)  # The module's own default.
  for name, pooling in pooling_lib.POOLINGS.items():
    if pooling.beside is None or start != 0:
      continue
    if np.array_equal(weights, layer_weights(name, config.num_layers)):
      return name
  raise UserError(
    f"{path}: WeightedLayerPooling is supported as a mean of the top two layers, or of "
    "the first or the embedding layer and the last, from layer_start 0, alone"
  )

"""Dense layers as sentence-transformers' folders have them, read and written."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from dcse_jax.hub.settings import check_settings
from dcse_jax.hub.settings import read_settings
from dcse_jax.hub.tensors import as_float32
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.model.heads import Head
from dcse_jax.runtime.errors import UserError

_EMBEDDING = "sentence_embedding"


def check_names(path: pathlib.Path, settings: Mapping[str, Any], read=()) -> None:
  """Refuses a module that reads or writes anything but the embedding."""
  names = {"module_input_name": _EMBEDDING, "module_output_name": _EMBEDDING}
  check_settings(path, settings, read=read, defaults=names)


def read_activation(path: pathlib.Path) -> str:
  """Reads the activation that a Dense module's config.json says."""
  settings = read_settings(path)
  # The weights say the shape.
  known = ("in_features", "out_features", "bias", "activation_function")
  check_names(path, settings, known)
  name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
  package, _, activation = str(name).rpartition(".")
  if not f"{package}.".startswith("torch.nn.") or activation not in Head.ACTIVATIONS:
    raise UserError(
      f"{path}: activation_function {name} is not supported; known are those of "
      f"torch.nn named {', '.join(Head.ACTIVATIONS)}"
    )
  return activation


def read_head(layers: Sequence[tuple[pathlib.Path, str]], size: int) -> Head | None:
  """Reads the dense layers after a pooling.

  Args:
    layers: the folder and the activation of each, in order.
    size: the width of what the first one takes.
  """
  heads = []
  for path, activation in layers:
    tensors = read_tensors(path)
    heads.append(make_head(path, tensors, "linear", size, activation))
    size = len(heads[-1].bias)
  head = None
  for each in reversed(heads):
    head = dataclasses.replace(each, then=head)
  return head


def read_shapes(layers: Sequence[tuple[pathlib.Path, str]]) -> Head | None:
  """Reads the shapes of the dense layers after a pooling, without their weights.

  Args:
    layers: see `read_head`.

  Returns:
    A head of zeros that take no memory.
  """
  head = None
  for path, activation in reversed(layers):
    settings = read_settings(path / "config.json")
    sizes = [settings.get(name) for name in ("in_features", "out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
      raise UserError(f"{path}: in_features and out_features must be whole numbers")
    kernel, bias = (
      np.broadcast_to(np.float32(0), shape) for shape in (sizes, sizes[1:])
    )
    head = Head(kernel, bias, activation, then=head)
  return head


def make_head(
  folder: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  name: str,
  size: int,
  activation: str,
) -> Head:
  """Makes a head from a torch.nn.Linear; one without a bias gets zeros.

  Args:
    folder: where the tensors come from, for errors.
    tensors: a checkpoint's.
    name: what stands before ".weight" and ".bias".
    size: the width of its input.
    activation: a key of `Head.ACTIVATIONS`.

  Raises:
    UserError: the tensors are not there or do not fit.
  """
  try:
    if f"{name}.weight" not in tensors:
      raise ValueError("is missing")
    kernel = as_float32(tensors[f"{name}.weight"].T)
    if kernel.ndim != 2 or len(kernel) != size:
      raise ValueError(f"has a weight of shape {kernel.T.shape}, not (any, {size})")
    bias = tensors.get(f"{name}.bias", np.zeros(kernel.shape[1], np.float32))
    bias = as_float32(bias)
    if bias.shape != kernel.shape[1:]:
      raise ValueError(f"has a bias of shape {bias.shape}, not {kernel.shape[1:]}")
  except ValueError as error:
    raise UserError(f"{folder}: {name} {error}: fetch the folder again") from error
  return Head(kernel, bias, activation)


def describe(layer: Head) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the config.json and the tensors of a Dense module."""
  d_in, d_out = layer.kernel.shape
  package = "linear" if layer.activation == "Identity" else "activation"
  settings = {
    "in_features": d_in,
    "out_features": d_out,
    "bias": True,
    "activation_function": f"torch.nn.modules.{package}.{layer.activation}",
  }
  kernel = np.ascontiguousarray(layer.kernel.T)
  return settings, {"linear.weight": kernel, "linear.bias": layer.bias}

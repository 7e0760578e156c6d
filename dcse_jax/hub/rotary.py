"""Reads and writes rotary positions, windows and gates in config.json's forms."""

from collections.abc import Mapping
import re
from typing import Any

from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import LINEAR
from dcse_jax.model import layers
from dcse_jax.runtime.errors import UserError

# The kinds of layers that are known.
FULL, LOCAL = "full_attention", "sliding_attention"

# Names of decoders' heads there and here, and the tensors that families name alike.
_HEADS = {"num_key_value_heads": "kv_heads", "head_dim": "head_size"}
ATTENTION = {
  "layers.attention.query": ("layers.{i}.self_attn.q_proj", LINEAR),
  "layers.attention.key": ("layers.{i}.self_attn.k_proj", LINEAR),
  "layers.attention.value": ("layers.{i}.self_attn.v_proj", LINEAR),
  "layers.attention.output": ("layers.{i}.self_attn.o_proj", LINEAR),
}
MLP = {
  "layers.mlp.gate": ("layers.{i}.mlp.gate_proj", LINEAR),
  "layers.mlp.up": ("layers.{i}.mlp.up_proj", LINEAR),
  "layers.mlp.down": ("layers.{i}.mlp.down_proj", LINEAR),
}
# Heads of decoders, and buffers.
DECODER_HEADS = re.compile(r"lm_head\..*|score\..*|(.*\.)?rotary_emb\..*")
# What decoders' families read besides `SIZES`.
DECODER_READ = (
  *_HEADS,
  "model_type",
  "attention_bias",
  "pad_token_id",
  "layer_types",
  "rope_parameters",
  "rope_scaling",
)


def read_fields(
  settings: Settings,
  *,
  fractions: Mapping[str, tuple[str, float]],
  activation: str,
  default_activation: str,
  default_pad: int,
) -> dict[str, Any]:
  """Reads the fields of `rotary.RotaryConfig`.

  Args:
    settings: those of config.json.
    fractions: its numbers in [0, 1): our name and the default, by its name.
    activation: its name for the gate's activation.
    default_activation: stands for one that is not there.
    default_pad: stands for a pad token's id that is not there.

  Raises:
    UserError: no encoder has such numbers.
  """
  fields = {field: settings.size(name) for name, field in SIZES.items()}
  for name, (field, default) in fractions.items():
    fields[field] = settings.fraction(name, default)
  known = layers.ACTIVATIONS
  fields["activation"] = settings.choice(activation, default_activation, known)
  fields["pad_token_id"] = settings.token_id("pad_token_id", default_pad)
  return {"model_type": settings.take("model_type"), **fields}


def check_heads(settings: Settings, fields: Mapping[str, Any]) -> None:
  """Refuses a width that its heads do not divide into pairs."""
  heads = fields["num_heads"]
  is_right = fields["hidden_size"] % (2 * heads) == 0
  wanted = "a divisor of half of hidden_size"
  settings.check("num_attention_heads", heads, is_right, wanted)


def read_heads(settings: Settings, num_heads: int) -> dict[str, Any]:
  """Reads a decoder's heads: how many have keys and values, and how wide they are."""
  fields = {field: settings.size(name) for name, field in _HEADS.items()}
  kv_heads, size = fields["kv_heads"], fields["head_size"]
  is_right = num_heads % kv_heads == 0
  wanted = "a divisor of num_attention_heads"
  settings.check("num_key_value_heads", kv_heads, is_right, wanted)
  settings.check("head_dim", size, size % 2 == 0, "an even number")
  return {**fields, "attention_bias": settings.flag("attention_bias", False)}


def decoder_to_json(config: Any) -> dict[str, Any]:
  """Returns the keys of config.json that decoders' families write alike."""
  return {
    "model_type": config.model_type,
    **{theirs: getattr(config, ours) for theirs, ours in (SIZES | _HEADS).items()},
    "rms_norm_eps": config.layer_norm_eps,
    "initializer_range": config.initializer_range,
    "attention_dropout": config.attention_dropout,
    "attention_bias": config.attention_bias,
    "layer_types": layer_types(config.is_local),
    "pad_token_id": config.pad_token_id,
    "use_cache": False,
    "dtype": "float32",
  }


def read_local(
  settings: Settings, num_layers: int, default: tuple[bool, ...]
) -> tuple[bool, ...]:
  """Reads `layer_types`: for each layer, whether its tokens see only a window.

  Args:
    settings: those of config.json.
    num_layers: how many there are.
    default: stands for one that is not there.

  Raises:
    UserError: there is another kind of layer, or another number of them.
  """
  types = settings.values.get("layer_types")
  if types is None:
    return default
  is_right = type(types) is list and len(types) == num_layers
  settings.check("layer_types", types, is_right, f"a list of {num_layers}")
  for each in types:
    if each not in (FULL, LOCAL):
      raise UserError(
        f"{settings.path}: layer_types has {each!r:.80}, which is not supported; known "
        f"are {FULL} and {LOCAL}"
      )
  return tuple(each == LOCAL for each in types)


def read_theta(
  settings: Settings, kind: str | None, old_name: str, default: float
) -> float:
  """Reads the base of the angles, from `rope_parameters` or as transformers 4 has it.

  Args:
    settings: those of config.json.
    kind: the kind of layers, if they differ; None if they do not.
    old_name: its name in transformers 4.
    default: the base if neither says anything.

  Raises:
    UserError: positions are of another kind, or the base is not a number above 1.
  """
  parameters, where = settings.values.get("rope_parameters"), "rope_parameters"
  if kind and parameters is not None:
    settings.check(where, parameters, isinstance(parameters, dict), "an object")
    if unknown := [each for each in parameters if each not in (FULL, LOCAL)]:
      raise _unsupported(settings, where + "." + unknown[0], parameters[unknown[0]])
    parameters, where = parameters.get(kind), f"{where}.{kind}"
  scaling = settings.values.get("rope_scaling")
  for name, value in ((where, parameters), ("rope_scaling", scaling)):
    settings.check(name, value, value is None or isinstance(value, dict), "an object")
    _check_plain(settings, name, value or {})
  theta = (parameters or {}).get("rope_theta", settings.values.get(old_name, default))
  is_right = type(theta) in (int, float) and theta > 1
  settings.check(
    f"{where}.rope_theta or {old_name}", theta, is_right, "a number above 1"
  )
  return float(theta)


def _check_plain(settings: Settings, where: str, parameters: dict[str, Any]) -> None:
  """Refuses angles that depend on more than the position and the base."""
  plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
  for key, value in parameters.items():
    if key != "rope_theta" and value is not None and value != plain.get(key):
      raise _unsupported(settings, f"{where}.{key}", value)


def _unsupported(settings: Settings, field: str, value: Any) -> UserError:
  return UserError(
    f"{settings.path}: {field} is {value!r:.80}, which is not supported, only rotary "
    'positions of rope_type "default": use another model'
  )


def rope_to_json(full: float, local: float | None = None) -> dict[str, Any]:
  """Returns `rope_parameters` with one base, or with one for each kind of layers."""
  make = lambda theta: {"rope_type": "default", "rope_theta": theta}
  if local is None:
    return make(full)
  return {FULL: make(full), LOCAL: make(local)}


def layer_types(is_local: tuple[bool, ...]) -> list[str]:
  """Inverts `read_local`."""
  return [LOCAL if each else FULL for each in is_local]

"""What sentence-transformers puts around an encoder: modules.json and its modules.

A setting that may change embeddings is read, or refused by its name: see
`settings.check_settings`.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

from dcse_jax.hub import huggingface
from dcse_jax.hub.settings import check_settings
from dcse_jax.hub.settings import read_settings
from dcse_jax.hub.tensors import as_float32
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.family import EncoderConfig
from dcse_jax.model.heads import Head
from dcse_jax.model.model import SIMILARITIES
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

# The kinds of modules in the only order that is read. Dropout does nothing here.
_ORDER = re.compile(
  "Transformer (WeightedLayerPooling )?Pooling ((Dense|Dropout) )*"
  "((Normalize|Dropout) )*"
)
# Packages of sentence-transformers for models that are not encoders of sentences.
_OTHER_MODELS = {"cross_encoder", "sparse_encoder", "multi_vector_encoder"}

# The first of these that holds anything says how to call the Transformer.
_TRANSFORMER_FILES = [
  f"sentence_{kind}_config.json"
  for kind in "bert roberta distilbert camembert albert xlm-roberta xlnet".split()
]
# The only way to call it that is supported.
_TRANSFORMER_DEFAULTS = {
  "transformer_task": "feature-extraction",
  "modality_config": {
    "text": {"method": "forward", "method_output_name": "last_hidden_state"}
  },
  "module_output_name": "token_embeddings",
  "backend": "torch",
}

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

_EMBEDDING = "sentence_embedding"


@dataclasses.dataclass(frozen=True)
class Modules:
  """What a folder says about its model besides the encoder.

  Attributes:
    pooling: a name that `pooling.get` knows; None without a modules.json.
    dense: the folder and the activation of each dense layer after the pooling.
    normalize: whether embeddings end at unit length.
    max_length: the longest sentence, in tokens; None if it is not said.
    lower_case: whether text is lower-cased even if the tokenizer does not.
    prompts: texts to put before a sentence, by name.
    default_prompt: the name of the prompt that is put there, or None.
    similarity: one of `model.SIMILARITIES`.
    truncate_dim: how many leading numbers of an embedding are kept; None keeps all.
  """

  pooling: str | None = None
  dense: tuple[tuple[pathlib.Path, str], ...] = ()
  normalize: bool = False
  max_length: int | None = None
  lower_case: bool = False
  prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  default_prompt: str | None = None
  similarity: str = "cosine"
  truncate_dim: int | None = None


def folders(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """Lists the kind and the folder of each module in order; the encoder is the first.

  A folder without modules.json is an encoder alone.

  Raises:
    UserError: modules.json is damaged, or names code from elsewhere.
  """
  path = folder / "modules.json"
  if not path.exists():
    return [("Transformer", folder)]
  modules, found = files.read_json(path), []
  try:
    if not modules or type(modules) is not list:
      raise TypeError
    for module in modules:
      name, inner = module["type"], module["path"]
      package, *packages = name.split(".")
      # A path that leads elsewhere is not in the folder.
      if pathlib.PurePath(inner).is_absolute() or ".." in pathlib.PurePath(inner).parts:
        raise ValueError
      found.append((packages[-1] if packages else name, folder / inner))
      if package != "sentence_transformers" or _OTHER_MODELS.intersection(packages):
        raise UserError(
          f"{path}: the module {name} is not supported, only those of "
          "sentence-transformers for embeddings of sentences: use another model"
        )
      known = ("type", "path", "idx", "name")
      check_settings(path, module, read=known)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} is no list of modules: fetch it again") from error
  return found


def read(
  folder: pathlib.Path,
) -> tuple[pathlib.Path, EncoderConfig, Modules]:
  """Reads what a folder's small files say.

  Returns:
    The folder of the encoder and its tokenizer; the encoder's shape; and all else that
    the files say.

  Raises:
    UserError: a setting would change embeddings and is not known here.
  """
  (first, encoder), *others = folders(folder)
  # These files tell best if it is another kind of model.
  fields = {"dense": (), **_read_card(folder)}
  if first == "Transformer":
    fields |= _read_transformer(encoder)
  kinds = [first, *(kind for kind, _ in others)]
  is_known = _ORDER.fullmatch("".join(f"{kind} " for kind in kinds))
  if (folder / "modules.json").exists() and not is_known:
    raise UserError(
      f"{folder / 'modules.json'}: the modules {', '.join(kinds)} are not supported: a "
      "folder may hold a Transformer, perhaps WeightedLayerPooling, then Pooling, any "
      "number of Dense, and Normalize, in this order"
    )
  config, layers = huggingface.read_config(encoder), None
  for kind, path in others:
    if kind == "WeightedLayerPooling":
      layers = _read_layers(path, encoder, config)
    elif kind == "Pooling":
      prompts = fields["prompts"]
      fields["pooling"] = _read_pooling(path / "config.json", config, prompts)
    elif kind == "Dense":
      fields["dense"] += ((path, _read_dense(path / "config.json")),)
    elif kind == "Normalize":
      fields["normalize"] = True
      if (path / "config.json").exists():
        settings = read_settings(path / "config.json")
        _check_names(path / "config.json", settings)
  if layers and fields["pooling"] != "mean":
    raise UserError(
      f"{folder}: WeightedLayerPooling is supported before a Pooling by mean alone, "
      f"not by {fields['pooling']}: use another model"
    )
  if layers:
    fields["pooling"] = layers
  return encoder, config, Modules(**fields)


def read_head(modules: Modules, size: int) -> Head | None:
  """Reads the dense layers after a pooling that gives `size` numbers."""
  heads = []
  for path, activation in modules.dense:
    tensors = read_tensors(path)
    heads.append(make_head(path, tensors, "linear", size, activation))
    size = len(heads[-1].bias)
  head = None
  for each in reversed(heads):
    head = dataclasses.replace(each, then=head)
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


def _wrong(path: pathlib.Path, name: str, value: Any, wanted: str) -> UserError:
  return UserError(f"{path}: {name} is {value!r:.80}, not {wanted}: fetch it again")


def _read_card(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the fields of `Modules` that are in config_sentence_transformers.json."""
  path = folder / "config_sentence_transformers.json"
  settings = read_settings(path) if path.exists() else {}
  read = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
  check_settings(
    path,
    settings,
    read=read,
    harmless=("__version__",),
    defaults={"model_type": "SentenceTransformer"},
  )
  prompts, name, similarity, size = map(settings.get, read)
  prompts = {} if prompts is None else prompts
  if not isinstance(prompts, dict) or not all(
    value is None or type(value) is str for value in prompts.values()
  ):
    raise _wrong(path, "prompts", prompts, "a text for each name")
  prompts = {key: value or "" for key, value in prompts.items()}
  # sentence-transformers always has empty prompts with these two names.
  if name is not None and name not in [*prompts, "query", "document"]:
    raise _wrong(path, "default_prompt_name", name, "the name of one of its prompts")
  if similarity not in (None, *SIMILARITIES):
    raise _wrong(path, "similarity_fn_name", similarity, f"one of {SIMILARITIES}")
  if size is not None and not (type(size) is int and size > 0):
    raise _wrong(path, "truncate_dim", size, "a whole number above 0")
  return {
    "prompts": prompts,
    "default_prompt": name,
    "similarity": similarity or "cosine",
    "truncate_dim": size,
  }


def _read_transformer(path: pathlib.Path) -> dict[str, Any]:
  settings, source = {}, path
  for name in _TRANSFORMER_FILES:
    if not settings and (path / name).exists():
      source = path / name
      settings = read_settings(source)
  check_settings(
    source,
    settings,
    read=("max_seq_length", "do_lower_case"),
    harmless=("unpad_inputs", "cache_dir"),
    defaults=_TRANSFORMER_DEFAULTS,
  )
  longest = settings.get("max_seq_length")
  if longest is not None and not (type(longest) is int and longest > 0):
    raise _wrong(source, "max_seq_length", longest, "a whole number above 0")
  return {"max_length": longest, "lower_case": bool(settings.get("do_lower_case"))}


def _read_pooling(path, config, prompts: Mapping[str, str]) -> str:
  settings = read_settings(path)
  flags = {f"pooling_mode_{flag}": ours for ours, (_, flag) in _POOLING_MODES.items()}
  widths = ("embedding_dimension", "word_embedding_dimension")
  read = {*flags, *widths, "pooling_mode", "include_prompt"}
  check_settings(path, settings, read=read)
  width = next((settings[key] for key in widths if key in settings), None)
  if width != config.hidden_size:
    raise _wrong(path, widths[1], width, f"{config.hidden_size}, the encoder's width")
  if not settings.get("include_prompt", True) and any(prompts.values()):
    raise UserError(
      f"{path}: include_prompt is false and the model has prompts, of which embeddings "
      "would have to be made without: not supported, use another model"
    )
  modes = settings.get("pooling_mode")
  if modes is None:
    return "+".join(ours for key, ours in flags.items() if settings.get(key)) or "mean"
  names = {theirs: ours for ours, (theirs, _) in _POOLING_MODES.items()}
  modes = [modes] if isinstance(modes, str) else modes
  if type(modes) is not list or not modes or not all(m in list(names) for m in modes):
    raise _wrong(path, "pooling_mode", modes, f"one or more of {', '.join(names)}")
  return "+".join(names[mode] for mode in modes)


def _check_names(path: pathlib.Path, settings: Mapping[str, Any], read=()) -> None:
  """Refuses a module that reads or writes anything but the embedding."""
  names = {"module_input_name": _EMBEDDING, "module_output_name": _EMBEDDING}
  check_settings(path, settings, read=read, defaults=names)


def _read_dense(path: pathlib.Path) -> str:
  """Reads the activation of a Dense."""
  settings = read_settings(path)
  # The weights say the shape.
  known = ("in_features", "out_features", "bias", "activation_function")
  _check_names(path, settings, known)
  name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
  package, _, activation = str(name).rpartition(".")
  if not f"{package}.".startswith("torch.nn.") or activation not in Head.ACTIVATIONS:
    raise UserError(
      f"{path}: activation_function {name} is not supported; known are those of "
      f"torch.nn named {', '.join(Head.ACTIVATIONS)}"
    )
  return activation


def _layer_weights(pooling: str, num_layers: int) -> np.ndarray:
  """Returns the weight of the embedding layer and of each layer, [1 + layers]."""
  weights = np.zeros(num_layers + 1, np.float32)
  weights[[pooling_lib.get(pooling).beside, -1]] = 1.0
  return weights


def _read_layers(path, encoder, config) -> str:
  """Finds the pooling that a WeightedLayerPooling before a mean makes."""
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
    if np.array_equal(weights, _layer_weights(name, config.num_layers)):
      return name
  raise UserError(
    f"{path}: WeightedLayerPooling is supported as a mean of the top two layers, or of "
    "the first or the embedding layer and the last, from layer_start 0, alone"
  )


def write_json(
  folder: pathlib.Path, modules: Modules, head: Head | None, config: EncoderConfig
) -> dict[pathlib.Path, dict[str, np.ndarray]]:
  """Writes the JSON files that make a folder a sentence-transformers model.

  Args:
    folder: where to write; missing folders in it are made.
    modules: what the files say; its `dense` is not read.
    head: the dense layers.
    config: the encoder's.

  Returns:
    The tensors of each module that has some, by its folder.
  """
  # These are the long-standing type names, which old and new releases load.
  parts: list[tuple[str, dict[str, Any], dict[str, np.ndarray]]] = []
  pooling, width = modules.pooling, config.hidden_size
  encoder = huggingface.config_to_json(config)
  if pooling_lib.get(pooling).beside is not None:
    encoder["output_hidden_states"] = True
    settings = {
      "word_embedding_dimension": width,
      "layer_start": 0,
      "num_hidden_layers": config.num_layers,
    }
    weights = {"layer_weights": _layer_weights(pooling, config.num_layers)}
    parts.append(("WeightedLayerPooling", settings, weights))
    pooling = "mean"
  parts.append(("Pooling", _pooling_settings(pooling, width), {}))
  for layer in head.layers() if head else ():
    d_in, d_out = layer.kernel.shape
    package = "linear" if layer.activation == "Identity" else "activation"
    settings = {
      "in_features": d_in,
      "out_features": d_out,
      "bias": True,
      "activation_function": f"torch.nn.modules.{package}.{layer.activation}",
    }
    kernel = np.ascontiguousarray(layer.kernel.T)
    tensors = {"linear.weight": kernel, "linear.bias": layer.bias}
    parts.append(("Dense", settings, tensors))
  if modules.normalize:
    parts.append(("Normalize", {}, {}))
  names = [("Transformer", "")]
  names += [(kind, f"{i}_{kind}") for i, (kind, *_) in enumerate(parts, start=1)]
  card = {
    "prompts": dict(modules.prompts),
    "default_prompt_name": modules.default_prompt,
    "similarity_fn_name": modules.similarity,
  }
  if modules.truncate_dim is not None:
    card["truncate_dim"] = modules.truncate_dim
  contents = {
    "config.json": encoder,
    "modules.json": [
      {
        "idx": i,
        "name": str(i),
        "path": path,
        "type": f"sentence_transformers.models.{kind}",
      }
      for i, (kind, path) in enumerate(names)
    ],
    "sentence_bert_config.json": {
      "max_seq_length": modules.max_length,
      "do_lower_case": modules.lower_case,
    },
    "config_sentence_transformers.json": card,
  }
  found = {}
  for (_, path), (_, settings, tensors) in zip(names[1:], parts):
    contents[f"{path}/config.json"] = settings
    if tensors:
      found[folder / path] = tensors
  for name, content in contents.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")
  return found


def _pooling_settings(pooling: str, width: int) -> dict[str, Any]:
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

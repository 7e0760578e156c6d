"""Weights in and out: Hugging Face folders to parameter trees and back.

One table names every tensor of a checkpoint and its place in our tree. It is read
both ways, and a key that it does not explain, or a place that
it leaves empty, is an error. Writing needs no torch.
"""

from collections.abc import Collection, Mapping
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from dcse_jax.hub import torch_file
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import read_json

_LINEAR = {"kernel": "weight", "bias": "bias"}
_NORM = {"scale": "weight", "bias": "bias"}
_EMBEDDING = {"embedding": "weight"}

# Our module -> (Hugging Face module, its parameters). "{i}" is the layer, which
# is a leading axis on our side.
_BERT = {
  "embeddings.word": ("embeddings.word_embeddings", _EMBEDDING),
  "embeddings.position": ("embeddings.position_embeddings", _EMBEDDING),
  "embeddings.token_type": ("embeddings.token_type_embeddings", _EMBEDDING),
  "embeddings.norm": ("embeddings.LayerNorm", _NORM),
  "layers.query": ("encoder.layer.{i}.attention.self.query", _LINEAR),
  "layers.key": ("encoder.layer.{i}.attention.self.key", _LINEAR),
  "layers.value": ("encoder.layer.{i}.attention.self.value", _LINEAR),
  "layers.attention_output": (
    "encoder.layer.{i}.attention.output.dense",
    _LINEAR,
  ),
  "layers.attention_norm": (
    "encoder.layer.{i}.attention.output.LayerNorm",
    _NORM,
  ),
  "layers.up": ("encoder.layer.{i}.intermediate.dense", _LINEAR),
  "layers.down": ("encoder.layer.{i}.output.dense", _LINEAR),
  "layers.norm": ("encoder.layer.{i}.output.LayerNorm", _NORM),
  "pooler": ("pooler.dense", _LINEAR),
}

# The same of a masked-language model's head.
_BERT_HEAD = {
  "dense": ("cls.predictions.transform.dense", _LINEAR),
  "norm": ("cls.predictions.transform.LayerNorm", _NORM),
  "": ("cls.predictions", {"bias": "bias"}),
}
_ROBERTA_HEAD = {
  "dense": ("lm_head.dense", _LINEAR),
  "norm": ("lm_head.layer_norm", _NORM),
  "": ("lm_head", {"bias": "bias"}),
}

# What a checkpoint may hold besides the encoder: buffers that old releases
# saved, and the heads of other tasks.
_NOT_THE_ENCODER = re.compile(
  r"embeddings\.(position_ids|token_type_ids)|"
  r"(cls|lm_head|classifier|qa_outputs|mlp)\..*"
)
_PREFIX = re.compile(r"(bert|roberta)\.")
# Checkpoints that began as TensorFlow ones.
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}

# By config.json's model_type, the class that transformers names there.
_MODEL_TYPES = {
  "bert": "BertModel",
  "roberta": "RobertaModel",
  "xlm-roberta": "XLMRobertaModel",
  "camembert": "CamembertModel",
}

# config.json's numbers and `encoder.EncoderConfig`'s: sizes, and fractions of 1
# with what stands for one that is not there.
_SIZES = {
  "vocab_size": "vocab_size",
  "hidden_size": "hidden_size",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "intermediate_size": "intermediate_size",
  "max_position_embeddings": "max_positions",
  "type_vocab_size": "type_vocab_size",
}
_FRACTIONS = {
  "layer_norm_eps": ("layer_norm_eps", 1e-12),
  "hidden_dropout_prob": ("dropout", 0.1),
  "attention_probs_dropout_prob": ("attention_dropout", 0.1),
  "initializer_range": ("initializer_range", 0.02),
}
# Keys of config.json that are read elsewhere in this file, or by `modules`.
_READ = {
  *_SIZES,
  *_FRACTIONS,
  "model_type",
  "hidden_act",
  "pad_token_id",
  "position_embedding_type",
  "output_hidden_states",
  "auto_map",
}
# Keys of which the last hidden state of a float32 encoder in evaluation knows nothing:
# where the file comes from, other heads, how text is generated, speed and memory.
_HARMLESS = frozenset(
  """
  architectures transformers_version _name_or_path name_or_path _commit_hash dtype
  torch_dtype use_bfloat16 use_cache gradient_checkpointing torchscript return_dict
  output_attentions output_past chunk_size_feed_forward xla_device tf_legacy_loss
  attn_implementation _attn_implementation tie_word_embeddings tokenizer_class
  bos_token_id eos_token_id sep_token_id cls_token_id unk_token_id mask_token_id
  decoder_start_token_id problem_type id2label label2id num_labels _num_labels
  finetuning_task classifier_dropout task_specific_params prefix directionality
  pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
  pooler_type summary_activation summary_first_dropout summary_last_dropout
  summary_proj_to_labels summary_type summary_use_proj do_sample early_stopping
  max_length min_length num_beams num_beam_groups diversity_penalty temperature top_k
  top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
  encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
  return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
  exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
  """.split()
)
# Of what is wrong with a checkpoint's tensors, so much is said.
_MAX_PROBLEMS = 10

_MEND = "fetch the folder again"


def read_settings(path: pathlib.Path) -> dict[str, Any]:
  """Reads one of a model folder's JSON objects.

  Raises:
    UserError: it cannot be read, is no object, or names Python code to be run.
  """
  settings = read_json(path)
  if not isinstance(settings, dict):
    raise UserError(f"{path} holds no JSON object: {_MEND}")
  if settings.get("auto_map"):
    raise UserError(
      f"{path} names Python code of its own (auto_map), which is never run: use "
      "another model, or remove auto_map if this one does without"
    )
  return settings


def check_settings(
  path: pathlib.Path,
  settings: Mapping[str, Any],
  *,
  read: Collection[str] = (),
  harmless: Collection[str] = (),
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Refuses settings that nobody here reads and that may change embeddings.

  Args:
    path: of their file.
    settings: what it holds.
    read: keys that are read.
    harmless: keys that change no embedding.
    defaults: the only supported values of other keys; None is one always. A key that
      is not known at all may be nothing: null, false, 0 or empty.

  Raises:
    UserError: naming the first key with another value.
  """
  defaults = defaults or {}
  for key, value in settings.items():
    if key in read or key in harmless or value is None:
      continue
    right = value == defaults[key] if key in defaults else not value
    if not right:
      raise UserError(
        f"{path}: {key} is {value!r:.80}, which is not supported: use another model, "
        f"or remove {key} if embeddings are the same without"
      )


def read_config(folder: pathlib.Path) -> encoder_lib.EncoderConfig:
  """Reads the shape of an encoder from a folder's config.json.

  Raises:
    UserError: no such file, an architecture that is not known here, or numbers
      that no encoder has.
  """
  path = folder / "config.json"
  if not path.exists():
    raise UserError(
      f"{folder} has no config.json: name a Hugging Face model folder, with "
      "config.json, model.safetensors and a tokenizer"
    )
  config = read_settings(path)

  def take(name: str) -> Any:
    if name not in config:
      raise UserError(f"{path}: {name} is not there: add it, as the weights have it")
    return config[name]

  model_type = take("model_type")
  if model_type not in list(_MODEL_TYPES):
    raise UserError(
      f"{path}: unknown architecture {model_type!r}; known are "
      + ", ".join(_MODEL_TYPES)
    )
  position = config.get("position_embedding_type", "absolute")
  activation = config.get("hidden_act", "gelu")
  if position != "absolute" or activation not in list(encoder_lib.ACTIVATIONS):
    raise UserError(
      f"{path}: position_embedding_type {position!r} with hidden_act "
      f"{activation!r} is not supported; use a model with absolute positions "
      f"and one of {', '.join(encoder_lib.ACTIVATIONS)}"
    )

  def check(name: str, value: Any, is_right: bool, wanted: str) -> None:
    if not is_right:
      raise UserError(f"{path}: {name} is {value!r:.80}, not {wanted}: {_MEND}")

  fields = {}
  for name, field in _SIZES.items():
    fields[field] = value = take(name)
    check(name, value, type(value) is int and value > 0, "a whole number above 0")
  for name, (field, default) in _FRACTIONS.items():
    fields[field] = value = config.get(name, default)
    is_right = type(value) in (int, float) and 0 <= value < 1
    check(name, value, is_right, "a number from 0 to below 1")
  heads, pad = fields["num_heads"], config.get("pad_token_id")
  is_right = fields["hidden_size"] % heads == 0
  check("num_attention_heads", heads, is_right, "a divisor of hidden_size")
  if pad is None:
    pad = 0 if model_type == "bert" else 1
  is_right = type(pad) is int and 0 <= pad < fields["vocab_size"]
  check("pad_token_id", pad, is_right, "a whole number below vocab_size")
  encoder = encoder_lib.EncoderConfig(
    model_type=model_type, activation=activation, pad_token_id=pad, **fields
  )
  is_right = encoder.max_tokens > 0
  check(
    "max_position_embeddings", encoder.max_positions, is_right, "above pad_token_id"
  )
  check_settings(path, config, read=_READ, harmless=_HARMLESS)
  return encoder


def config_to_json(config: encoder_lib.EncoderConfig) -> dict[str, Any]:
  """The config.json that Hugging Face's AutoModel reads."""
  return {
    "architectures": [_MODEL_TYPES[config.model_type]],
    "model_type": config.model_type,
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "intermediate_size": config.intermediate_size,
    "max_position_embeddings": config.max_positions,
    "type_vocab_size": config.type_vocab_size,
    "layer_norm_eps": config.layer_norm_eps,
    "hidden_act": config.activation,
    "hidden_dropout_prob": config.dropout,
    "attention_probs_dropout_prob": config.attention_dropout,
    "initializer_range": config.initializer_range,
    "pad_token_id": config.pad_token_id,
    "dtype": "float32",
  }


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files that hold a module's weights: one or the shards that an index names.

  Of several forms the one that transformers takes: safetensors before PyTorch's, one
  file before shards. Empty where there is none.

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
    # A name that leads elsewhere is not of the folder.
    is_name = lambda n: n == pathlib.PurePath(n).name and n not in ("", "..")
    if not all(type(name) is str and is_name(name) for name in names):
      raise UserError(f"{index} names no files of its folder: {_MEND}")
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
      raise UserError(f"cannot read {shard} ({reason}): {_MEND}") from error
  return tensors


def _places(params: encoder_lib.Params):
  """Yields (module, parameter, leaf) of every leaf, dotted."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = [entry.key for entry in path]
    yield ".".join(names[:-1]), names[-1], leaf


def as_float32(tensor: np.ndarray) -> np.ndarray:
  """A tensor of a checkpoint as an encoder takes it.

  Raises:
    ValueError: it holds no floats, or some that are not finite; says which.
  """
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(f"holds {tensor.dtype}, not floats")
  with np.errstate(over="ignore"):
    tensor = np.ascontiguousarray(tensor, dtype=np.float32)
  if not np.isfinite(tensor).all():
    raise ValueError("holds NaN or infinity")
  return tensor


def from_tensors(
  tensors: Mapping[str, np.ndarray], config: encoder_lib.EncoderConfig
) -> encoder_lib.Params:
  """Lays the tensors of a checkpoint out as an encoder's parameters.

  Args:
    tensors: by Hugging Face name, with or without the model's prefix.
    config: the encoder's shape. `has_pooler` says whether a pooler is wanted.

  Returns:
    A nested dict of float32 numpy arrays; each layer's stacked on axis 0.

  Raises:
    UserError: naming the missing, unknown, misshapen or not finite tensors.
  """
  if config.num_layers > len(tensors):
    # Each has some: more is a damaged number, which may be of any size.
    raise UserError(
      f"the weights hold {len(tensors)} tensors, too few for the "
      f"{config.num_layers} layers of their config.json: {_MEND}"
    )
  left = {}
  for name, tensor in tensors.items():
    name = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
    module, _, last = name.rpartition(".")
    name = f"{module}.{_OLD_NAMES.get(last, last)}" if module else name
    if not _NOT_THE_ENCODER.fullmatch(name):
      left[name] = tensor
  problems, params = [], {}
  for module, leaf_name, leaf in _places(encoder_lib.abstract_params(config)):
    theirs, names = _BERT[module]
    key = f"{theirs}.{names[leaf_name]}"
    stacked = "{i}" in key
    keys = [key.format(i=i) for i in range(config.num_layers)] if stacked else [key]
    shape = leaf.shape[1:] if stacked else leaf.shape
    parts = []
    for key in keys:
      if key not in left:
        problems.append(f"{key} is missing")
        continue
      part = left.pop(key)
      part = part.T if leaf_name == "kernel" else part
      if part.shape != shape:
        problems.append(f"{key} has shape {part.shape}, not {shape}")
        continue
      try:
        parts.append(as_float32(part))
      except ValueError as error:
        problems.append(f"{key} {error}")
    if problems:
      continue
    node = params
    for name in module.split("."):
      node = node.setdefault(name, {})
    node[leaf_name] = np.stack(parts) if stacked else parts[0]
  unknown = [f"{key} is not known" for key in sorted(left)]
  if problems or unknown:
    # Of both kinds some: what is unknown is often what is missing, by another name.
    shown = problems[: max(_MAX_PROBLEMS - len(unknown), _MAX_PROBLEMS // 2)]
    shown += unknown[: _MAX_PROBLEMS - len(shown)]
    more = len(problems) + len(unknown) - len(shown)
    problems = shown + [f"and {more} more"] * (more > 0)
    raise UserError(
      f"the weights do not fit their config.json: {'; '.join(problems)}: {_MEND}"
    )
  return params


def to_tensors(params: encoder_lib.Params) -> dict[str, np.ndarray]:
  """The inverse of `from_tensors`: Hugging Face names without a prefix."""
  tensors = {}
  for module, leaf_name, leaf in _places(params):
    theirs, names = _BERT[module]
    key = f"{theirs}.{names[leaf_name]}"
    leaf = np.asarray(leaf, dtype=np.float32)
    parts = (
      {key.format(i=i): part for i, part in enumerate(leaf)}
      if "{i}" in key
      else {key: leaf}
    )
    for key, part in parts.items():
      part = part.T if leaf_name == "kernel" else part
      tensors[key] = np.ascontiguousarray(part)
  return tensors


def _head_places(config: encoder_lib.EncoderConfig):
  """Yields (path in the tree, shape, tensor's name) of a language model's head."""
  table = _ROBERTA_HEAD if config.is_roberta else _BERT_HEAD
  shapes = encoder_lib.abstract_params(config, encoder_lib.LanguageModelHead)
  for module, name, leaf in _places(shapes):
    theirs, names = table[module]
    path = (*module.split("."), name) if module else (name,)
    yield path, leaf.shape, f"{theirs}.{names[name]}"


def language_model_from_tensors(
  tensors: Mapping[str, np.ndarray], config: encoder_lib.EncoderConfig
) -> encoder_lib.Params | None:
  """The masked-language model's head of a checkpoint; None if it has none.

  Its matrix is that of the word embeddings, and is not read.

  Raises:
    UserError: it has one that does not fit.
  """
  renamed = {}
  for name, tensor in tensors.items():
    module, _, last = name.rpartition(".")
    renamed[f"{module}.{_OLD_NAMES.get(last, last)}"] = tensor
  head = {}
  for path, shape, name in _head_places(config):
    if name not in renamed:
      return None
    tensor = renamed[name].T if path[-1] == "kernel" else renamed[name]
    if tensor.shape != shape:
      raise UserError(f"{name} has shape {tensor.shape}, not {shape}: {_MEND}")
    node = head
    for key in path[:-1]:
      node = node.setdefault(key, {})
    try:
      node[path[-1]] = as_float32(tensor)
    except ValueError as error:
      raise UserError(f"{name} {error}: {_MEND}") from error
  return head


def language_model_to_tensors(
  head: encoder_lib.Params, config: encoder_lib.EncoderConfig
) -> dict[str, np.ndarray]:
  """The inverse of `language_model_from_tensors`."""
  tensors = {}
  for path, _, name in _head_places(config):
    leaf = head
    for key in path:
      leaf = leaf[key]
    leaf = np.asarray(leaf, np.float32)
    tensors[name] = np.ascontiguousarray(leaf.T if path[-1] == "kernel" else leaf)
  return tensors

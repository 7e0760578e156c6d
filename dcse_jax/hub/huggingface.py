"""Reads an encoder's shape and weights from Hugging Face folders, and writes them.

A family's file has one table that names every tensor of a checkpoint and its place in
our tree. It is read both ways; a key that it does not explain, or a place that stays
empty, is an error. Writing needs no torch.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import numpy as np

from dcse_jax.hub import albert
from dcse_jax.hub import bert
from dcse_jax.hub import distilbert
from dcse_jax.hub import electra
from dcse_jax.hub import gemma3
from dcse_jax.hub import modernbert
from dcse_jax.hub import mpnet
from dcse_jax.hub import nomic_bert
from dcse_jax.hub import qwen3
from dcse_jax.hub import static
from dcse_jax.hub import tables
from dcse_jax.hub.settings import MEND
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.settings import check_settings
from dcse_jax.hub.settings import read_settings
from dcse_jax.hub.tensors import as_float32
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import static as static_model
from dcse_jax.model.family import EncoderConfig
from dcse_jax.model.family import Params
from dcse_jax.model.heads import LanguageModelHead
from dcse_jax.runtime.errors import UserError

# The family's file by config.json's model_type. A new family is one more module in the
# parentheses, with the public names of `bert`.
_FAMILIES = {
  name: family
  for family in (
    *(bert, distilbert, mpnet, electra, albert),
    *(modernbert, nomic_bert, qwen3, gemma3),
  )
  for name in family.ARCHITECTURES
}
# Those of all weights; what has no config.json besides.
_TABLES = {**_FAMILIES, static_model.MODEL_TYPE: static}

# Keys of config.json that `modules` and `settings` read.
_READ = {"output_hidden_states", "auto_map"}
# Keys that do not change the last hidden state of a float32 encoder in evaluation:
# where the file comes from, other heads, how text is generated, speed and memory.
_HARMLESS = frozenset(
  """
  architectures transformers_version _name_or_path name_or_path _commit_hash dtype
  torch_dtype use_bfloat16 use_cache gradient_checkpointing torchscript return_dict
  output_attentions output_past chunk_size_feed_forward xla_device tf_legacy_loss
  attn_implementation _attn_implementation tie_word_embeddings tokenizer_class
  bos_token_id eos_token_id sep_token_id cls_token_id unk_token_id mask_token_id
  decoder_start_token_id problem_type id2label label2id num_labels _num_labels
  finetuning_task language name classifier_dropout task_specific_params prefix
  summary_activation
  summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type
  summary_use_proj do_sample early_stopping max_length min_length num_beams
  num_beam_groups diversity_penalty temperature top_k top_p typical_p
  repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
  bad_words_ids num_return_sequences output_scores return_dict_in_generate
  forced_bos_token_id forced_eos_token_id remove_invalid_values
  exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
  """.split()
)
# An error names at most this many of the things wrong with a checkpoint's tensors.
_MAX_PROBLEMS = 10


def read_config(folder: pathlib.Path) -> EncoderConfig:
  """Reads the shape of an encoder from a folder's config.json.

  A family that may have a pooler has one, since released weights have.

  Raises:
    UserError: no such file, an architecture that is not supported, or numbers
      that no encoder has.
  """
  path = folder / "config.json"
  if not path.exists():
    raise UserError(
      f"{folder} has no config.json: name a Hugging Face model folder, with "
      "config.json, model.safetensors and a tokenizer"
    )
  settings = Settings(path, read_settings(path))
  model_type = settings.take("model_type")
  if model_type not in list(_FAMILIES):
    raise UserError(
      f"{path}: unknown architecture {model_type!r}; known are " + ", ".join(_FAMILIES)
    )
  family = _FAMILIES[model_type]
  config = family.read_config(settings)
  read, harmless = _READ | family.READ, _HARMLESS | family.HARMLESS
  check_settings(path, settings.values, read=read, harmless=harmless)
  return config


def is_tied(folder: pathlib.Path) -> bool:
  """Returns whether a language model's matrix is that of the word embeddings.

  Raises:
    UserError: config.json says neither yes nor no.
  """
  path = folder / "config.json"
  return Settings(path, read_settings(path)).flag("tie_word_embeddings", True)


def config_to_json(config: EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  return _FAMILIES[config.model_type].config_to_json(config)


def _places(params: Params):
  """Yields (dotted module, parameter, leaf) for every leaf."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = [entry.key for entry in path]
    yield ".".join(names[:-1]), names[-1], leaf


def from_tensors(tensors: Mapping[str, np.ndarray], config: EncoderConfig) -> Params:
  """Lays the tensors of a checkpoint out as an encoder's parameters.

  Args:
    tensors: arrays by Hugging Face name, with or without the model's prefix.
    config: the encoder's shape, with a pooler or without.

  Returns:
    A nested dict of float32 numpy arrays; those of layers are stacked on axis 0.

  Raises:
    UserError: tensors are missing, unknown, misshapen or not finite; it names them.
  """
  if config.num_layers > len(tensors):
    # Each layer has some: more layers mean a damaged number, which may be huge.
    raise UserError(
      f"the weights hold {len(tensors)} tensors, too few for the "
      f"{config.num_layers} layers of their config.json: {MEND}"
    )
  family = _TABLES[config.model_type]
  renamed = {family.rename(name): tensor for name, tensor in tensors.items()}
  left = {k: v for k, v in renamed.items() if not family.IGNORED.fullmatch(k)}
  problems, params, used = [], {}, set()
  for module, parameter, leaf in _places(encoder_lib.abstract_params(config)):
    keys, part = tables.find(family.TENSORS, module, parameter, config.num_layers)
    used.update(keys)
    is_stacked = module.startswith("layers.")
    shape = leaf.shape[1:] if is_stacked else leaf.shape
    parts = []
    for key in keys:
      try:
        if key in family.ABSENT:
          parts.append(np.full(shape, family.ABSENT[key], np.float32))
        else:
          parts.append(_fitting(left.get(key), parameter, shape, part))
      except ValueError as error:
        problems.append(f"{key} {error}")
    if problems:
      continue
    node = params
    for name in module.split("."):
      node = node.setdefault(name, {})
    node[parameter] = np.stack(parts) if is_stacked else parts[0]
  left = {key: tensor for key, tensor in left.items() if key not in used}
  problems = list(dict.fromkeys(problems))  # One tensor may be several parameters.
  if problems or left:
    raise _misfit(problems, [f"{key} is not known" for key in sorted(left)])
  return params


def _fitting(
  tensor: np.ndarray | None,
  parameter: str,
  shape: tuple[int, ...],
  part: tuple[int, int] = (0, 1),
) -> np.ndarray:
  """Fits a part of a tensor to a parameter's shape, or raises a ValueError."""
  if tensor is None:
    raise ValueError("is missing")
  number, parts = part
  if parts > 1:
    whole = (*shape[:-1], parts * shape[-1])
    whole = whole[::-1] if parameter == "kernel" else whole
    if tensor.shape != whole:
      raise ValueError(f"has shape {tensor.shape}, not {whole}")
    tensor = np.split(tensor, parts)[number]
  tensor = tensor.T if parameter == "kernel" else tensor
  if tensor.shape != shape:
    raise ValueError(f"has shape {tensor.shape}, not {shape}")
  return as_float32(tensor)


def _misfit(problems: list[str], unknown: list[str]) -> UserError:
  # Show some of both kinds: what is unknown is often what is missing, renamed.
  shown = problems[: max(_MAX_PROBLEMS - len(unknown), _MAX_PROBLEMS // 2)]
  shown += unknown[: _MAX_PROBLEMS - len(shown)]
  more = len(problems) + len(unknown) - len(shown)
  problems = shown + [f"and {more} more"] * (more > 0)
  return UserError(
    f"the weights do not fit their config.json: {'; '.join(problems)}: {MEND}"
  )


def to_tensors(params: Params, config: EncoderConfig) -> dict[str, np.ndarray]:
  """Inverts `from_tensors`; the Hugging Face names have no prefix."""
  family, found = _TABLES[config.model_type], {}
  for module, parameter, leaf in _places(params):
    keys, (number, _) = tables.find(
      family.TENSORS, module, parameter, config.num_layers
    )
    leaf = np.asarray(leaf, dtype=np.float32)
    rows = leaf if module.startswith("layers.") else [leaf]
    for key, row in zip(keys, rows, strict=True):
      row = row.T if parameter == "kernel" else row
      if key not in family.ABSENT:
        found.setdefault(key, {})[number] = row
  join = lambda parts: parts[0] if len(parts) == 1 else np.concatenate(parts)
  return {
    key: np.ascontiguousarray(join([parts[i] for i in sorted(parts)]))
    for key, parts in found.items()
  }


def _head_places(config: EncoderConfig, is_tied: bool):
  """Yields (path in the tree, shape, tensor's names) for a language model's head."""
  table = _FAMILIES[config.model_type].head_tensors(config)
  shapes = encoder_lib.abstract_params(config, LanguageModelHead)
  decoder, parameters = table["decoder"]
  for module, name, leaf in _places(shapes):
    theirs, names = table[module]
    path, tensors = (*module.split("."), name), [f"{theirs}.{names[name]}"]
    if not module:
      path = (name,)
      if not is_tied:
        # Its linear layer then has a bias of its own, too, and the other takes no part.
        tensors.insert(0, f"{decoder}.{names[name]}")
    yield path, leaf.shape, tensors
  if not is_tied:
    shape = config.vocab_size, config.language_model.width or config.hidden_size
    yield ("decoder", "embedding"), shape, [f"{decoder}.{parameters['embedding']}"]


def language_model_from_tensors(
  tensors: Mapping[str, np.ndarray], config: EncoderConfig, *, is_tied: bool = True
) -> Params | None:
  """Returns a checkpoint's masked-language model head; None if it has none.

  Args:
    tensors: arrays by Hugging Face name.
    config: the encoder's shape.
    is_tied: whether its matrix is that of the word embeddings, which then is not read;
      otherwise it is the head's `decoder`.

  Raises:
    UserError: the head does not fit.
  """
  if config.language_model is None:
    return None
  rename = _FAMILIES[config.model_type].rename
  renamed = {rename(name): tensor for name, tensor in tensors.items()}
  head = {}
  for path, shape, names in _head_places(config, is_tied):
    name = next((name for name in names if name in renamed), None)
    if name is None:
      return None
    node = head
    for key in path[:-1]:
      node = node.setdefault(key, {})
    try:
      node[path[-1]] = _fitting(renamed[name], path[-1], shape)
    except ValueError as error:
      raise UserError(f"{name} {error}: {MEND}") from error
  return head


def language_model_to_tensors(
  head: Params, config: EncoderConfig
) -> dict[str, np.ndarray]:
  """Inverts `language_model_from_tensors`."""
  tensors = {}
  for path, _, names in _head_places(config, is_tied="decoder" not in head):
    leaf = head
    for key in path:
      leaf = leaf[key]
    leaf = np.asarray(leaf, np.float32)
    leaf = np.ascontiguousarray(leaf.T if path[-1] == "kernel" else leaf)
    tensors |= dict.fromkeys(names, leaf)
  return tensors

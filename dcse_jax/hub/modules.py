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

from dcse_jax.hub import dense
from dcse_jax.hub import huggingface
from dcse_jax.hub import poolings
from dcse_jax.hub import static
from dcse_jax.hub.settings import check_settings
from dcse_jax.hub.settings import read_settings
from dcse_jax.hub.settings import wrong_value
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.family import EncoderConfig
from dcse_jax.model.heads import Head
from dcse_jax.model.model import SIMILARITIES
from dcse_jax.model.static import MODEL_TYPE
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

# The kinds of modules in the only order that is read. Dropout does nothing here.
_ORDER = re.compile(
  "(StaticEmbedding |Transformer (WeightedLayerPooling )?Pooling )((Dense|Dropout) )*"
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
    include_prompt: whether a prompt's tokens are pooled.
    similarity: one of `model.SIMILARITIES`.
    truncate_dim: how many leading numbers of an embedding are kept; None keeps all.
    is_tied: whether a masked-language model's matrix is that of the word embeddings.
  """

  pooling: str | None = None
  dense: tuple[tuple[pathlib.Path, str], ...] = ()
  normalize: bool = False
  max_length: int | None = None
  lower_case: bool = False
  prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  default_prompt: str | None = None
  include_prompt: bool = True
  similarity: str = "cosine"
  truncate_dim: int | None = None
  is_tied: bool = True


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
      "number of Dense, and Normalize, in this order; a StaticEmbedding may stand in "
      "place of the first three"
    )
  layers = None
  if first == "StaticEmbedding":
    config, fields["pooling"] = static.read_config(encoder), "mean"
  else:
    config = huggingface.read_config(encoder)
    fields["is_tied"] = huggingface.is_tied(encoder)
  for kind, path in others:
    if kind == "WeightedLayerPooling":
      layers = poolings.read_layers(path, encoder, config)
    elif kind == "Pooling":
      fields["pooling"], fields["include_prompt"] = poolings.read_pooling(
        path / "config.json", config
      )
    elif kind == "Dense":
      fields["dense"] += ((path, dense.read_activation(path / "config.json")),)
    elif kind == "Normalize":
      fields["normalize"] = True
      if (path / "config.json").exists():
        settings = read_settings(path / "config.json")
        dense.check_names(path / "config.json", settings)
  if layers and fields["pooling"] != "mean":
    raise UserError(
      f"{folder}: WeightedLayerPooling is supported before a Pooling by mean alone, "
      f"not by {fields['pooling']}: use another model"
    )
  if layers:
    fields["pooling"] = layers
  return encoder, config, Modules(**fields)


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
    raise wrong_value(path, "prompts", prompts, "a text for each name")
  prompts = {key: value or "" for key, value in prompts.items()}
  # sentence-transformers always has empty prompts with these two names.
  if name is not None and name not in [*prompts, "query", "document"]:
    raise wrong_value(
      path, "default_prompt_name", name, "the name of one of its prompts"
    )
  if similarity not in (None, *SIMILARITIES):
    raise wrong_value(path, "similarity_fn_name", similarity, f"one of {SIMILARITIES}")
  if size is not None and not (type(size) is int and size > 0):
    raise wrong_value(path, "truncate_dim", size, "a whole number above 0")
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
    raise wrong_value(source, "max_seq_length", longest, "a whole number above 0")
  return {"max_length": longest, "lower_case": bool(settings.get("do_lower_case"))}


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
  encoder, parts = _after_encoder(modules, head, config)
  is_static = config.model_type == MODEL_TYPE
  names = [("StaticEmbedding" if is_static else "Transformer", "")]
  names += [(kind, f"{i}_{kind}") for i, (kind, *_) in enumerate(parts, start=1)]
  card = {
    "prompts": dict(modules.prompts),
    "default_prompt_name": modules.default_prompt,
    "similarity_fn_name": modules.similarity,
  }
  if modules.truncate_dim is not None:
    card["truncate_dim"] = modules.truncate_dim
  contents = {
    "modules.json": [
      {
        "idx": i,
        "name": str(i),
        "path": path,
        "type": f"sentence_transformers.models.{kind}",
      }
      for i, (kind, path) in enumerate(names)
    ],
    "config_sentence_transformers.json": card,
  }
  if not is_static:
    contents["config.json"] = encoder
    contents["sentence_bert_config.json"] = {
      "max_seq_length": modules.max_length,
      "do_lower_case": modules.lower_case,
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


def _after_encoder(
  modules: Modules, head: Head | None, config: EncoderConfig
) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any], dict[str, np.ndarray]]]]:
  """Describes the modules that follow the encoder.

  Returns:
    The encoder's config.json, and for each module its type, its config.json and its
    tensors.
  """
  # These are the long-standing type names, which old and new releases load.
  parts: list[tuple[str, dict[str, Any], dict[str, np.ndarray]]] = []
  pooling, width = modules.pooling, config.hidden_size
  is_static = config.model_type == MODEL_TYPE
  encoder = {} if is_static else huggingface.config_to_json(config)
  if not modules.is_tied:
    encoder["tie_word_embeddings"] = False
  if pooling_lib.get(pooling).beside is not None:
    encoder["output_hidden_states"] = True
    settings = {
      "word_embedding_dimension": width,
      "layer_start": 0,
      "num_hidden_layers": config.num_layers,
    }
    weights = {"layer_weights": poolings.layer_weights(pooling, config.num_layers)}
    parts.append(("WeightedLayerPooling", settings, weights))
    pooling = "mean"
  if not is_static:
    settings = poolings.pooling_settings(pooling, width)
    if not modules.include_prompt:
      settings["include_prompt"] = False
    parts.append(("Pooling", settings, {}))
  for layer in head.layers() if head else ():
    parts.append(("Dense", *dense.describe(layer)))
  if modules.normalize:
    parts.append(("Normalize", {}, {}))
  return encoder, parts

"""A model folder: weights, tokenizer and pooling, as transformers and
sentence-transformers read and write them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from dcse_jax import encoder as encoder_lib
from dcse_jax import files
from dcse_jax import huggingface
from dcse_jax import manifest
from dcse_jax.errors import UserError

_log = logging.getLogger(__name__)

# The folder's files, by what reads them; heads and other formats stay away.
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json")
# Of these, what says how the encoder is shaped, and what comes after it.
_SHAPE_FILES = ("*.json", "*_Dense/*")

# sentence-transformers' names of a pooling over the last layer; 6.x writes them
# as the value of "pooling_mode", earlier releases as "pooling_mode_...: true".
_POOLING_MODES = {"cls": "cls", "mean": "mean"}
_OLD_POOLING_MODES = {"cls": "cls_token", "mean": "mean_tokens"}

# Of a tokenizer that cannot tokenise, most fail at one of these.
_TRIED = ("", "A word, 7 \u2603.")

# A token is a few characters, and of a word too long for any only one.
_CHARACTERS_A_TOKEN, _LEAST_CUT = 64, 10_000
# The tokenizer holds all tokens of a call, also those that it then cuts.
_TOKENIZED_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True)
class Head:
  """A dense layer after the pooling: sentence-transformers' Dense, SimCSE's mlp.

  Attributes:
    kernel: [D, D_out] float32.
    bias: [D_out] float32.
    activation: a key of `ACTIVATIONS`.
  """

  ACTIVATIONS = {"Tanh": np.tanh, "Identity": lambda x: x}

  kernel: np.ndarray
  bias: np.ndarray
  activation: str = "Tanh"

  def __call__(self, embeddings: np.ndarray) -> np.ndarray:
    """[n, D] to [n, D_out]."""
    return self.ACTIVATIONS[self.activation](embeddings @ self.kernel + self.bias)


@dataclasses.dataclass(frozen=True)
class Model:
  """An encoder with all that turns text into embeddings.

  Attributes:
    params: None where only the rest is known.
    tokenizer: a transformers tokenizer.
    pooling: one of `encoder.POOLINGS`.
    normalize: whether the folder L2-normalises its embeddings.
    max_length: the longest sentence, in tokens; longer ones are cut.
    head: of the embeddings, before they are normalised; most have none.
    language_model: the masked-language model's head, of which embeddings know
      nothing; None if there is none.
  """

  config: encoder_lib.EncoderConfig
  params: encoder_lib.Params | None
  tokenizer: Any
  pooling: str
  normalize: bool
  max_length: int
  head: Head | None = None
  language_model: encoder_lib.Params | None = None

  @property
  def embedding_size(self) -> int:
    """Numbers in an embedding."""
    return self.config.hidden_size if self.head is None else len(self.head.bias)


def tokenize(
  tokenizer: Any, sentences: Sequence[str], max_length: int
) -> list[list[int]]:
  """Token ids of each sentence, special tokens included, cut to max_length.

  Of very long sentences the tokenizer sees only the beginning: it takes seconds and
  gigabytes for what is cut away.
  """
  longest, ids = max(_LEAST_CUT, _CHARACTERS_A_TOKEN * max_length), []
  for start in range(0, len(sentences), _TOKENIZED_AT_ONCE):
    part = sentences[start : start + _TOKENIZED_AT_ONCE]
    ids += tokenizer(
      [sentence[:longest] for sentence in part],
      truncation=True,
      max_length=max_length,
      return_attention_mask=False,
      return_token_type_ids=False,
    )["input_ids"]
  return ids


def tokenizer_state(tokenizer: Any) -> str:
  """All that token ids depend on but the length at which they are cut."""
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  # A tokenizer remembers how it was last called.
  return json.dumps({**state, "truncation": None, "padding": None})


def digest(model: Model) -> str:
  """Of all that the embedding of a sequence of token ids depends on."""
  state = hashlib.blake2b(digest_size=16)
  state.update(f"{model.config} {model.pooling}".encode())
  arrays = [model.params]
  if model.head:
    state.update(model.head.activation.encode())
    arrays += [model.head.kernel, model.head.bias]
  for path, value in jax.tree.leaves_with_path(arrays):
    state.update(jax.tree_util.keystr(path).encode())
    state.update(np.ascontiguousarray(value).data)
  return state.hexdigest()


def identity(model: Model) -> str:
  """A digest of all that the embedding of a text depends on."""
  about = [
    digest(model),
    tokenizer_state(model.tokenizer),
    model.max_length,
    model.normalize,
  ]
  return hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()


def locate(name: str, *, weights: bool = True) -> pathlib.Path:
  """The local folder of a path or a hub id, downloaded if need be.

  Args:
    name: a folder; or a hub id such as "bert-base-uncased", or ID@REVISION with a
      branch, tag or commit of its repository.
    weights: downloads all that a model needs; else what `load_shape` reads.

  Raises:
    UserError: neither a folder nor a repository that can be had.
  """
  try:
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
      return path
    is_path = path.exists() or name.startswith((".", "/", "~"))
  except (OSError, RuntimeError) as error:  # Too long, not permitted, no such home.
    raise UserError(
      f"{name:.200} is not a model folder ({error}): check the path"
    ) from error
  hub_id, *revision = name.split("@")
  if is_path or hub_id.count("/") > 1:
    raise UserError(f"{name} is not a model folder: check the path")
  if not hub_id or len(revision) > 1 or revision == [""]:
    raise UserError(f"{name} is no model: name a folder, ID or ID@REVISION")
  import huggingface_hub  # Slow to import, and most runs name a folder.

  fetch = lambda patterns: pathlib.Path(
    huggingface_hub.snapshot_download(
      hub_id, revision=revision[0] if revision else None, allow_patterns=patterns
    )
  )
  try:
    if not weights:
      return fetch(list(_SHAPE_FILES))
    path = fetch(list(_HUB_FILES))
    # The older form of the same weights: only where there is no other.
    return path if any(path.glob("*.safetensors")) else fetch([*_HUB_FILES, "*.bin"])
  except Exception as error:  # Dozens of kinds: offline, 404, gated, ...
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(
      f"{name} is neither a folder here nor a model that the hub gave "
      f"({reason[0]}): check the name, the network or your hub login"
    ) from error


def _check_files(folder: pathlib.Path) -> None:
  """Compares files with the digests that a folder or the hub's cache has of them."""
  if (folder / manifest.NAME).exists() and (damage := manifest.find_damage(folder)):
    raise UserError(
      f"{folder}: {damage}: fetch or export it again or, if it was changed on "
      f"purpose, remove its {manifest.NAME}"
    )
  read = {".json", ".safetensors", ".txt", ".model"}
  if not any(folder.glob("*.safetensors")):
    read.add(".bin")
  for path in folder.rglob("*"):
    if path.suffix not in read or not path.is_symlink():
      continue
    # The hub's cache names what is large by its SHA-256, and links to it.
    blob = path.readlink()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
      continue
    try:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
      continue  # Whoever reads it says so.
    if digest != blob.name:
      raise UserError(
        f"{path} is not as the hub has it: delete {path.resolve()}, and it is fetched "
        "again"
      )


def load(
  name: str,
  *,
  pooling: str | None = None,
  default_pooling: str = "cls",
  num_layers: int | None = None,
  max_length: int | None = None,
  keep_mlp: bool = False,
  weights: bool = True,
) -> Model:
  """Loads a model folder or hub id.

  Args:
    name: as `locate` takes it.
    pooling: used in place of the folder's own; None keeps that.
    default_pooling: used where the folder has none of its own.
    num_layers: keeps only the first so many layers; None keeps all.
    max_length: tokens at most, in place of the folder's own limit.
    keep_mlp: makes a head of the `mlp` of a SimCSE checkpoint, which its authors
      use in evaluating supervised models and leave out of unsupervised ones.
    weights: reads them; else the folder may lack them, and `params` is None.

  Raises:
    UserError: the folder lacks something, is damaged or holds what is not
      understood.
  """
  if pooling not in (None, *encoder_lib.POOLINGS):
    raise UserError(
      f"pooling={pooling!r}: use one of {', '.join(encoder_lib.POOLINGS)}"
    )
  if max_length is not None and max_length < 1:
    raise UserError(f"max_length={max_length}: must be above 0")
  folder = locate(name)
  _check_files(folder)
  config = huggingface.read_config(folder)
  params, language_model, tensors = None, None, {}
  if weights:
    tensors = huggingface.read_tensors(folder)
    config = dataclasses.replace(
      config, has_pooler=any("pooler.dense." in key for key in tensors)
    )
    try:
      params = huggingface.from_tensors(tensors, config)
      language_model = huggingface.language_model_from_tensors(tensors, config)
    except UserError as error:
      raise UserError(f"{folder}: {error}") from error
  own_pooling, normalize, own_length, head = read_modules(folder, config)
  head = _mlp(folder, tensors, config.hidden_size, keep_mlp) or head
  pooling = pooling or _choose_pooling(own_pooling, default_pooling)
  if num_layers is not None:
    if not 1 <= num_layers <= config.num_layers:
      raise UserError(
        f"num_layers={num_layers}, but {name} has {config.num_layers}: keep "
        f"1 to {config.num_layers}"
      )
    params, config = encoder_lib.keep_layers(params, config, num_layers)
  tokenizer = load_tokenizer(folder)
  if max_length is not None and max_length > config.max_tokens:
    raise UserError(
      f"max_length={max_length}, but {name} takes {config.max_tokens} tokens at most"
    )
  longest = int(min(config.max_tokens, tokenizer.model_max_length))
  max_length = max_length or min(own_length or longest, longest)
  _try_tokenizer(folder, tokenizer, max_length, config.vocab_size)
  return Model(
    config=config,
    params=params,
    tokenizer=tokenizer,
    pooling=pooling,
    normalize=normalize,
    max_length=max_length,
    head=head,
    language_model=language_model,
  )


def load_shape(
  name: str, *, default_pooling: str
) -> tuple[encoder_lib.EncoderConfig, str]:
  """The shape and the pooling of a model, without its weights and tokenizer.

  Args:
    name: as `locate` takes it; of a hub's model only small files are downloaded.
    default_pooling: as in `load`.

  Returns:
    The encoder's config, with a pooler, since released weights have one; the pooling.

  Raises:
    UserError: as `load`.
  """
  folder = locate(name, weights=False)
  config = dataclasses.replace(huggingface.read_config(folder), has_pooler=True)
  own_pooling, *_ = read_modules(folder, config)
  return config, _choose_pooling(own_pooling, default_pooling)


def _choose_pooling(own: str | None, default: str) -> str:
  # A folder cannot tell these two apart.
  if (own, default) == ("cls", "cls_before_pooler"):
    return default
  return own or default


def _mlp(
  folder: pathlib.Path, tensors: Mapping[str, np.ndarray], size: int, keep: bool
) -> Head | None:
  """The head that SimCSE's checkpoints hold beside the encoder."""
  if "mlp.dense.weight" not in tensors:
    if keep:
      raise UserError(f"{folder} has no mlp.dense to keep")
    return None
  if not keep:
    _log.info("%s: its mlp is left out, as SimCSE evaluates without", folder)
    return None
  return _dense(folder, tensors, "mlp.dense", size, "Tanh")


def _dense(
  folder: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  name: str,
  size: int,
  activation: str,
) -> Head:
  """The head of a torch.nn.Linear; one without a bias gets zeros."""
  try:
    if f"{name}.weight" not in tensors:
      raise ValueError("is missing")
    kernel = huggingface.as_float32(tensors[f"{name}.weight"].T)
    if kernel.ndim != 2 or len(kernel) != size:
      raise ValueError(f"has a weight of shape {kernel.T.shape}, not (any, {size})")
    bias = tensors.get(f"{name}.bias", np.zeros(kernel.shape[1], np.float32))
    bias = huggingface.as_float32(bias)
    if bias.shape != kernel.shape[1:]:
      raise ValueError(f"has a bias of shape {bias.shape}, not {kernel.shape[1:]}")
  except ValueError as error:
    raise UserError(f"{folder}: {name} {error}: fetch the folder again") from error
  return Head(kernel, bias, activation)


def load_tokenizer(folder: pathlib.Path) -> Any:
  """The folder's tokenizer; UserError where there is none."""
  import transformers  # Takes seconds; the errors before this one need not wait.

  names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
  if not any((folder / name).exists() for name in names):
    raise UserError(
      f"{folder} has no tokenizer ({', '.join(names)}): copy the files there"
    )
  if (folder / "tokenizer_config.json").exists():
    huggingface.read_settings(folder / "tokenizer_config.json")
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      folder, trust_remote_code=False
    )
  except Exception as error:
    raise _tokenizer_error(folder, error) from error
  if not tokenizer.is_fast:
    raise UserError(
      f"{folder} has no tokenizer.json that a fast tokenizer reads: save one "
      "with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
    )
  limit = tokenizer.model_max_length
  if type(limit) not in (int, float) or not limit >= 1:
    raise _tokenizer_error(folder, f"model_max_length is {limit!r}")
  return tokenizer


def _tokenizer_error(folder: pathlib.Path, reason: object) -> UserError:
  lines = str(reason).strip().splitlines() or [type(reason).__name__]
  return UserError(
    f"cannot use the tokenizer in {folder} ({lines[0]:.200}): fetch it again"
  )


def _try_tokenizer(
  folder: pathlib.Path, tokenizer: Any, max_length: int, vocab_size: int
) -> None:
  """Refuses a tokenizer that fails, or whose ids the encoder has no rows for."""
  try:
    tried = tokenize(tokenizer, _TRIED, max_length)
    ids = {*tokenizer.get_vocab().values(), *(i for each in tried for i in each)}
  except Exception as error:
    raise _tokenizer_error(folder, error) from error
  if max(ids) >= vocab_size:
    raise UserError(
      f"{folder}: its tokenizer has {max(ids) + 1} tokens and its encoder "
      f"{vocab_size}; they belong to different models"
    )
  if (longest := max(map(len, tried))) > max_length:
    raise UserError(
      f"{folder}: sentences cannot be cut at {max_length} tokens, its tokenizer "
      f"makes {longest}: allow more"
    )


def read_modules(
  folder: pathlib.Path, config: encoder_lib.EncoderConfig
) -> tuple[str | None, bool, int | None, Head | None]:
  """What modules.json of sentence-transformers says.

  Returns:
    The pooling (None without a modules.json), whether embeddings are
    normalised, the longest sentence in tokens if it is said, and the head.

  Raises:
    UserError: a module that would change embeddings and is not known here.
  """
  if not (folder / "modules.json").exists():
    return None, False, None, None
  pooling, normalize, max_length, layers, head = None, False, None, None, None
  for kind, path in _list_modules(folder):
    if kind == "Transformer":
      source = path / "sentence_bert_config.json"
      if source.exists():
        settings = huggingface.read_settings(source)
        max_length = settings.get("max_seq_length")
        if max_length is not None and not (type(max_length) is int and max_length > 0):
          raise UserError(
            f"{source}: max_seq_length is {max_length!r:.80}, not a whole number "
            "above 0: fetch it again"
          )
        if settings.get("do_lower_case"):
          raise UserError(
            f"{folder}: do_lower_case in sentence_bert_config.json is not "
            "supported; put a Lowercase normalizer into tokenizer.json"
          )
    elif kind == "WeightedLayerPooling":
      layers = _read_layer_pooling(path, config)
    elif kind == "Pooling":
      pooling = _read_pooling(path)
    elif kind == "Dense" and head is None and not normalize:
      head = _read_head(path, config.hidden_size)
    elif kind == "Normalize":
      normalize = True
    else:
      raise UserError(
        f"{folder}: its sentence-transformers module {kind} is not "
        "supported; a folder may hold Transformer, Pooling, a Dense and Normalize"
      )
  if layers is not None and pooling == "mean":
    pooling = layers
  return pooling, normalize, max_length, head


def _list_modules(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """The kinds and folders of the modules, in order."""
  path = folder / "modules.json"
  modules = files.read_json(path)
  try:
    if not modules or type(modules) is not list:
      raise TypeError
    found = [(each["type"].rpartition(".")[2], each["path"]) for each in modules]
    # A path that leads elsewhere is not of the folder.
    for _, inner in found:
      if pathlib.PurePath(inner).is_absolute() or ".." in pathlib.PurePath(inner).parts:
        raise ValueError
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} is no list of modules: fetch it again") from error
  return [(kind, folder / inner) for kind, inner in found]


def _read_head(path: pathlib.Path, size: int) -> Head:
  settings = huggingface.read_settings(path / "config.json")
  activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
  if activation not in Head.ACTIVATIONS:
    raise UserError(
      f"{path / 'config.json'}: activation_function {activation} is not supported; "
      f"known are {', '.join(Head.ACTIVATIONS)}"
    )
  return _dense(path, huggingface.read_tensors(path), "linear", size, activation)


def _read_pooling(path: pathlib.Path) -> str:
  settings = huggingface.read_settings(path / "config.json")
  modes = [
    name
    for name in _POOLING_MODES
    if settings.get("pooling_mode") in (_POOLING_MODES[name], [name])
    or settings.get(f"pooling_mode_{_OLD_POOLING_MODES[name]}")
  ]
  others = [
    key for key, value in settings.items() if key.startswith("pooling_mode_") and value
  ]
  if len(modes) != 1 or len(others) > 1:
    raise UserError(
      f"{path / 'config.json'}: only cls or mean pooling, one of them, is supported"
    )
  return modes[0]


def _layer_weights(pooling: str, num_layers: int) -> np.ndarray:
  weights = np.zeros(num_layers + 1, np.float32)
  weights[[-2, -1] if pooling == "mean_top2" else [0, -1]] = 1.0
  return weights


def _read_layer_pooling(path, config):
  weights = huggingface.read_tensors(path).get("layer_weights")
  for pooling in ("mean_top2", "mean_first_last"):
    expected = _layer_weights(pooling, config.num_layers)
    if weights is not None and np.array_equal(weights, expected):
      return pooling
  raise UserError(
    f"{path}: only a mean of the top two, or of the embedding and last "
    "layers, is supported"
  )


def _module_files(model: Model) -> dict[str, Any]:
  """The JSON files that make the folder a sentence-transformers model."""
  # The long-standing type names: old and new releases load them.
  kinds = ["Transformer", "Pooling"]
  if model.pooling in ("mean_top2", "mean_first_last"):
    kinds.insert(1, "WeightedLayerPooling")
  if model.head:
    kinds.append("Dense")
  if model.normalize:
    kinds.append("Normalize")
  paths = ["" if i == 0 else f"{i}_{kind}" for i, kind in enumerate(kinds)]
  contents = {
    "config.json": huggingface.config_to_json(model.config),
    "modules.json": [
      {
        "idx": i,
        "name": str(i),
        "path": paths[i],
        "type": f"sentence_transformers.models.{kind}",
      }
      for i, kind in enumerate(kinds)
    ],
    "sentence_bert_config.json": {
      "max_seq_length": model.max_length,
      "do_lower_case": False,
    },
    "config_sentence_transformers.json": {
      "prompts": {},
      "default_prompt_name": None,
      "similarity_fn_name": "cosine",
    },
  }
  is_cls = model.pooling.startswith("cls")
  contents[f"{paths[kinds.index('Pooling')]}/config.json"] = {
    "word_embedding_dimension": model.config.hidden_size,
    "pooling_mode_cls_token": is_cls,
    "pooling_mode_mean_tokens": not is_cls,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
  }
  if model.head:
    d_in, d_out = model.head.kernel.shape
    names = {"Tanh": "activation.Tanh", "Identity": "linear.Identity"}
    contents[f"{paths[kinds.index('Dense')]}/config.json"] = {
      "in_features": d_in,
      "out_features": d_out,
      "bias": True,
      "activation_function": f"torch.nn.modules.{names[model.head.activation]}",
    }
  if "Normalize" in kinds:
    contents[f"{paths[-1]}/config.json"] = {}
  if "WeightedLayerPooling" in kinds:
    contents["config.json"]["output_hidden_states"] = True
    contents["1_WeightedLayerPooling/config.json"] = {
      "word_embedding_dimension": model.config.hidden_size,
      "layer_start": 0,
      "num_hidden_layers": model.config.num_layers,
    }
  return contents


def _write_files(model: Model, folder: pathlib.Path) -> None:
  """Writes a model's tokenizer and settings, and its weights if it has any."""
  # Not with the length at which this process happened to cut last.
  model.tokenizer.backend_tokenizer.no_truncation()
  model.tokenizer.backend_tokenizer.no_padding()
  model.tokenizer.model_max_length = model.max_length
  with files.foreign_errors():
    model.tokenizer.save_pretrained(folder)
  for name, content in _module_files(model).items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")
  tensors = {}
  if model.params is not None:
    tensors["."] = huggingface.to_tensors(model.params)
  if model.language_model is not None:
    tensors["."] |= huggingface.language_model_to_tensors(
      model.language_model, model.config
    )
  if model.pooling in ("mean_top2", "mean_first_last"):
    weights = _layer_weights(model.pooling, model.config.num_layers)
    tensors["1_WeightedLayerPooling"] = {"layer_weights": weights}
  if model.head:
    kernel = np.ascontiguousarray(model.head.kernel.T)
    (path,) = folder.glob("*_Dense")
    tensors[path.name] = {"linear.weight": kernel, "linear.bias": model.head.bias}
  for name, content in tensors.items():
    metadata = {"format": "pt"}  # transformers refuses a file without it.
    with files.foreign_errors():
      safetensors.numpy.save_file(
        content, folder / name / "model.safetensors", metadata=metadata
      )


def save(
  model: Model,
  folder: str | os.PathLike[str],
  check: Callable[[pathlib.Path], None] | None = None,
  *,
  overwrite: bool = False,
) -> None:
  """Writes a folder that transformers and sentence-transformers load.

  It is written beside and renamed. In an earlier one of ours the files of that are
  replaced, and all else stays. It holds the digests of all that an embedding depends
  on, by which `load` knows damage, also that of a process that ended in between.

  Args:
    model: what to write.
    folder: where to.
    check: is called with the folder while it still stands beside, may add to it
      README.md, and leaves everything as it was if it raises.
    overwrite: replaces what is not ours, or was changed, too.

  Raises:
    UserError: it cannot be written, or would replace what must not be.
  """
  free = {"README.md"}
  with manifest.replacing(pathlib.Path(folder), free=free, overwrite=overwrite) as new:
    _write_files(model, new)
    if check:
      check(new)

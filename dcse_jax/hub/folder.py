"""Model folders, as transformers and sentence-transformers read and write them.

Such a folder holds weights, a tokenizer and what comes after the encoder.
"""

from collections.abc import Callable, Mapping
import hashlib
import logging
import os
import pathlib
import re

import numpy as np
import safetensors.numpy

from dcse_jax.hub import dense
from dcse_jax.hub import huggingface
from dcse_jax.hub import modules
from dcse_jax.hub import static
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.hub.tensors import weight_files
from dcse_jax.hub.tokenizer import check_tokenizer
from dcse_jax.hub.tokenizer import load_tokenizer
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.family import with_pooler
from dcse_jax.model.heads import Head
from dcse_jax.model.model import Model
from dcse_jax.model.static import MODEL_TYPE
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# The hub's files that describe a model, and those of a tokenizer.
_HUB_FILES = ("*.json", "*.txt", "*.model")

# The pooler's matrix in BERT and in ALBERT.
_POOLER = re.compile(r"(^|\.)pooler\.(dense\.)?weight$")


def locate(name: str, *, weights: bool = True) -> pathlib.Path:
  """Finds the local folder of a path or a hub id, and downloads it if need be.

  Args:
    name: a folder; or a hub id such as "bert-base-uncased", or ID@REVISION with a
      branch, tag or commit of its repository.
    weights: whether to download all that a model needs, or what `shape.load` reads.

  Raises:
    UserError: it is neither a folder nor a repository that can be downloaded.
  """
  try:
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
      return path
    is_path = path.exists() or name.startswith((".", "/", "~"))
  except (OSError, RuntimeError) as error:  # E.g. a path that is too long.
    raise UserError(
      f"{name:.200} is not a model folder ({error}): check the path"
    ) from error
  hub_id, *revision = name.split("@")
  if is_path or hub_id.count("/") > 1:
    raise UserError(f"{name} is not a model folder: check the path")
  if not hub_id or len(revision) > 1 or revision == [""]:
    raise UserError(f"{name} is no model: name a folder, ID or ID@REVISION")
  import huggingface_hub  # It is slow to import, and most runs name a folder.

  def fetch(patterns, revision=revision[0] if revision else None) -> pathlib.Path:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        hub_id, revision=revision, allow_patterns=patterns
      )
    )

  try:
    path = fetch(list(_HUB_FILES))
    # A branch may have moved meanwhile: the rest must come from the same commit.
    commit = {"revision": path.name} if re.fullmatch("[0-9a-f]{40}", path.name) else {}
    kinds = modules.folders(path)
    missing = [
      part
      for kind, part in kinds
      if kind not in ("Pooling", "Normalize", "Dropout")
      and (weights or kind in ("WeightedLayerPooling", "StaticEmbedding"))
    ]
    # The older form of the same weights is only fetched if there is no other.
    for form in ("safetensors", "bin"):
      names = [name for part in missing for name in _weight_names(path, part, form)]
      if names:
        fetch(names, **commit)
      missing = [part for part in missing if not _has_weights(part)]
    return path
  except UserError:
    raise
  except Exception as error:  # There are dozens: offline, 404, gated, ...
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(
      f"{name} is neither a folder here nor a model that the hub gave "
      f"({reason[0]}): check the name, the network or your hub login"
    ) from error


def _weight_names(path: pathlib.Path, part: pathlib.Path, form: str) -> list[str]:
  """Names the files of a repository that may hold a module's weights in one form."""
  inside = part.relative_to(path)
  stem = "model" if form == "safetensors" else "pytorch_model"
  names = {f"{stem}.{form}"}
  if (part / f"{stem}.{form}.index.json").exists():
    names |= {shard.name for shard in weight_files(part)}
  return [(inside / name).as_posix() for name in sorted(names)]


def _has_weights(part: pathlib.Path) -> bool:
  shards = weight_files(part)
  return bool(shards) and all(shard.exists() for shard in shards)


def _check_files(folder: pathlib.Path) -> None:
  """Compares files with the digests that a folder or the hub's cache has for them."""
  if (folder / digests_lib.NAME).exists() and (
    damage := digests_lib.find_damage(folder)
  ):
    raise UserError(
      f"{folder}: {damage}: fetch or export it again or, if it was changed on "
      f"purpose, remove its {digests_lib.NAME}"
    )
  read = {".json", ".safetensors", ".txt", ".model"}
  if not any(folder.glob("*.safetensors")):
    read.add(".bin")
  for path in folder.rglob("*"):
    if path.suffix not in read or not path.is_symlink():
      continue
    # The hub's cache names large files by their SHA-256, and links to them.
    blob = path.readlink()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
      continue
    try:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
      continue  # Reading it fails later, with an error of its own.
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
    name: a name that `locate` takes.
    pooling: replaces the folder's own; None keeps that.
    default_pooling: is used if the folder has none of its own.
    num_layers: how many of the first layers are kept; None keeps all.
    max_length: the most tokens; replaces the folder's own limit.
    keep_mlp: whether to make a head of a SimCSE checkpoint's `mlp`, which its authors
      use when they evaluate supervised models and leave out of unsupervised ones.
    weights: whether to read them; otherwise the folder may lack them, and `params` is
      None.

  Raises:
    UserError: the folder lacks something, is damaged or holds what is not
      understood.
  """
  if pooling is not None and not pooling_lib.is_pooling(pooling):
    raise UserError(
      f"pooling={pooling!r}: use one of {', '.join(pooling_lib.POOLINGS)}"
    )
  if max_length is not None and max_length < 1:
    raise UserError(f"max_length={max_length}: must be above 0")
  folder = locate(name)
  _check_files(folder)
  encoder, config, about = modules.read(folder)
  is_static = config.model_type == MODEL_TYPE
  if is_static and pooling not in (None, "mean"):
    raise UserError(
      f"pooling={pooling!r}: {name} is a static model, whose embeddings are means: "
      "leave it out"
    )
  params, language_model, tensors = None, None, {}
  if weights:
    tensors = read_tensors(encoder)
    tensors = static.fold(tensors) if is_static else tensors
    config = with_pooler(config, any(map(_POOLER.search, tensors)))
    if any(key.startswith("classifier.") for key in tensors):
      _log.warning(
        "%s was trained to classify or to score pairs: embeddings of single sentences "
        "may mean little",
        name,
      )
    try:
      params = huggingface.from_tensors(tensors, config)
      language_model = huggingface.language_model_from_tensors(
        tensors, config, is_tied=about.is_tied
      )
    except UserError as error:
      raise UserError(f"{encoder}: {error}") from error
  if pooling is None and about.pooling is None:
    _log.info("%s says nothing of its pooling: it is %r", name, default_pooling)
  pooling = pooling or choose_pooling(about.pooling, default_pooling)
  if fault := pooling_lib.fault(config, pooling):
    _log.warning("%s: %s", name, fault)
  width = pooling_lib.embedding_size(config, pooling)
  head = _mlp(folder, tensors, width, keep_mlp) or dense.read_head(about.dense, width)
  if about.truncate_dim and about.truncate_dim > (head.size if head else width):
    raise UserError(
      f"{folder}: truncate_dim is {about.truncate_dim}, but embeddings have "
      f"{head.size if head else width} numbers: remove it"
    )
  if num_layers is not None:
    if not 1 <= num_layers <= config.num_layers:
      raise UserError(
        f"num_layers={num_layers}, but {name} has {config.num_layers}: keep "
        f"1 to {config.num_layers}"
      )
    params, config = encoder_lib.keep_layers(params, config, num_layers)
  tokenizer = load_tokenizer(encoder, lower_case=about.lower_case, is_static=is_static)
  # A folder with modules.json says that it takes texts as they are.
  if tokenizer.chat_template and about.pooling is None:
    raise UserError(
      f"{folder}: its tokenizer has a chat_template, by which sentence-transformers "
      "would embed: remove it if sentences are embedded without"
    )
  if max_length is not None and max_length > config.max_tokens:
    raise UserError(
      f"max_length={max_length}, but {name} takes {config.max_tokens} tokens at most"
    )
  own_length = about.max_length or int(tokenizer.model_max_length)
  max_length = max_length or min(own_length, config.max_tokens)
  check_tokenizer(encoder, tokenizer, max_length, config.vocab_size)
  return Model(
    config=config,
    params=params,
    tokenizer=tokenizer,
    pooling=pooling,
    normalize=about.normalize,
    max_length=max_length,
    head=head,
    language_model=language_model,
    prompts=about.prompts,
    default_prompt=about.default_prompt,
    include_prompt=about.include_prompt,
    lower_case=about.lower_case,
    similarity=about.similarity,
    truncate_dim=about.truncate_dim,
  )


def choose_pooling(own: str | None, default: str) -> str:
  """Returns the pooling that a folder names, or the default where that is alike."""
  # A folder cannot tell apart poolings that differ only in training.
  is_same = own is not None and pooling_lib.get(default).same_as == own
  return default if is_same else own or default


def _mlp(
  folder: pathlib.Path, tensors: Mapping[str, np.ndarray], size: int, keep: bool
) -> Head | None:
  """Makes the head that SimCSE's checkpoints hold besides the encoder."""
  if "mlp.dense.weight" not in tensors:
    if keep:
      raise UserError(f"{folder} has no mlp.dense to keep")
    return None
  if not keep:
    _log.info("%s: its mlp is left out, as SimCSE evaluates without", folder)
    return None
  return dense.make_head(folder, tensors, "mlp.dense", size, "Tanh")


def _write_files(model: Model, folder: pathlib.Path) -> None:
  """Writes a model's tokenizer and settings, and its weights if it has any."""
  # The folder must not keep the length at which this process happened to cut last.
  model.tokenizer.backend_tokenizer.no_truncation()
  model.tokenizer.backend_tokenizer.no_padding()
  model.tokenizer.model_max_length = model.max_length
  with files.foreign_errors():
    model.tokenizer.save_pretrained(folder)
  about = modules.Modules(
    pooling=model.pooling,
    normalize=model.normalize,
    max_length=model.max_length,
    lower_case=model.lower_case,
    prompts=model.prompts,
    default_prompt=model.default_prompt,
    include_prompt=model.include_prompt,
    similarity=model.similarity,
    truncate_dim=model.truncate_dim,
    is_tied="decoder" not in (model.language_model or {}),
  )
  tensors = modules.write_json(folder, about, model.head, model.config)
  if model.params is not None:
    tensors[folder] = huggingface.to_tensors(model.params, model.config)
  if model.language_model is not None:
    tensors[folder] |= huggingface.language_model_to_tensors(
      model.language_model, model.config
    )
  for path, content in tensors.items():
    metadata = {"format": "pt"}  # transformers refuses a file without it.
    with files.foreign_errors():
      safetensors.numpy.save_file(
        content, path / "model.safetensors", metadata=metadata
      )


def save(
  model: Model,
  folder: str | os.PathLike[str],
  check: Callable[[pathlib.Path], None] | None = None,
  *,
  overwrite: bool = False,
) -> None:
  """Writes a folder that transformers and sentence-transformers load.

  It is written beside its place and renamed. If an earlier model of ours is there, its
  files are replaced, and all others stay. The folder holds digests of everything that
  an embedding depends on, by which `load` notices damage, also after a process that
  ended halfway.

  Args:
    model: what to write.
    folder: where to write it.
    check: is called with the new folder before it takes its place, and may add a
      README.md; if it raises, everything stays as it was.
    overwrite: whether to also replace files that are not ours, or were changed.

  Raises:
    UserError: it cannot be written, or would replace what must not be.
  """
  free = {"README.md"}
  with digests_lib.replacing(
    pathlib.Path(folder), free=free, overwrite=overwrite
  ) as new:
    _write_files(model, new)
    if check:
      check(new)

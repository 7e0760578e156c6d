"""Writes a model folder that transformers and sentence-transformers load.

`python -m dcse_jax.convert SOURCE --output DIR [--verify] [--onnx]`

SOURCE is a workdir, one of its rounds or seeds, a checkpoint of a run under way, a
model folder, a SimCSE checkpoint, or a hub id, perhaps ID@REVISION.
"""

import functools
import logging
import pathlib

from absl import flags
import numpy as np

from dcse_jax.embed import onnx_export
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.hub import folder
from dcse_jax.hub.model_card import make_card
from dcse_jax.model.model import Model
from dcse_jax.model.vectors import unit_length
from dcse_jax.recipe import finished
from dcse_jax.runtime import command_line
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS

_log = logging.getLogger(__name__)

# The most by which embeddings of unit length may differ, from PyTorch's and ONNX's.
_TOLERANCE, _ONNX_TOLERANCE = 1e-5, 1e-4
_VERIFIED = (
  "A cat sleeps.",
  "Two dogs play in the snow while children watch them from the window.",
  "No.",
  "The committee, which had met twice in the spring, put off its decision until "
  "the last of the reports had been read, and then adjourned without a vote.",
  "¿Dónde está la biblioteca? 図書館はどこですか。",
  "",
)


def verify(path: pathlib.Path) -> float:
  """Compares a folder's embeddings with those that sentence-transformers computes.

  Args:
    path: a model folder's.

  Returns:
    The largest difference between embeddings of unit length.

  Raises:
    UserError: it is above 1e-5, or torch is not installed.
  """
  try:
    import sentence_transformers
  except ImportError as error:
    raise UserError(
      f"--verify compares with PyTorch, which is not installed ({error}): "
      "pip install torch sentence-transformers, or leave it out"
    ) from error
  theirs = sentence_transformers.SentenceTransformer(
    str(path), device="cpu", trust_remote_code=False
  )
  sentences = list(_VERIFIED)
  ours = SentenceEncoder(str(path)).encode(sentences)
  difference = _difference(theirs.encode(sentences), ours)
  if not difference <= _TOLERANCE:
    raise UserError(
      f"embeddings differ from sentence-transformers' by {difference:.2g}, more than "
      f"{_TOLERANCE:g}: nothing was written; please report this model"
    )
  return difference


def _difference(first: np.ndarray, second: np.ndarray) -> float:
  """Returns the largest difference between embeddings scaled to unit length."""
  return float(np.abs(unit_length(first) - unit_length(second)).max())


def write_onnx(path: pathlib.Path, model: Model, *, int8: bool) -> None:
  """Writes a model folder's ONNX files, and says how far their embeddings are off.

  Args:
    path: the folder.
    model: the same model.
    int8: whether to write a file of eight bits as well.

  Raises:
    UserError: the model cannot be exported, or embeddings differ by more than 1e-4.
  """
  onnx_export.write(path, model)
  names = [onnx_export.FLOAT]
  if int8:
    onnx_export.write_int8(path)
    names.append(onnx_export.INT8)
  sentences = list(_VERIFIED)
  ours = SentenceEncoder(str(path)).encode(sentences)
  for name in names:
    theirs = onnx_export.OnnxEncoder(path / name, model).encode(sentences)
    difference = _difference(theirs, ours)
    if name == onnx_export.FLOAT and not difference <= _ONNX_TOLERANCE:
      raise UserError(
        f"embeddings of {name} differ by {difference:.2g}, more than "
        f"{_ONNX_TOLERANCE:g}: nothing was written; please report this model"
      )
    print(f"{name}: embeddings differ by {difference:.2g} at most")


def _finish(
  path: pathlib.Path,
  *,
  card: str,
  verified: bool,
  model: Model,
  has_onnx: bool,
  has_int8: bool,
) -> None:
  (path / "README.md").write_text(card, encoding="utf-8")
  if verified:
    print(f"verified: embeddings differ by {verify(path):.2g} at most")
  if has_onnx:
    write_onnx(path, model, int8=has_int8)


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("output", None, "Folder to write.")
  flags.DEFINE_bool(
    "overwrite",
    False,
    "Also writes into a folder that is not ours or whose files were changed: files of "
    "the same names are replaced, all others stay.",
  )
  flags.DEFINE_bool(
    "verify", False, "Compares embeddings with sentence-transformers' before it ends."
  )
  flags.DEFINE_bool(
    "onnx",
    False,
    "Also writes onnx/model.onnx: encoder, pooling, dense layers and normalising.",
  )
  flags.DEFINE_bool(
    "onnx_int8", False, "Also writes onnx/model_int8.onnx, smaller and less exact."
  )
  flags.DEFINE_bool(
    "keep_head",
    False,
    "Keeps the training-only projection, or the mlp of a SimCSE checkpoint, as a "
    "dense layer.",
  )
  flags.DEFINE_string("pooling", None, "In place of the source's own pooling.")
  flags.DEFINE_integer("max_length", None, "In place of the source's own, in tokens.")
  flags.DEFINE_integer(
    "truncate_dim", None, "The folder keeps as many first numbers of embeddings.", 1
  )
  flags.DEFINE_string(
    "push_to_hub", None, "Hub id to upload to, with the login of `hf auth login`."
  )


def main(source: str | None = None) -> None:
  if source is None or not (_FLAGS.output or _FLAGS.push_to_hub):
    raise UserError("give a workdir, checkpoint or model folder, and --output DIR")
  if not _FLAGS.output:
    raise UserError("--push_to_hub uploads what --output DIR writes: give both")
  has_onnx = _FLAGS.onnx or _FLAGS.onnx_int8
  if has_onnx:
    onnx_export.check_installed()
  output = files.user_path(_FLAGS.output)
  # This comes before anything that takes long.
  digests_lib.check_replaceable(output, overwrite=_FLAGS.overwrite)
  path = files.user_path(source)
  found = finished.find(path) if path.is_dir() else None
  training = None
  if found:
    if _FLAGS.pooling or _FLAGS.max_length:
      raise UserError(
        f"{source} is of a run, which says its pooling and length itself: leave "
        "out --pooling and --max_length"
      )
    model, training = finished.load(*found, keep_head=_FLAGS.keep_head)
    _log.info("%s: %s", source, found[0] if training.step is None else training.step)
  else:
    model = folder.load(
      source,
      pooling=_FLAGS.pooling,
      max_length=_FLAGS.max_length,
      keep_mlp=_FLAGS.keep_head,
    )
  model = model.truncated(_FLAGS.truncate_dim)
  name = _FLAGS.push_to_hub or output.name
  card = make_card(model, name, training)
  folder.save(
    model,
    output,
    functools.partial(
      _finish,
      card=card,
      verified=_FLAGS.verify,
      model=model,
      has_onnx=has_onnx,
      has_int8=_FLAGS.onnx_int8,
    ),
    overwrite=_FLAGS.overwrite,
  )
  print(f"written to {output}")
  if _FLAGS.push_to_hub:
    push(output, _FLAGS.push_to_hub)


def push(path: pathlib.Path, hub_id: str) -> None:
  """Uploads a model folder to the hub, or raises a UserError."""
  import huggingface_hub

  try:
    hub = huggingface_hub.HfApi()
    hub.create_repo(hub_id, exist_ok=True)
    url = hub.upload_folder(repo_id=hub_id, folder_path=path)
  except Exception as error:  # There are dozens: offline, no login, no right, ...
    raise UserError(
      f"cannot upload to {hub_id} ({error}): check the network and `hf auth login`; "
      f"the folder is written: {path}"
    ) from error
  print(f"uploaded: {url}")


if __name__ == "__main__":
  command_line.run(main, define_flags, max_arguments=1)

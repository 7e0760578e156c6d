"""Embeds a file of sentences: row i of the result belongs to line i.

`python -m dcse_jax.encode --model DIR --input sentences.txt --output emb.npy`

Neither file need fit into memory. After an interruption the same command continues.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import sys
from typing import Any

from absl import flags
import numpy as np
import tqdm

from dcse_jax.data import decoding
from dcse_jax.data.lines import Lines
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model import model as model_lib
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS

_log = logging.getLogger(__name__)

_BLOCK_ROWS = 65_536  # How many are read at a time.


def encode_file(
  encoder: SentenceEncoder,
  source: str,
  output: str,
  *,
  batch_size: int = 64,
  normalize: bool = False,
  prompt_name: str | None = None,
  prompt: str | None = None,
) -> None:
  """Writes the embeddings of a file's lines, [lines, D] float32 in a .npy file.

  The file appears when it is whole. Until then the finished rows stand beside it, and
  the next call for the same text and model continues from there.

  Args:
    encoder: the model.
    source: a text file with a sentence on each line; an empty line is a sentence.
    output: the file to write, .npy.
    batch_size: sentences in a compiled batch.
    normalize: scales to unit length; otherwise only if the model's folder does.
    prompt_name: as in `SentenceEncoder.encode`.
    prompt: likewise.

  Raises:
    UserError: a file cannot be read or written, or another process writes the output.
  """
  path = _output_path(output)
  lines = Lines(source)
  if not len(lines):
    raise UserError(f"{source} is empty: nothing to encode")
  with locks.output_locked(path):
    prompts = {"prompt_name": prompt_name, "prompt": prompt}
    _encode(encoder, lines, path, batch_size, normalize, prompts)


def _output_path(output: str) -> pathlib.Path:
  path = files.user_path(output)
  if path.suffix != ".npy":
    raise UserError(f"{output}: the output is a NumPy file, name it NAME.npy")
  return path


def _encode(
  encoder: SentenceEncoder,
  lines: Lines,
  path: pathlib.Path,
  batch_size: int,
  normalize: bool,
  prompts: dict[str, str | None],
) -> None:
  shape = (len(lines), encoder.model.embedding_size)
  partial = path.with_name(f".{path.name}.part")
  progress = path.with_name(f".{path.name}.part.json")
  # Everything that the rows depend on.
  origin = {
    "model": model_lib.identity(encoder.model),
    "text": lines.digest,
    "shape": list(shape),
    "normalize": encoder.model.normalize or normalize,
    **{name: value for name, value in prompts.items() if value is not None},
  }
  done, digest = 0, hashlib.sha256()
  if progress.exists() and partial.exists():
    done, digest = _find_done(partial, progress, origin)
    if done:
      _log.info("going on from line %d of %d", done, len(lines))
    else:
      _log.info("%s is damaged or of another text or model: from the start", partial)
  try:
    if not done:
      progress.unlink(missing_ok=True)
      np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
      _reserve(partial)
    rows = np.lib.format.open_memmap(partial, mode="r+")
    with tqdm.tqdm(
      total=len(lines),
      initial=done,
      unit="sentence",
      disable=not sys.stderr.isatty(),
    ) as bar:
      for part in encoder.encode_stream(
        lines.iterate(done),
        batch_size=batch_size,
        normalize_embeddings=normalize,
        **prompts,
      ):
        rows[done : done + len(part)] = part
        rows.flush()
        done += len(part)
        digest.update(np.ascontiguousarray(part))
        files.write_json(
          progress, {"origin": origin, "rows": done, "sha256": digest.hexdigest()}
        )
        bar.update(len(part))
    del rows
    files.to_disk(partial)
    partial.replace(path)
    files.to_disk(path.parent)
    progress.unlink(missing_ok=True)
  except OSError as error:
    raise files.cannot_write(path, error) from error


def _find_done(
  partial: pathlib.Path, progress: pathlib.Path, origin: dict[str, Any]
) -> tuple[int, Any]:
  """Returns how many rows are done and their digest; 0 if they are of another input."""
  digest = hashlib.sha256()
  try:
    before = json.loads(progress.read_bytes())
    # A map that can be written would fill up a file that was cut off with zeros.
    rows = np.lib.format.open_memmap(partial, mode="r")
    if before["origin"] != origin or list(rows.shape) != origin["shape"]:
      return 0, digest
    done = rows[: before["rows"]]
    for start in range(0, len(done), _BLOCK_ROWS):
      digest.update(done[start : start + _BLOCK_ROWS])
    if (len(done), digest.hexdigest()) == (before["rows"], before["sha256"]):
      return len(done), digest
  except Exception:  # Damaged files fail in many ways.
    pass
  return 0, hashlib.sha256()


def _reserve(path: pathlib.Path) -> None:
  """Reserves a file's disk: writing its map to a full disk would kill the process."""
  if hasattr(os, "posix_fallocate"):
    with path.open("r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("model", None, "Model folder or hub id.")
  flags.DEFINE_string("input", None, "A sentence a line, UTF-8; also .gz.")
  flags.DEFINE_string("output", None, "The .npy file to write, [lines, D].")
  flags.DEFINE_integer("batch_size", 64, "Sentences in a batch.", 1)
  flags.DEFINE_bool(
    "normalize", None, "Whether to scale to unit length; by default as the folder says."
  )
  flags.DEFINE_string(
    "prompt_name", None, "The prompt before each sentence; by default the folder's."
  )
  flags.DEFINE_string("prompt", None, "A text to put there instead.")
  flags.DEFINE_string("pooling", None, "In place of the folder's own pooling.")
  flags.DEFINE_integer("max_length", None, "In place of the folder's own, in tokens.")


def main() -> None:
  if not _FLAGS.model or not _FLAGS.input or not _FLAGS.output:
    raise UserError("give --model DIR_or_id, --input FILE.txt and --output FILE.npy")
  # Check the paths before a model is fetched and loaded.
  _output_path(_FLAGS.output)
  decoding.check_file(str(files.user_path(_FLAGS.input)))
  encoder = SentenceEncoder(
    _FLAGS.model,
    pooling=_FLAGS.pooling,
    max_length=_FLAGS.max_length,
  )
  if _FLAGS.normalize is False:
    encoder.model = dataclasses.replace(encoder.model, normalize=False)
  encode_file(
    encoder,
    _FLAGS.input,
    _FLAGS.output,
    batch_size=_FLAGS.batch_size,
    normalize=bool(_FLAGS.normalize),
    prompt_name=_FLAGS.prompt_name,
    prompt=_FLAGS.prompt,
  )
  print(f"written to {_FLAGS.output}")


if __name__ == "__main__":
  command_line.run(main, define_flags, goes_on=True)

"""Embeds a file of sentences: row i of the result belongs to line i.

`python -m dcse_jax.encode --model DIR --input sentences.txt --output emb.npy`

Neither file need fit into memory. After an interruption the same command continues.

`python -m dcse_jax.encode --model DIR --input 'text/*.parquet' --output emb --engine ray`

An --output without a suffix is a folder of Parquet parts (id, --columns, embedding) with a
manifest, of files, patterns and folders of .txt, .txt.gz, .parquet or .arrow, here or at
gs:// and s3://. --engine ray divides them among the devices of a cluster: docs/scale.md.

With --precision int8 or uint8 the range of each dimension is measured on a sample of
the lines and kept in emb.ranges.npy, [2, D]; --calibration names another text, or such
a file, so that more text may be encoded with the same ranges.
"""

from collections.abc import Iterator
import functools

from absl import flags
import numpy as np

from dcse_jax.cluster import command as cluster
from dcse_jax.cluster import embedders
from dcse_jax.data import decoding
from dcse_jax.data.lines import Lines
from dcse_jax.embed import calibration as calibration_lib
from dcse_jax.embed import devices
from dcse_jax.embed import precision as precision_lib
from dcse_jax.embed import row_file
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS


def encode_file(
  encoder: SentenceEncoder,
  source: str,
  output: str,
  *,
  batch_size: int = 64,
  normalize: bool = False,
  prompt_name: str | None = None,
  prompt: str | None = None,
  precision: str = "float32",
  calibration: str | None = None,
) -> None:
  """Writes the embeddings of a file's lines, [lines, D] in a .npy file.

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
    precision: one of `precision.PRECISIONS`, as `SentenceEncoder.encode` has it.
    calibration: what "int8" and "uint8" measure ranges on, see `calibration.calibrate`.
      They are kept beside the output.

  Raises:
    UserError: a file cannot be read or written, or another process writes the output.
  """
  path = row_file.output_path(output)
  _check_precision(precision, calibration)
  lines, model = Lines(source), encoder.model
  if not len(lines):
    raise UserError(f"{source} is empty: nothing to encode")
  prompts = {"prompt_name": prompt_name, "prompt": prompt}
  stream = functools.partial(
    encoder.encode_stream,
    batch_size=batch_size,
    normalize_embeddings=normalize,
    **prompts,
  )
  origin = {"text": lines.digest, **embedders.origin_of(model, normalize, prompts)}
  ranges = None
  if precision != "float32":
    origin["precision"] = precision
  if precision_lib.has_ranges(precision):
    if calibration:
      calibration_lib.check_source(calibration, model.embedding_size)
      origin["calibration"] = calibration_lib.digest(calibration)
    measure = lambda: calibration_lib.calibrate(stream, lines, calibration)
    ranges, origin = calibration_lib.kept_ranges(path, origin, measure)

  def parts(done: int) -> Iterator[np.ndarray]:
    for part in stream(lines.iterate(done)):
      yield precision_lib.quantize(part, precision, ranges, first_row=done)
      done += len(part)

  row_file.write_rows(
    path,
    parts,
    shape=(len(lines), precision_lib.row_size(precision, model.embedding_size)),
    origin=origin,
    dtype=precision_lib.dtype_of(precision),
    finish=lambda: calibration_lib.put_ranges(path, ranges),
  )


def _check_precision(precision: str, calibration: str | None) -> None:
  precision_lib.check_precision(precision)
  if calibration and not precision_lib.has_ranges(precision):
    raise UserError(
      f"--calibration {calibration}: {precision} has no ranges; leave it out, or give "
      "--precision int8"
    )


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("model", None, "Model folder or hub id.")
  flags.DEFINE_string(
    "input",
    None,
    "A sentence a line, UTF-8; also .gz. For a folder of parts, any text.",
  )
  flags.DEFINE_string(
    "output", None, "The .npy file to write, [lines, D], or a folder of parts."
  )
  flags.DEFINE_string(
    "text_column", None, 'A table\'s column of sentences; "text" by default.'
  )
  cluster.define_flags()
  flags.DEFINE_integer("batch_size", 64, "Sentences in a device's batch.", 1)
  devices.define_flag()
  flags.DEFINE_bool(
    "normalize", None, "Whether to scale to unit length; by default as the folder says."
  )
  flags.DEFINE_string(
    "prompt_name", None, "The prompt before each sentence; by default the folder's."
  )
  flags.DEFINE_string("prompt", None, "A text to put there instead.")
  flags.DEFINE_string("pooling", None, "In place of the folder's own pooling.")
  flags.DEFINE_integer("max_length", None, "In place of the folder's own, in tokens.")
  flags.DEFINE_integer(
    "truncate_dim", None, "Keeps as many first numbers of embeddings.", 1
  )
  flags.DEFINE_enum(
    "precision",
    "float32",
    precision_lib.PRECISIONS,
    "float16 takes half of the bytes, int8 and uint8 take a quarter of the bytes, binary and ubinary a 32nd.",
  )
  flags.DEFINE_string(
    "calibration",
    None,
    "What int8 and uint8 measure ranges on: a text, or the NAME.ranges.npy beside an "
    "earlier output. Unless told, up to 10,000 lines of the input.",
  )


def main() -> None:
  if not _FLAGS.model or not _FLAGS.input or not _FLAGS.output:
    raise UserError(
      "give --model DIR_or_id, --input FILE.txt and --output FILE.npy, or a folder for "
      "parts"
    )
  _check_precision(_FLAGS.precision, _FLAGS.calibration)
  if _FLAGS.calibration:
    calibration_lib.check_source(_FLAGS.calibration)
  embedder = embedders.Encoder(
    _FLAGS.model,
    pooling=_FLAGS.pooling,
    max_length=_FLAGS.max_length,
    truncate_dim=_FLAGS.truncate_dim,
    normalize=_FLAGS.normalize,
    prompt_name=_FLAGS.prompt_name,
    prompt=_FLAGS.prompt,
    batch_size=_FLAGS.batch_size,
    devices=_FLAGS.devices,
  )
  if cluster.is_folder(_FLAGS.output):
    cluster.embed(
      embedder,
      _FLAGS.input,
      _FLAGS.output,
      text_column=_FLAGS.text_column,
      precision=_FLAGS.precision,
      calibration=_FLAGS.calibration,
    )
  else:
    # Check the paths before a model is fetched and loaded.
    row_file.output_path(_FLAGS.output)
    decoding.check_file(str(files.user_path(_FLAGS.input)))
    encode_file(
      embedder.make(),
      _FLAGS.input,
      _FLAGS.output,
      batch_size=_FLAGS.batch_size,
      normalize=bool(_FLAGS.normalize),
      prompt_name=_FLAGS.prompt_name,
      prompt=_FLAGS.prompt,
      precision=_FLAGS.precision,
      calibration=_FLAGS.calibration,
    )
  print(f"written to {_FLAGS.output}")


if __name__ == "__main__":
  command_line.run(main, define_flags, goes_on=True)

"""Embeds a file of sentences: row i of the result belongs to line i.

`python -m dcse_jax.encode --model DIR --input sentences.txt --output emb.npy`

Neither file need fit into memory. After an interruption the same command continues.
"""

import dataclasses

from absl import flags

from dcse_jax.data import decoding
from dcse_jax.data.lines import Lines
from dcse_jax.embed import row_file
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model import model as model_lib
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
  path = row_file.output_path(output)
  lines, model = Lines(source), encoder.model
  if not len(lines):
    raise UserError(f"{source} is empty: nothing to encode")
  prompts = {"prompt_name": prompt_name, "prompt": prompt}
  row_file.write_rows(
    path,
    lambda done: encoder.encode_stream(
      lines.iterate(done),
      batch_size=batch_size,
      normalize_embeddings=normalize,
      **prompts,
    ),
    shape=(len(lines), model.embedding_size),
    origin={
      "model": model_lib.identity(model),
      "text": lines.digest,
      "normalize": model.normalize or normalize,
      **{name: text for name, text in prompts.items() if text is not None},
    },
  )


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
  flags.DEFINE_integer(
    "truncate_dim", None, "Keeps as many first numbers of embeddings.", 1
  )


def main() -> None:
  if not _FLAGS.model or not _FLAGS.input or not _FLAGS.output:
    raise UserError("give --model DIR_or_id, --input FILE.txt and --output FILE.npy")
  # Check the paths before a model is fetched and loaded.
  row_file.output_path(_FLAGS.output)
  decoding.check_file(str(files.user_path(_FLAGS.input)))
  encoder = SentenceEncoder(
    _FLAGS.model,
    pooling=_FLAGS.pooling,
    max_length=_FLAGS.max_length,
    truncate_dim=_FLAGS.truncate_dim,
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

"""Builds an index of a text in a folder, for search beyond memory.

`python -m dcse_jax.index --model DIR --sentences my.txt --output my.index`

--embeddings takes those that encode has written before: emb.npy, or a folder of Parquet
parts, whose own column of text may stand in for --sentences. Otherwise the text is
embedded first. Interrupted, the same command goes on with the embeddings and does the
rest again. The folder holds all that search needs: `dcse_jax.search --model DIR --index
my.index`.

100,000 sentences or more need faiss: pip install 'dcse_jax[faiss]'.
"""

from absl import flags

from dcse_jax.data import decoding
from dcse_jax.data.lines import Lines
from dcse_jax.embed import devices
from dcse_jax.embed import index_build
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("model", None, "Model folder or hub id, as in encode.")
  flags.DEFINE_string("sentences", None, "A sentence a line, UTF-8; also .gz.")
  flags.DEFINE_string(
    "embeddings", None, "Those of the sentences, .npy or a folder of Parquet parts."
  )
  flags.DEFINE_string(
    "column", None, "The parts' column of text; needed if there are several."
  )
  flags.DEFINE_string("output", None, "The folder to write.")
  flags.DEFINE_float(
    "recall", 0.95, "The share of the ten nearest that a search is to find.", 0.0, 1.0
  )
  flags.DEFINE_string(
    "queries",
    None,
    "A text of queries to measure that on, a line each; by default sentences.",
  )
  flags.DEFINE_integer("batch_size", 64, "Sentences in a device's batch.", 1)
  devices.define_flag()
  flags.DEFINE_string("pooling", None, "In place of the folder's own pooling.")
  flags.DEFINE_integer("max_length", None, "In place of the folder's own, in tokens.")
  flags.DEFINE_integer(
    "truncate_dim", None, "Keeps as many first numbers of embeddings.", 1
  )


def main() -> None:
  """Builds, and says what it is and what it finds."""
  if not _FLAGS.model or not _FLAGS.output:
    raise UserError("give --model DIR_or_id, --sentences FILE.txt and --output FOLDER")
  if not _FLAGS.sentences and not _FLAGS.embeddings:
    raise UserError("give --sentences FILE.txt, or --embeddings of parts with text")
  if _FLAGS.column and not _FLAGS.embeddings:
    raise UserError(
      "--column is of --embeddings: name a folder of parts, or leave it out"
    )
  # Check the paths before a model is fetched and loaded.
  for name in filter(None, (_FLAGS.sentences, _FLAGS.queries)):
    decoding.check_file(str(files.user_path(name)))
  if _FLAGS.embeddings and not files.user_path(_FLAGS.embeddings).exists():
    raise UserError(f"--embeddings={_FLAGS.embeddings}: no such file: check the path")
  output = files.user_path(_FLAGS.output)
  about, was_there = index_build.build(
    output,
    SentenceEncoder(
      _FLAGS.model,
      pooling=_FLAGS.pooling,
      max_length=_FLAGS.max_length,
      truncate_dim=_FLAGS.truncate_dim,
      devices=_FLAGS.devices,
    ),
    lines=Lines(_FLAGS.sentences) if _FLAGS.sentences else None,
    embeddings=_FLAGS.embeddings,
    column=_FLAGS.column,
    queries=Lines(_FLAGS.queries) if _FLAGS.queries else None,
    recall=_FLAGS.recall,
    batch_size=_FLAGS.batch_size,
  )
  print(index_build.describe(about))
  print(f"{output} was there already" if was_there else f"written to {output}")


if __name__ == "__main__":
  command_line.run(main, define_flags, goes_on=True)

"""Answers queries over an embedded file, or an index of one.

`python -m dcse_jax.search --model DIR --embeddings emb.npy --sentences FILE.txt`

Embeddings may be of any precision that encode writes; emb.ranges.npy stands beside
those of int8 and uint8. Beyond memory, dcse_jax.index builds a folder, which --index
names in place of both.

It reads queries from standard input, a line each; --query "..." asks one and may be
repeated. After each query come its answers, a line each: two spaces, the cosine, a
tab, the sentence.
"""

import re
import sys

from absl import flags

from dcse_jax.data.lines import Lines
from dcse_jax.data.lines import input_lines
from dcse_jax.embed import calibration
from dcse_jax.embed import index_folder
from dcse_jax.embed import row_file
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("model", None, "Model folder or hub id, as in encode.")
  flags.DEFINE_string("embeddings", None, "The file that dcse_jax.encode wrote.")
  flags.DEFINE_string("sentences", None, "The text that it embedded.")
  flags.DEFINE_string("index", None, "The folder that dcse_jax.index wrote.")
  flags.DEFINE_multi_string("query", [], "May be repeated; none reads stdin.")
  flags.DEFINE_integer("top_k", 5, "Answers to a query, at most.", 1)
  flags.DEFINE_float("threshold", None, "The smallest cosine to show; by default all.")
  flags.register_validator(
    "threshold",
    # absl's own bounds would let NaN through.
    lambda threshold: threshold is None or -1.0 <= threshold <= 1.0,
    "must be a cosine, from -1 to 1",
  )
  flags.DEFINE_string(
    "prompt_name", None, 'The prompt before each query; by default "query", if it is.'
  )
  flags.DEFINE_string("prompt", None, "A text to put there instead.")
  flags.DEFINE_bool("faiss", False, "Approximate search, for millions.")
  flags.DEFINE_integer(
    "rescore_multiplier",
    4,
    "How many times top_k answers are compared with the query itself, where embeddings "
    "are signs.",
    1,
  )
  flags.DEFINE_string("pooling", None, "In place of the folder's own pooling.")
  flags.DEFINE_integer("max_length", None, "In place of the folder's own, in tokens.")
  flags.DEFINE_integer(
    "truncate_dim", None, "Keeps as many first numbers of embeddings.", 1
  )


def _open() -> SentenceEncoder:
  """Loads the model with what is searched in, as the flags name it."""
  options = {n: _FLAGS[n].value for n in ("pooling", "max_length", "truncate_dim")}
  if _FLAGS.index:
    path = files.user_path(_FLAGS.index)
    about = index_folder.read_about(path)
    if _FLAGS.sentences and Lines(_FLAGS.sentences).digest != about["text"]:
      raise UserError(
        f"{path} is the index of another text than {_FLAGS.sentences}: build it anew, or "
        "leave out --sentences, which an index has itself"
      )
    encoder = SentenceEncoder(_FLAGS.model, **options)
    encoder.load_index(path)
    return encoder
  embeddings, sentences = row_file.read(_FLAGS.embeddings), Lines(_FLAGS.sentences)
  ranges = calibration.ranges_path(files.user_path(_FLAGS.embeddings))
  encoder = SentenceEncoder(_FLAGS.model, **options)
  encoder.build_index(
    sentences,
    embeddings=embeddings,
    ranges=row_file.read(ranges) if ranges.exists() else None,
    use_faiss=_FLAGS.faiss,
    rescore_multiplier=_FLAGS.rescore_multiplier,
  )
  return encoder


def main() -> None:
  """Answers queries."""
  if not _FLAGS.model or not (_FLAGS.index or (_FLAGS.embeddings and _FLAGS.sentences)):
    raise UserError(
      "give --model DIR_or_id, and --embeddings FILE.npy and --sentences FILE.txt, or "
      "--index FOLDER"
    )
  if _FLAGS.index and (_FLAGS.embeddings or _FLAGS.faiss):
    raise UserError("--index has embeddings and lists: leave out --embeddings, --faiss")
  for query in _FLAGS.query:
    if re.search("[\ud800-\udfff]", query):  # Python spells other bytes like this.
      raise UserError(f"--query={query}: is not valid UTF-8")
  encoder = _open()
  asks = not _FLAGS.query and sys.stdin is not None and sys.stdin.isatty()
  if asks:
    print("A query a line; an empty one ends.", flush=True)
  # A file gets sentences as they are; on a terminal they must not control it.
  shown = command_line.printable if sys.stdout.isatty() else str
  for query in _FLAGS.query or input_lines():
    query = query.rstrip("\r\n")
    if not query.strip():
      if asks:
        break
      continue
    print(shown(query))
    found = encoder.search(
      query,
      top_k=_FLAGS.top_k,
      threshold=_FLAGS.threshold,
      prompt_name=_FLAGS.prompt_name,
      prompt=_FLAGS.prompt,
    )
    for sentence, cosine in found:
      print(f"  {cosine:.4f}\t{shown(sentence)}")
    if not found:
      least = _FLAGS.threshold
      print(
        "  nothing"
        + (f" with a cosine of {least:g} or more" if least is not None else "")
      )
    sys.stdout.flush()


if __name__ == "__main__":
  command_line.run(main, define_flags, gives_lines=True)

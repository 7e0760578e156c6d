"""Makes a model of words by counting: minutes on any machine, for any language.

`python -m dcse_jax.words --text my.txt --output words`

A word's vector says which words stand near it (positive pointwise mutual information and
a singular value decomposition) and how it is spelled; a sentence's is the weighted mean of
its words'. OUTPUT is a model folder as any other, a StaticEmbedding of
sentence-transformers': to encode and search with, to train further, or to be a teacher,
`--config.rounds.student.teachers="('words',)"`.
"""

from absl import flags

from dcse_jax.counting import static
from dcse_jax.data import text as text_lib
from dcse_jax.hub import folder as folder_lib
from dcse_jax.runtime import command_line
from dcse_jax.runtime import digests
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("text", None, "Text as config.text takes it.")
  flags.DEFINE_list("columns", [], "The columns of a table that are counted.")
  flags.DEFINE_string("output", None, "The model folder to write.")
  flags.DEFINE_bool("overwrite", False, "Replace a folder that is not ours.")
  flags.DEFINE_integer("size", 512, "How many numbers say what stands near a word.", 0)
  flags.DEFINE_integer("spelling_size", 512, "How many say how it is spelled.", 0)
  flags.DEFINE_float("spelling_weight", 4.0, "What spelling counts, neighbours 1.", 0.0)
  flags.DEFINE_integer("width", 0, "How many are kept of both together; 0: all.", 0)
  flags.DEFINE_integer("window", 40, "How far apart words may stand.", 1)
  flags.DEFINE_integer("min_count", 3, "How often a word must be seen.", 1)
  flags.DEFINE_integer("most", 100_000, "How many words there may be.", 3)
  flags.DEFINE_float("context_power", 0.75, "Exponent of contexts' counts.", 0.0)
  flags.DEFINE_float("smooth", 2e-4, "The share of a word that weighs a half.", 1e-9)
  flags.DEFINE_integer("seed", 0, "Draws what is drawn of both parts.", 0)


def main() -> None:
  if not _FLAGS.text or not _FLAGS.output:
    raise UserError("give --text FILE and --output DIR")
  if not _FLAGS.size and not _FLAGS.spelling_size:
    raise UserError("--size=0 --spelling_size=0 leave nothing: give one of them")
  if _FLAGS.width > _FLAGS.size + _FLAGS.spelling_size:
    raise UserError(
      f"--width={_FLAGS.width} is more than the {_FLAGS.size} and {_FLAGS.spelling_size} "
      "numbers that there are: lower it"
    )
  folder = files.user_path(_FLAGS.output)
  digests.check_replaceable(folder, overwrite=_FLAGS.overwrite)
  text = text_lib.read_text(_FLAGS.text, tuple(_FLAGS.columns))
  sentences = [cell for column in text.columns for cell in column]
  settings = (
    "size",
    "spelling_size",
    "spelling_weight",
    "width",
    "window",
    "min_count",
    "most",
    "context_power",
    "smooth",
    "seed",
  )
  try:
    model = static.count_words(sentences, **{n: _FLAGS[n].value for n in settings})
  except ValueError as error:
    raise UserError(
      f"{_FLAGS.text} has only {error}, too few for vectors of {_FLAGS.size} numbers: "
      "give more text, or lower --size or --min_count"
    ) from error
  folder_lib.save(model, folder, overwrite=_FLAGS.overwrite)
  print(f"{model.config.vocab_size - 1} words: written to {_FLAGS.output}")


if __name__ == "__main__":
  command_line.run(main, define_flags)

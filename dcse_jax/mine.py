"""Mines hard negatives: pairs in, triplets out.

`python -m dcse_jax.mine --model DIR --text pairs.tsv --columns anchor,positive --output triplets.jsonl --relative_margin 0.05`

The output has a line {"anchor", "positive", "negative"} for each negative, and trains
with `--config.text=triplets.jsonl --config.columns="('anchor','positive','negative')"`.
"""

import json
import math

from absl import flags

from dcse_jax.data import text as text_lib
from dcse_jax.embed import mining
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS

_BOUNDS = {
  "max_score": "The largest cosine of a negative with its anchor.",
  "min_score": "The smallest.",
  "absolute_margin": "By how much the positive's cosine is above a negative's.",
  "relative_margin": "Likewise, as a share of the positive's; 0.05 is a good start.",
}


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("model", None, "Model folder or hub id.")
  flags.DEFINE_string("text", None, "Pairs, as config.text takes them.")
  flags.DEFINE_list("columns", [], "The columns of anchor and positive.")
  flags.DEFINE_string("corpus", None, "More documents than the positives, a text.")
  flags.DEFINE_string("output", None, "The .jsonl file to write.")
  flags.DEFINE_integer("num_negatives", 1, "Negatives for each pair.", 1)
  flags.DEFINE_integer("range_min", 0, "Skips as many of the nearest documents.", 0)
  flags.DEFINE_integer("range_max", None, "Takes none further down.", 1)
  for name, about in _BOUNDS.items():
    flags.DEFINE_float(name, None, about)
    flags.register_validator(
      name, lambda x: x is None or math.isfinite(x), "must be a finite number"
    )
  flags.DEFINE_enum(
    "sampling", "top", ("top", "random"), "The nearest, or drawn from all that may be."
  )
  flags.DEFINE_integer("seed", 0, "For random sampling.", 0)


def main() -> None:
  """Mines, writes, and says what was left out."""
  if not _FLAGS.model or not _FLAGS.text or not _FLAGS.output:
    raise UserError("give --model DIR_or_id, --text PAIRS and --output FILE.jsonl")
  output = files.user_path(_FLAGS.output)
  if output.suffix != ".jsonl":
    raise UserError(f"{output}: triplets are lines of JSON: name it NAME.jsonl")
  pairs = text_lib.read_text(_FLAGS.text, tuple(_FLAGS.columns)).columns
  if len(pairs) != 2:
    raise UserError(
      f"{_FLAGS.text} has {len(pairs)} columns of text, not anchor and positive: name "
      "these two by --columns"
    )
  corpus = text_lib.read_text(_FLAGS.corpus).columns[0] if _FLAGS.corpus else ()
  found = mining.mine(
    SentenceEncoder(_FLAGS.model),
    *pairs,
    corpus,
    guards=mining.Guards(
      _FLAGS.range_min,
      _FLAGS.range_max,
      **{name: _FLAGS[name].value for name in _BOUNDS},
    ),
    num_negatives=_FLAGS.num_negatives,
    sample=_FLAGS.sampling == "random",
    seed=_FLAGS.seed,
  )
  names = ("anchor", "positive", "negative")
  lines = (
    json.dumps(dict(zip(names, each)), ensure_ascii=False) for each in found.triplets
  )
  files.write_text(output, "".join(f"{line}\n" for line in lines))
  for name, number in found.left_out.items():
    print(f"{name} left out {number} candidates")
  if found.without:
    print(f"{found.without} pairs have fewer negatives than were asked for")
  print(f"{len(found.triplets)} triplets written to {output}")


if __name__ == "__main__":
  command_line.run(main, define_flags)

"""Mines hard negatives: pairs in, a table of triplets out.

`python -m dcse_jax.mine --model DIR --text pairs.tsv --columns anchor,positive --output triplets.parquet --relative_margin 0.05 --num_negatives 4`

The table has the columns anchor, positive and negative_1 to negative_4 (negative, where
one is asked for) and trains as it is. Flags have the names of sentence-transformers'
`mine_hard_negatives`, and for the same settings the negatives are the same.
OUTPUT.mining keeps embeddings and neighbours: an interrupted command goes on, and one
with other guards begins there; remove it when nothing is left to try. --engine ray embeds
on the devices of a cluster: docs/scale.md.
"""

from collections.abc import Callable
import functools
import math
import pathlib
from typing import Any

from absl import flags

from dcse_jax.cluster import command as cluster
from dcse_jax.data import table_writer
from dcse_jax.data import text as text_lib
from dcse_jax.embed import bridge
from dcse_jax.embed import candidates
from dcse_jax.embed import mined_file
from dcse_jax.embed import mining
from dcse_jax.embed import score_file
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS

_BOUNDS = {
  "max_score": "The largest score of a negative with its anchor.",
  "min_score": "The smallest.",
  "absolute_margin": "By how much the positive's score is above a negative's.",
  "relative_margin": "Likewise, as a share of the positive's; 0.05 is a good start.",
}
_SCORERS = ("second_model", "cross_encoder", "scores")


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("model", None, "Model folder or hub id.")
  flags.DEFINE_string("text", None, "Pairs, as config.text takes them.")
  flags.DEFINE_list("columns", [], "The columns of anchor and positive.")
  flags.DEFINE_string("corpus", None, "More documents than the positives, a text.")
  flags.DEFINE_string("corpus_column", None, "The column of documents of a table.")
  flags.DEFINE_string("output", None, "The .parquet, .jsonl or .tsv file to write.")
  flags.DEFINE_enum(
    "format",
    "n-tuple",
    mined_file.FORMS,
    "A row for each pair with a column for each negative, or with a list of them; a row "
    "for each negative; or what the search found, to be scored by another program.",
  )
  flags.DEFINE_bool("output_scores", False, "Whether to write scores, too.")
  flags.DEFINE_integer("num_negatives", 1, "Negatives for each pair.", 1)
  flags.DEFINE_integer(
    "range_min", 0, "Skips as many of the nearest documents that pass.", 0
  )
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
  flags.DEFINE_string("second_model", None, "A model whose cosines meet the bounds.")
  flags.DEFINE_string(
    "cross_encoder",
    None,
    "One that reads two texts together, by sentence-transformers.",
  )
  flags.DEFINE_string(
    "scores", None, "A table of anchor, document and score, as --format=candidates has."
  )
  flags.DEFINE_enum(
    "index", "exact", tuple(candidates.INDEXES), "faiss is for millions."
  )
  for role in ("query", "corpus"):
    about = f"The prompt before each {role} text; by default the folder's own for it."
    flags.DEFINE_string(f"{role}_prompt_name", None, about)
    flags.DEFINE_string(f"{role}_prompt", None, "A text to put there instead.")
  flags.DEFINE_integer("batch_size", 64, "Sentences in a batch.", 1)
  cluster.define_engine_flags()


def _read_pairs() -> mining.Pairs:
  """Reads the pairs and the corpus, and says how they fit."""
  columns = text_lib.read_text(_FLAGS.text, tuple(_FLAGS.columns)).columns
  if len(columns) != 2:
    raise UserError(
      f"{_FLAGS.text} has {len(columns)} columns of text, not anchor and positive: name "
      "these two by --columns"
    )
  corpus = ()
  if _FLAGS.corpus:
    column = (_FLAGS.corpus_column,) if _FLAGS.corpus_column else ()
    corpus = text_lib.read_text(_FLAGS.corpus, column).columns[0]
  elif _FLAGS.corpus_column:
    raise UserError("--corpus_column is of a --corpus: name one, or leave it out")
  pairs = mining.group(*columns, corpus)
  number = f"{len(pairs.anchor_of):,} pairs of {len(pairs.anchors):,} anchors"
  print(f"{number}; {len(pairs.documents):,} documents", flush=True)
  if corpus:
    there = set(corpus)
    positives = pairs.documents[: pairs.num_positives]
    if missing := sum(positive not in there for positive in positives):
      print(
        f"{missing:,} of {len(positives):,} positives are not in {_FLAGS.corpus}: added "
        "to the documents",
        flush=True,
      )
  return pairs


def _prompts() -> dict[str, dict[str, str | None]]:
  """Returns how anchors and documents are encoded, as `candidates` takes it."""
  found = {}
  for role, flag in (("query", "query"), ("document", "corpus")):
    name, text = _FLAGS[f"{flag}_prompt_name"].value, _FLAGS[f"{flag}_prompt"].value
    if name is not None and text is not None:
      raise UserError(
        f"--{flag}_prompt_name and --{flag}_prompt exclude each other: give one"
      )
    found[role] = {"prompt_name": name or role} if text is None else {"prompt": text}
  return found


def _scorer(
  pairs: mining.Pairs, guards: mining.Guards, work: pathlib.Path
) -> Callable[[pathlib.Path], candidates.Scorer] | None:
  """Returns what makes the scores that guards look at; None for the model's own."""
  given = [name for name in _SCORERS if _FLAGS[name].value]
  if len(given) > 1:
    raise UserError(f"--{given[0]} and --{given[1]} exclude each other: give one")
  if not given:
    return None
  if not guards.bounds and _FLAGS.format != "candidates":
    raise UserError(
      f"--{given[0]} scores for bounds, and there is none: give --relative_margin=0.05, "
      "or another of " + ", ".join(f"--{name}" for name in _BOUNDS)
    )
  batch_size = _FLAGS.batch_size
  if _FLAGS.scores:
    names = ("anchor", "document"), ("score",)
    text = text_lib.read_text(_FLAGS.scores, *names)
    rows = zip(*text.columns, text.scores[:, 0].tolist())
    table = score_file.ScoreFile(_FLAGS.scores, rows, pairs)
    return lambda folder: table
  if _FLAGS.cross_encoder:
    model = bridge.CrossEncoder(_FLAGS.cross_encoder, batch_size=batch_size)
    return lambda folder: candidates.CrossScorer(model, pairs)
  prompts: dict[str, Any] = {r: {"prompt_name": r} for r in ("query", "document")}
  return functools.partial(
    candidates.BiEncoder,
    encoder=cluster.make_encoder(_FLAGS.second_model, work),
    pairs=pairs,
    prompts=prompts,
    batch_size=batch_size,
  )


def main() -> None:
  """Mines, writes, and says what was left out."""
  if not _FLAGS.model or not _FLAGS.text or not _FLAGS.output:
    raise UserError("give --model DIR_or_id, --text PAIRS and --output FILE.parquet")
  table = mined_file.Table(_FLAGS.format, _FLAGS.num_negatives, _FLAGS.output_scores)
  output = table_writer.check_output(_FLAGS.output, table.columns)
  guards = mining.Guards(
    _FLAGS.range_min,
    _FLAGS.range_max,
    **{name: _FLAGS[name].value for name in _BOUNDS},
  )
  prompts, pairs = _prompts(), _read_pairs()
  work = mined_file.kept_in(output)
  make_scorer = _scorer(pairs, guards, work)
  report = mined_file.mine_file(
    cluster.make_encoder(_FLAGS.model, work),
    pairs,
    output,
    table=table,
    guards=guards,
    seed=_FLAGS.seed if _FLAGS.sampling == "random" else None,
    index=_FLAGS.index,
    prompts=prompts,
    batch_size=_FLAGS.batch_size,
    make_scorer=make_scorer,
  )
  for line in report.lines():
    print(line)
  print(f"{report.rows:,} rows written to {files.user_path(_FLAGS.output)}")


if __name__ == "__main__":
  command_line.run(main, define_flags, goes_on=True)

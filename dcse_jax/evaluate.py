"""Scores models side by side on STS sets, retrieval, transfer tasks and masked words.

`python -m dcse_jax.evaluate --model A --model B --sts DIR --output results.json`

A row of the table is a model or, where there are several, its seeds: equal names in
`--model NAME=PATH`, and the finished seeds of a round's folder, are pooled to their
mean and sample standard deviation.

Without --dev the train sets are left out unless there is nothing else, and dev sets
are shown but not averaged. With --dev only sets named -dev are scored, and transfer
tasks have the accuracy that the classifier's C is chosen by: no test set is looked at.
"""

import math

from absl import flags

from dcse_jax.embed import devices
from dcse_jax.eval import offline
from dcse_jax.eval import registry
from dcse_jax.eval import sts
from dcse_jax.eval import transfer
from dcse_jax.eval.evaluator import Options
from dcse_jax.runtime import command_line
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_multi_string(
    "model",
    [],
    "Model folder or hub id, or WORKDIR/ROUND of a training run for all its finished "
    "seeds; NAME=... names it. Repeat for several models; equal names are seeds of one.",
  )
  for kind, evaluator in registry.EVALUATORS.items():
    flags.DEFINE_multi_string(kind, [], evaluator.about)
  devices.define_flag()
  flags.DEFINE_boolean("dev", False, "Dev sets only.")
  flags.DEFINE_enum(
    "convention",
    "senteval",
    list(sts.CONVENTIONS),
    "Scores SICK-R on its test pairs (senteval) or on all its pairs (mteb).",
  )
  flags.DEFINE_enum(
    "transfer_classifier",
    "sklearn",
    list(transfer.CLASSIFIERS),
    "The classifier of transfer tasks: scikit-learn's logistic regression, or "
    "SentEval's own classifier, which papers use for their figures.",
  )
  flags.DEFINE_string(
    "alignment_set",
    None,
    "The STS set that alignment and uniformity are measured on; STSB-all is its train, "
    "dev and test pairs together. STSB-test (or -dev) unless told.",
  )
  flags.DEFINE_float(
    "alignment_above",
    None,
    "Measures alignment on pairs with a score strictly above this, not on those in the "
    "upper fifth of the scores. SimCSE's analysis: STSB-all, above 4.",
  )
  flags.register_validator(
    "alignment_above",
    lambda above: above is None or math.isfinite(above),
    "must be a finite number",
  )
  flags.DEFINE_boolean(
    "bm25", False, "A row for BM25 in the table of retrieval, to compare with."
  )
  flags.DEFINE_multi_enum(
    "precision",
    [],
    ["int8", "ubinary"],
    "Retrieval also searches documents of this precision and shows nDCG@10 and what it "
    "loses. Repeats.",
  )
  flags.DEFINE_string("output", None, "JSON file to write.")
  flags.DEFINE_string("markdown", None, "Markdown file to write.")
  flags.DEFINE_string("pooling", None, "In place of the folder's own pooling.")
  flags.DEFINE_string(
    "prompt_name", None, "The prompt before each sentence; by default the folder's."
  )
  flags.DEFINE_integer("num_layers", None, "How many of the first layers to evaluate.")
  flags.DEFINE_integer("max_length", None, "In place of the folder's own, in tokens.")
  flags.DEFINE_multi_integer(
    "truncate_dim",
    [],
    "Scores embeddings cut to as many first numbers. Repeat for several widths.",
    1,
  )


def main() -> None:
  """Scores every model on every set and task."""
  places = {kind: _FLAGS[kind].value for kind in registry.EVALUATORS}
  if not _FLAGS.model or not any(places.values()):
    raise UserError("give --model DIR_or_id and --sts, --retrieval or --transfer DIR")
  if _FLAGS.alignment_set and not _FLAGS.sts:
    raise UserError(f"--alignment_set {_FLAGS.alignment_set}: --sts holds none")
  if _FLAGS.bm25 and not _FLAGS.retrieval:
    raise UserError("--bm25 ranks documents: name some by --retrieval DIR")
  if _FLAGS.precision and not _FLAGS.retrieval:
    raise UserError("--precision concerns a search: name documents by --retrieval DIR")
  offline.evaluate(
    _FLAGS.model,
    places,
    Options(
      dev=_FLAGS.dev,
      convention=_FLAGS.convention,
      classifier=_FLAGS.transfer_classifier,
      alignment_set=_FLAGS.alignment_set,
      alignment_above=_FLAGS.alignment_above,
      bm25=_FLAGS.bm25,
      precisions=tuple(dict.fromkeys(_FLAGS.precision)),
    ),
    loading={
      "pooling": _FLAGS.pooling,
      "num_layers": _FLAGS.num_layers,
      "max_length": _FLAGS.max_length,
      "default_prompt_name": _FLAGS.prompt_name,
      "devices": _FLAGS.devices,
    },
    widths=_FLAGS.truncate_dim,
    output=_FLAGS.output,
    markdown=_FLAGS.markdown,
  )


if __name__ == "__main__":
  command_line.run(main, define_flags)

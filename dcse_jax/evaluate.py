"""Scores models side by side on STS sets and transfer tasks.

`python -m dcse_jax.evaluate --model A --model B --sts DIR --output results.json`

A row of the table is a model or, where there are several, the seeds of one: equal
names in `--model NAME=PATH`, and the finished seeds of a round's folder, are pooled
to their mean and sample standard deviation.

Without --dev the train sets are left out unless there is nothing else, and dev sets
are shown but not averaged. With --dev only sets named -dev are scored, and of
transfer tasks only what the classifier's C is chosen by: no test set is looked at.
"""

from collections.abc import Callable, Sequence
import time
from typing import Any

from absl import flags
import numpy as np

from dcse_jax import cli
from dcse_jax import evaluation_report
from dcse_jax import folder
from dcse_jax import huggingface
from dcse_jax import sts
from dcse_jax import transfer
from dcse_jax.errors import UserError
from dcse_jax.files import make_folder
from dcse_jax.files import user_path
from dcse_jax.files import write_json
from dcse_jax.sentence_encoder import SentenceEncoder

_FLAGS = flags.FLAGS


def read_sets(
  paths: Sequence[str], *, convention: str = "senteval", dev: bool = False
) -> dict[str, sts.StsSet]:
  """Reads the STS sets to score, the seven first and in the order of papers.

  Args:
    paths: each as `sts.read_sts` takes it.
    convention: one of `evaluation_report.CONVENTIONS`.
    dev: only sets whose names end in -dev.

  Raises:
    UserError: a path that cannot be read, two sets of one name, or nothing to score.
  """
  sets: dict[str, sts.StsSet] = {}
  for path in paths:
    more = sts.read_sts(path)
    if both := sets.keys() & more.keys():
      raise UserError(f"--sts {path}: there is a {min(both)} already; rename one")
    sets |= more
  if not sets:
    return sets
  if dev:
    sets = {n: pairs for n, pairs in sets.items() if n.lower().endswith("-dev")}
    if not sets:
      raise UserError("--dev: no set is named NAME-dev; add one or leave --dev out")
    return sets
  if convention == "mteb":
    sets = sts.with_all_of_sickr(sets)
  trained_on = [name for name in sets if name.lower().endswith("-train")]
  if len(trained_on) < len(sets):
    sets = {name: pairs for name, pairs in sets.items() if name not in trained_on}
  order = (*sts.SEVEN_TEST_SETS, sts.SICKR_ALL, *sets)
  return {name: sets[name] for name in dict.fromkeys(order) if name in sets}


def find_models(arguments: Sequence[str]) -> dict[str, list[str]]:
  """The model folders or hub ids behind each name.

  Args:
    arguments: PATH or NAME=PATH, where PATH is a model folder, a hub id, perhaps
      ID@REVISION, or ROUND or ROUND/SEED of a training run's workdir.

  Raises:
    UserError: a path that is no model, or given twice under one name.
  """
  models: dict[str, list[str]] = {}
  for argument in arguments:
    name, equals, place = argument.partition("=")
    if not equals or user_path(argument).is_dir():
      name = place = argument
    if not name or not place:
      raise UserError(f"--model {argument}: expected PATH or NAME=PATH")
    members = models.setdefault(name, [])
    for member in _seeds(place) or [place]:
      huggingface.read_config(folder.locate(member))
      if member in members:
        raise UserError(f"--model {argument}: {member} is given twice")
      members.append(member)
  return models


def _seeds(place: str) -> list[str]:
  """The finished models of a round's or a seed's folder; none elsewhere."""
  path = user_path(place)
  if (path / "results.json").exists():
    raise UserError(f"{place} is a whole run: name {place}/ROUND or {place}/export")
  results = [*path.glob("result.json"), *path.glob("*/result.json")]
  # Seed 10 after seed 2.
  seeds = sorted((r.parent for r in results), key=lambda s: (len(s.name), s.name))
  if (path / "origin.json").exists() and not seeds:
    raise UserError(f"{place} has no finished model yet: train on, or name another")
  return [str(seed / "model") for seed in seeds]


def score(
  encode: Callable[[list[str]], np.ndarray],
  sets: dict[str, sts.StsSet],
  tasks: dict[str, transfer.Task],
  *,
  dev: bool = False,
) -> dict[str, dict[str, float]]:
  """Scores one model; each distinct sentence is encoded once.

  Args:
    encode: from sentences to embeddings [n, D].
    sets: STS sets by name.
    tasks: transfer tasks by name.
    dev: see `transfer.score_task`.

  Returns:
    "sts", where there are sets: Spearman in percent by set, "avg", and
    "alignment" and "uniformity" if STSB-test, or with dev STSB-dev, is there.
    "transfer", where there are tasks: accuracy in percent by task, "avg", and
    "TASK_f1" where `transfer.score_task` gives one.
  """
  splits = [
    rows
    for task in tasks.values()
    for split, rows in task.items()
    if not (dev and split == "test")
  ]
  lists = [column for rows in splits for column in rows.sentences]
  lists += [column for pairs in sets.values() for column in (pairs.first, pairs.second)]
  sentences = list(dict.fromkeys(sentence for column in lists for sentence in column))
  row = {sentence: i for i, sentence in enumerate(sentences)}
  embeddings = encode(sentences)
  embed = lambda wanted: embeddings[[row[sentence] for sentence in wanted]]
  scores: dict[str, dict[str, float]] = {}
  if sets:
    scores["sts"] = sts.score_sts(embed, sets)
    if pairs := sets.get(evaluation_report.sphere_set(dev)):
      scores["sts"]["alignment"] = sts.alignment(
        embed(pairs.first), embed(pairs.second), pairs.scores
      )
      distinct = list(dict.fromkeys((*pairs.first, *pairs.second)))
      scores["sts"]["uniformity"] = sts.uniformity(embed(distinct))
  if tasks:
    scores["transfer"], f1 = {}, {}
    for name, task in tasks.items():
      result = transfer.score_task(embed, task, dev=dev)
      scores["transfer"][name] = result["accuracy"]
      if "f1" in result:
        f1[f"{name}_f1"] = result["f1"]
    scores["transfer"]["avg"] = float(np.mean(list(scores["transfer"].values())))
    scores["transfer"] |= f1
  return scores


def pool(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The seeds of one model: their number, mean, sample standard deviation, and they.

  Args:
    runs: each as `score` gives it, perhaps with more fields; at least one.

  Returns:
    "n"; "sts" and "transfer" as far as there, each with "mean" and "sd" by column,
    the latter None for one run; and "runs".
  """
  pooled: dict[str, Any] = {"n": len(runs)}
  for part in ("sts", "transfer"):
    if part in runs[0]:
      values = {key: [run[part][key] for run in runs] for key in runs[0][part]}
      mean = {key: float(np.mean(each)) for key, each in values.items()}
      sd = None
      if len(runs) > 1:
        sd = {key: float(np.std(each, ddof=1)) for key, each in values.items()}
      pooled[part] = {"mean": mean, "sd": sd}
  return pooled | {"runs": list(runs)}


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_multi_string(
    "model",
    [],
    "Model folder or hub id, or WORKDIR/ROUND of a training run for all its finished "
    "seeds; NAME=... names it. Repeat for several models; equal names are seeds of one.",
  )
  flags.DEFINE_multi_string(
    "sts", [], "Folder of TSVs, one a set; one TSV; or SentEval's data folder. Repeats."
  )
  flags.DEFINE_string(
    "transfer", None, "Folder of transfer tasks as TSVs, or SentEval's data folder."
  )
  flags.DEFINE_boolean("dev", False, "Dev sets only.")
  flags.DEFINE_enum(
    "convention",
    "senteval",
    list(evaluation_report.CONVENTIONS),
    "SICK-R by its test pairs (senteval) or by all its pairs (mteb).",
  )
  flags.DEFINE_string("output", None, "JSON file to write.")
  flags.DEFINE_string("markdown", None, "Markdown file to write.")
  flags.DEFINE_string("pooling", None, "In place of the folder's own pooling.")
  flags.DEFINE_integer("num_layers", None, "Evaluate the first so many layers.")
  flags.DEFINE_integer("max_length", None, "In place of the folder's own, in tokens.")


def main() -> None:
  """Scores every model on every set and task."""
  if not _FLAGS.model or not (_FLAGS.sts or _FLAGS.transfer):
    raise UserError("give --model DIR_or_id and --sts DIR or --transfer DIR")
  dev = _FLAGS.dev
  # All that can be wrong, before the first of many sentences is encoded.
  sets = read_sets(_FLAGS.sts, convention=_FLAGS.convention, dev=dev)
  tasks = {}
  if _FLAGS.transfer:
    tasks = transfer.read_transfer(_FLAGS.transfer)
    transfer.check_installed()
  models = find_models(_FLAGS.model)
  outputs = [name and user_path(name) for name in (_FLAGS.output, _FLAGS.markdown)]
  for output in filter(None, outputs):
    make_folder(output.parent)
    if output.is_dir():
      raise UserError(f"{output} is a folder: name a file to write")
  options = {
    "pooling": _FLAGS.pooling,
    "num_layers": _FLAGS.num_layers,
    "max_length": _FLAGS.max_length,
  }
  pooled = {}
  for name, places in models.items():
    runs = []
    for place in places:
      start = time.monotonic()
      encoder = SentenceEncoder(place, **options)
      runs.append({"model": place, **score(encoder.encode, sets, tasks, dev=dev)})
      print(f"{place}: scored in {time.monotonic() - start:.0f} s", flush=True)
    pooled[name] = pool(runs)
  results = {
    **evaluation_report.describe(sets, tasks, convention=_FLAGS.convention, dev=dev),
    "options": {key: value for key, value in options.items() if value is not None},
    "models": pooled,
  }
  print(evaluation_report.as_text(results))
  output, markdown = outputs
  if output:
    write_json(output, results)
    print(f"written to {output}")
  if markdown:
    evaluation_report.write_markdown(markdown, results)
    print(f"written to {markdown}")


if __name__ == "__main__":
  cli.run(main, define_flags)

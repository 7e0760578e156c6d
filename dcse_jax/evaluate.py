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
import math
import time
from typing import Any

from absl import flags
import numpy as np

from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.eval import sts
from dcse_jax.eval import tables
from dcse_jax.eval import transfer
from dcse_jax.hub import folder
from dcse_jax.hub import modules
from dcse_jax.model.vectors import is_finite
from dcse_jax.runtime import command_line
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import make_folder
from dcse_jax.runtime.files import user_path
from dcse_jax.runtime.files import write_json

_FLAGS = flags.FLAGS


def read_sets(
  paths: Sequence[str], *, convention: str = "senteval", dev: bool = False
) -> dict[str, sts.StsSet]:
  """Reads the STS sets to score, the seven first and in the order of papers.

  Args:
    paths: each as `sts.read_sts` takes it.
    convention: one of `tables.CONVENTIONS`.
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


def read_sphere(
  paths: Sequence[str],
  name: str | None,
  *,
  dev: bool = False,
  strictly_above: float | None = None,
) -> sts.StsSet | None:
  """Reads the set that alignment and uniformity are measured on.

  Args:
    paths: each as `sts.read_sts` takes it.
    name: one of their sets, or STSB-all, its train, dev and test pairs together; None
      stands for `tables.sphere_set`.
    dev: whether only a dev or train set will do.
    strictly_above: see `sts.paraphrases`.

  Returns:
    The set; None where there is none of the name that None stands for.

  Raises:
    UserError: there is no such set, or none of its pairs is a paraphrase.
  """
  sets = {n: pairs for path in paths for n, pairs in sts.read_sts(path).items()}
  chosen = name or tables.sphere_set(dev)
  if dev and sts.is_test(chosen):
    raise UserError(f"--alignment_set {chosen}: --dev looks at no test set")
  if chosen == sts.STSB_ALL and chosen not in sets:
    sets[chosen] = sts.all_splits(sets, chosen)
  if chosen not in sets:
    if name is None:
      return None
    raise UserError(f"--alignment_set {name}: --sts holds {', '.join(sets) or 'none'}")
  alike = sts.paraphrases(sets[chosen].scores, strictly_above=strictly_above)
  if not alike.any():
    raise UserError(
      f"no pair of {chosen} has a score above {strictly_above:g}: lower it"
    )
  return sets[chosen]


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
      modules.read(folder.locate(member))
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
  classifier: str = "sklearn",
  sphere: sts.StsSet | None = None,
  strictly_above: float | None = None,
) -> dict[str, dict[str, float]]:
  """Scores one model; each distinct sentence is encoded once.

  Args:
    encode: from sentences to embeddings [n, D].
    sets: STS sets by name.
    tasks: transfer tasks by name.
    dev: see `transfer.score_task`.
    classifier: one of `transfer.CLASSIFIERS`.
    sphere: what alignment and uniformity are measured on; by default STSB-test or, with
      dev, STSB-dev, if it is there.
    strictly_above: see `sts.paraphrases`.

  Returns:
    "sts", where there are sets: Spearman in percent by set, "avg", and
    "alignment" and "uniformity" where there is a set for them.
    "transfer", where there are tasks: accuracy in percent by task, "avg", and
    "TASK_f1" where `transfer.score_task` gives one.

  Raises:
    UserError: an embedding holds NaN or infinity.
  """
  splits = [
    rows
    for task in tasks.values()
    for split, rows in task.items()
    if not (dev and split == "test")
  ]
  sphere = sphere or sets.get(tables.sphere_set(dev))
  lists = [column for rows in splits for column in rows.sentences]
  lists += [column for pairs in sets.values() for column in (pairs.first, pairs.second)]
  lists += [sphere.first, sphere.second] if sphere else []
  sentences = list(dict.fromkeys(sentence for column in lists for sentence in column))
  row = {sentence: i for i, sentence in enumerate(sentences)}
  embeddings = encode(sentences)
  if not is_finite(embeddings).all():
    raise UserError("the model yields NaN or infinity, which nothing can be scored by")
  embed = lambda wanted: embeddings[[row[sentence] for sentence in wanted]]
  scores: dict[str, dict[str, float]] = {}
  if sets:
    scores["sts"] = sts.score_sts(embed, sets)
    if sphere:
      first, second = embed(sphere.first), embed(sphere.second)
      scores["sts"]["alignment"] = sts.alignment(
        first, second, sphere.scores, strictly_above=strictly_above
      )
      distinct = list(dict.fromkeys((*sphere.first, *sphere.second)))
      scores["sts"]["uniformity"] = sts.uniformity(embed(distinct))
  if tasks:
    scores["transfer"], f1 = {}, {}
    for name, task in tasks.items():
      result = transfer.score_task(embed, task, dev=dev, classifier=classifier)
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
    list(tables.CONVENTIONS),
    "SICK-R by its test pairs (senteval) or by all its pairs (mteb).",
  )
  flags.DEFINE_enum(
    "transfer_classifier",
    "sklearn",
    list(transfer.CLASSIFIERS),
    "What transfer tasks are scored by: scikit-learn's logistic regression, or "
    "SentEval's own classifier, which the papers' figures are by.",
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
    "Alignment is of pairs with a score strictly above this, in place of those in the "
    "upper fifth of the scores. SimCSE's analysis: STSB-all, above 4.",
  )
  flags.register_validator(
    "alignment_above",
    lambda above: above is None or math.isfinite(above),
    "must be a finite number",
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
  dev, classifier = _FLAGS.dev, _FLAGS.transfer_classifier
  # All that can be wrong, before the first of many sentences is encoded.
  sets = read_sets(_FLAGS.sts, convention=_FLAGS.convention, dev=dev)
  sphere_name, above = _FLAGS.alignment_set, _FLAGS.alignment_above
  sphere = read_sphere(_FLAGS.sts, sphere_name, dev=dev, strictly_above=above)
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
      scores = score(
        encoder.encode,
        sets,
        tasks,
        dev=dev,
        classifier=classifier,
        sphere=sphere,
        strictly_above=above,
      )
      runs.append({"model": place, **scores})
      print(f"{place}: scored in {time.monotonic() - start:.0f} s", flush=True)
    pooled[name] = pool(runs)
  results = {
    **tables.describe(
      sets,
      tasks,
      convention=_FLAGS.convention,
      dev=dev,
      classifier=classifier,
      sphere=sphere_name,
      strictly_above=above,
    ),
    "options": {key: value for key, value in options.items() if value is not None},
    "models": pooled,
  }
  print(tables.as_text(results))
  output, markdown = outputs
  if output:
    write_json(output, results)
    print(f"written to {output}")
  if markdown:
    tables.write_markdown(markdown, results)
    print(f"written to {markdown}")


if __name__ == "__main__":
  command_line.run(main, define_flags)

"""The tables of an evaluation, as text and as Markdown."""

import dataclasses
import os
from typing import Any

from dcse_jax.eval import sts
from dcse_jax.eval import transfer
from dcse_jax.runtime import files

CONVENTIONS = {"senteval": "SentEval", "mteb": "MTEB"}


def sphere_set(dev: bool) -> str:
  """Names the set that alignment and uniformity are measured on unless told."""
  return "STSB-dev" if dev else "STSB-test"


def describe(
  sets: dict[str, sts.StsSet],
  tasks: dict[str, transfer.Task],
  *,
  convention: str,
  dev: bool,
  classifier: str = "sklearn",
  sphere: str | None = None,
  strictly_above: float | None = None,
) -> dict[str, Any]:
  """What an evaluation measures: all of its results but the figures.

  Args:
    sets: the STS sets that are scored.
    tasks: the transfer tasks that are scored.
    convention: one of `CONVENTIONS`.
    dev: whether only what one may choose by is scored.
    classifier: one of `transfer.CLASSIFIERS`.
    sphere: the set that alignment and uniformity are measured on, if not `sphere_set`.
    strictly_above: see `sts.paraphrases`.

  Returns:
    "convention" and "dev"; and "sts" and "transfer" as far as there, each with a
    "title", the names that are "averaged" and, of STS sets, their "pairs" and what
    "alignment" is of, of transfer tasks the "classifier".
  """
  description: dict[str, Any] = {"convention": convention, "dev": dev}
  if sets:
    title = (
      f"{CONVENTIONS[convention]} convention: Spearman x 100 of cosines, subsets of a "
      'set together ("all")'
    )
    for name, by in (("SICKR-test", "its {:,} test"), (sts.SICKR_ALL, "all its {:,}")):
      if name in sets:
        title += f", SICK-R by {by.format(len(sets[name].scores))} pairs"
    description["sts"] = {
      "title": title + (", dev sets only" if dev else ""),
      "averaged": sts.averaged_sets(list(sets)),
      "pairs": {name: len(pairs.scores) for name, pairs in sets.items()},
      "alignment": {"set": sphere or sphere_set(dev), "strictly_above": strictly_above},
    }
  if tasks:
    of = "validation accuracy" if dev else "accuracy"
    description["transfer"] = {
      "title": (
        f"SentEval's transfer tasks: {of} x 100 on frozen embeddings by "
        f"{transfer.CLASSIFIERS[classifier]}"
      ),
      "classifier": classifier,
      "averaged": list(tasks),
    }
  return description


@dataclasses.dataclass(frozen=True)
class _Table:
  title: str
  rows: list[list[str]]  # The first is the header; the first cells are names.
  notes: list[str]


def _tables(results: dict[str, Any]) -> list[_Table]:
  return [_table(part, results) for part in ("sts", "transfer") if part in results]


def _table(part: str, results: dict[str, Any]) -> _Table:
  averaged, models = results[part]["averaged"], results["models"]
  there = next(iter(models.values()))[part]["mean"]
  # What the average is of stands before it.
  columns = list(dict.fromkeys((*averaged, "avg", *there)))
  rows = [["model", *columns]]
  for name, model in models.items():
    seeds = f" (n={model['n']})" if model["n"] > 1 else ""
    cells = [_cell(model[part], column) for column in columns]
    rows.append([name + seeds, *cells])
  notes = [f"avg: mean of {', '.join(averaged)}"]
  if "alignment" in columns:
    of = results[part]["alignment"]
    above = of["strictly_above"]
    pairs = "in the upper fifth of the scores" if above is None else f"above {above:g}"
    notes.append(
      f"alignment, uniformity: on {of['set']}, alignment of pairs {pairs}; less is better"
    )
  if any(model["n"] > 1 for model in models.values()):
    notes.append("±: sample standard deviation over n seeds")
  if results.get("options"):
    options = ", ".join(f"{key}={value}" for key, value in results["options"].items())
    notes.append(f"all models with {options}")
  return _Table(results[part]["title"], rows, notes)


def _cell(scores: dict[str, Any], column: str) -> str:
  digits = 3 if column in ("alignment", "uniformity") else 2
  cell = f"{scores['mean'][column]:.{digits}f}"
  if scores["sd"]:
    cell += f" ± {scores['sd'][column]:.{digits}f}"
  return cell


def as_text(results: dict[str, Any]) -> str:
  """Tables with aligned columns, a row a model.

  Args:
    results: of `describe`, with "models" by name as `evaluate.pool` gives them and
      perhaps "options".
  """
  return "\n\n".join(map(_text, _tables(results)))


def _text(table: _Table) -> str:
  widths = [max(map(len, column)) for column in zip(*table.rows)]
  lines = [table.title]
  for first, *cells in table.rows:
    right = (cell.rjust(width) for cell, width in zip(cells, widths[1:]))
    lines.append("  ".join((first.ljust(widths[0]), *right)))
  return "\n".join(lines + table.notes)


def as_markdown(results: dict[str, Any]) -> str:
  """The tables of `as_text` in Markdown."""
  return "\n".join(map(_markdown, _tables(results)))


def _markdown(table: _Table) -> str:
  header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table.rows)
  rule = ["---"] + ["---:"] * (len(header) - 1)
  lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
  notes = [f"- {note}" for note in table.notes]
  return "\n".join([f"**{table.title}**", "", *lines, "", *notes, ""])


def write_markdown(path: str | os.PathLike[str], results: dict[str, Any]) -> None:
  """Writes `as_markdown` to a file, whole."""
  files.write_text(path, as_markdown(results))

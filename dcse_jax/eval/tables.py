"""Tables as text for a terminal, and those of an evaluation as Markdown too."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from dcse_jax.runtime import files


@dataclasses.dataclass(frozen=True)
class _Table:
  title: str
  rows: list[list[str]]  # The first is the header; the first cells are names.
  notes: list[str]


def _tables(results: dict[str, Any]) -> list[_Table]:
  # The parts from `Evaluator.describe` have a title.
  parts = [k for k, v in results.items() if isinstance(v, dict) and "title" in v]
  return [_table(part, results) for part in parts]


def _table(part: str, results: dict[str, Any]) -> _Table:
  averaged = results[part]["averaged"]
  # A row of reference is in the table of its own evaluator alone.
  models = {n: model for n, model in results["models"].items() if part in model}
  there = next(iter(models.values()))[part]["mean"]
  # The columns of the average stand before it.
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
  notes += _gains(part, results)
  if results.get("options"):
    options = ", ".join(f"{key}={value}" for key, value in results["options"].items())
    notes.append(f"all models with {options}")
  return _Table(results[part]["title"], rows, notes)


def _gains(part: str, results: dict[str, Any]) -> list[str]:
  """Says how much better than the first model each other one is, and how surely."""
  gains, models = results.get("gains", {}), results["models"]
  notes = []
  for name, found in gains.get("models", {}).items():
    if part not in found:
      continue
    first = models[gains["over"]]
    gain = models[name][part]["mean"]["avg"] - first[part]["mean"]["avg"]
    low, high = found[part]["avg"]
    unit = results[part]["unit"]
    notes.append(
      f"{name} over {gains['over']}: avg {gain:+.2f}, 95 % between {low:+.2f} and "
      f"{high:+.2f} where {unit} are drawn anew"
    )
  return notes


def _cell(scores: dict[str, Any], column: str) -> str:
  if column not in scores["mean"]:
    return "–"  # A row of reference may have fewer columns.
  digits = 3 if column in ("alignment", "uniformity") else 2
  cell = f"{scores['mean'][column]:.{digits}f}"
  if scores["sd"]:
    cell += f" ± {scores['sd'][column]:.{digits}f}"
  return cell


def as_text(results: dict[str, Any]) -> str:
  """Lays out tables with aligned columns, a row for each model.

  Args:
    results: what `Evaluator.describe` returns, by kind; "models", what `offline.pool`
      returns by name; and perhaps "options", and "gains", what `offline.gains` returns.
  """
  return "\n\n".join(
    "\n".join((aligned(table.title, table.rows), *table.notes))
    for table in _tables(results)
  )


def aligned(title: str, rows: Sequence[Sequence[str]]) -> str:
  """Lays out a table for a terminal.

  Args:
    title: the line above it.
    rows: cells of each row, the header's first; the first cell of a row, a name, is
      aligned to the left and all others to the right.
  """
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [title]
  for first, *cells in rows:
    right = (cell.rjust(width) for cell, width in zip(cells, widths[1:]))
    lines.append("  ".join((first.ljust(widths[0]), *right)))
  return "\n".join(lines)


def as_markdown(results: dict[str, Any]) -> str:
  """Writes the tables of `as_text` in Markdown."""
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

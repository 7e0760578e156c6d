"""Writes a page about a training run, finished or not.

`python -m dcse_jax.report WORKDIR`

It is WORKDIR/report/index.html, with scores, curves and the spread of teachers. The
page holds its figures and can be mailed; beside it is each figure as a PNG. It only
reads the files that the run leaves.
"""

import base64
from collections.abc import Sequence
import html
import itertools
import json
import os
import pathlib
import re
import statistics
from typing import Any

import numpy as np

from dcse_jax.eval import figures as figures_lib
from dcse_jax.runtime import command_line
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_POINTS = 60  # The most in a curve; with more, noise hides the dashes.
_CSS = """
body { font: 1rem/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1, p { overflow-wrap: anywhere }
p, figcaption { max-width: 46rem }
figure { margin: 0 }
img { width: 100% }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0 }
th, td { border-bottom: 1px solid #bbb; padding: 0.2rem 0.5rem; text-align: right }
.text { min-width: 6.5em; overflow-wrap: anywhere; text-align: left }
@page { size: A4; margin: 15mm }
@media print {
  body { font-size: 10pt; margin: 0; padding: 0; max-width: none }
  table { font-size: 8pt }
  th, td { padding: 0.1rem 0.2rem }
  h2 { break-after: avoid }
  figure, tr { break-inside: avoid }
}
"""


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes WORKDIR/report, in place of the files of an older one.

  Args:
    workdir: a training run's, which may be under way.

  Returns:
    The path of the page.

  Raises:
    UserError: there is no run, or the report cannot be written.
  """
  # It is imported here because it takes a second.
  import matplotlib

  workdir = files.user_path(workdir).resolve()
  rounds = _read_rounds(workdir)
  paths = _teachers(rounds)
  report, sections = workdir / "report", [_results(rounds)]
  # The folder is ours because of its place; other files in it stay.
  with digests_lib.replacing(report, overwrite=True) as new:
    with matplotlib.rc_context(figures_lib.RC):
      for name, (make, has_data) in figures_lib.SECTIONS.items():
        if there := [round_ for round_ in rounds if has_data(round_)]:
          section = make(there)
          section.figure.savefig(new / f"{name}.png")
          sections.append(_section(section, (new / f"{name}.png").read_bytes(), paths))
    page = _page(workdir.name, rounds, sections)
    (new / "index.html").write_text(page, encoding="utf-8")
  return report / "index.html"


# Reading the run.


def _read_rounds(workdir: pathlib.Path) -> list[figures_lib.Round]:
  content = _read_if_there(workdir / "config.json") or {}
  # A model's folder has a config.json too, with other content.
  if "config" not in content:
    raise UserError(f"{workdir} holds no training run: name the folder of one")
  rounds = []
  for i, name in enumerate(content["config"]["recipe"]):
    config = _merge(content["config"], content["config"]["rounds"][name])
    folders = [workdir / name / str(seed) for seed in config["seeds"]]
    results = [_read_if_there(folder / "result.json") for folder in folders]
    found = [_read_if_there(folder / "diagnostics.json") for folder in folders]
    runs = [_read_metrics(folder / "metrics.jsonl") for folder in folders]
    rounds.append(
      figures_lib.Round(
        name=name,
        config=config,
        style=figures_lib.style(i, name),
        results=[result for result in results if result],
        curves={
          key: _curve([run[key] for run in runs if key in run])
          for key in set().union(*runs)
        },
        diagnostics=next(filter(None, found), None),
        teachers=_read_if_there(workdir / name / "teachers.json"),
      )
    )
  return rounds


def _read_if_there(path: pathlib.Path) -> Any:
  return files.read_json(path) if path.exists() else None


def _read_metrics(path: pathlib.Path) -> dict[str, dict[int, float]]:
  """Reads values by metric and step; "dev" is the mean Spearman."""
  metrics = {}
  for line in path.read_bytes().splitlines() if path.exists() else ():
    try:
      values = json.loads(line)
    except ValueError:  # The run is writing this line, or was when it ended.
      continue
    step = values.pop("step")
    if scores := [v for key, v in values.items() if key.endswith("_spearman")]:
      values["dev"] = statistics.fmean(scores)
    for key, value in values.items():
      metrics.setdefault(key, {})[step] = value
  return metrics


def _curve(runs: list[dict[int, float]]) -> np.ndarray:
  """Turns values by step, a dict for each seed, into points [4, P].

  A point is (step, mean over seeds, lowest, highest). It stands for neighbouring
  steps, over which each seed is averaged first; a seed without values there is left
  out.
  """
  steps = sorted(set().union(*runs))
  points = []
  for near in np.array_split(steps, min(len(steps), _POINTS)):
    values = [[run[step] for step in near if step in run] for run in runs]
    means = [np.mean(seed) for seed in values if seed]
    points.append((np.mean(near), np.mean(means), min(means), max(means)))
  return np.transpose(points)


# Text and tables.


def _table(header, rows, *, text_columns=1, bold=(), paths=()) -> str:
  """Writes rows of strings as HTML: first columns of text, some cells in bold.

  Whichever of the paths are in a cell are shown by their ends.
  """
  lines = []
  for i, row in enumerate([header, *rows], -1):
    cells = []
    for j, cell in enumerate(row):
      tag = "th" if i < 0 else "td"
      kind = ' class="text"' if j < text_columns else ""
      cell = _shortened(cell, paths)
      cell = f"<b>{cell}</b>" if (i, j) in bold else cell
      cells.append(f"<{tag}{kind}>{cell}</{tag}>")
    lines.append(f"<tr>{''.join(cells)}</tr>")
  return "\n".join(("<table>", *lines, "</table>"))


def _shortened(text: str, paths: Sequence[str]) -> str:
  """Writes text as HTML with the end of each path, which has the whole as its title."""
  # The longest comes first: one path may be a part of another.
  paths = sorted({p for p in paths if files.short_name(p) != p}, key=len, reverse=True)
  if not paths:
    return html.escape(text)
  parts = re.split(f"({'|'.join(map(re.escape, paths))})", text)
  return "".join(
    f'<span title="{html.escape(part)}">{html.escape(files.short_name(part))}</span>'
    if part in paths
    else html.escape(part)
    for part in parts
  )


def _teachers(rounds: Sequence[figures_lib.Round]) -> list[str]:
  """Lists the teachers of a recipe, as its config and its measures name them."""
  measured = (round_.teachers or {} for round_ in rounds)
  named = (round_.config.get("teachers", []) for round_ in rounds)
  return [*itertools.chain(*named, *(each.get("teachers", []) for each in measured))]


def _section(section: figures_lib.Section, png: bytes, paths: Sequence[str]) -> str:
  image = base64.b64encode(png).decode()
  parts = [
    f"<h2>{section.title}</h2>",
    "<figure>",
    f'<img alt="{section.title}, as the caption describes" '
    f'src="data:image/png;base64,{image}">',
    f"<figcaption>{section.caption}</figcaption>",
    "</figure>",
  ]
  if section.rows:
    parts.append(
      _table(
        section.header, section.rows, text_columns=section.text_columns, paths=paths
      )
    )
  return "\n".join(parts)


def _page(name: str, rounds: list[figures_lib.Round], sections: list[str]) -> str:
  name = html.escape(name)
  recipe = html.escape(" → ".join(round_.name for round_ in rounds))
  finished = sum(len(round_.results) for round_ in rounds)
  total = sum(len(round_.config["seeds"]) for round_ in rounds)
  body = "\n".join(sections)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: training report</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{name}</h1>
<p>Recipe: {recipe}. Finished: {finished} of {total} models.</p>
{body}
</body>
</html>
"""


def _merge(config: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
  """Returns a recipe's fields, overridden by a round's own."""
  both = {k: config[k] | v for k, v in own.items() if isinstance(v, dict)}
  return config | own | both


def _learns_from(round_: figures_lib.Round) -> str:
  words = [round_.config["objective"]]
  if teachers := round_.config.get("teachers"):
    words.append("teachers " + ", ".join(teachers))
  settings = round_.config.get("distillation", {})
  shuffles = dict(group_probability="Group-P", group_size="groups of", group_top="top")
  for field, name in shuffles.items():
    if "distillation" in words[0] and (value := settings.get(field)):
      words.append(f"{name} {value:g}")
  return "; ".join(words)


def _mean(scores: list[float], *, with_sd: bool) -> str:
  if not scores:
    return "–"
  mean = figures_lib.number(statistics.fmean(scores))
  several = with_sd and len(scores) > 1
  return (
    f"{mean}\u00a0±\u00a0{figures_lib.number(statistics.stdev(scores))}"
    if several
    else mean
  )


def _results(rounds: list[figures_lib.Round]) -> str:
  """Writes the scores by round and, if one has several models, by model."""
  tests = rounds[0].config["test"]
  tests = tests if len(tests) > 1 else []  # A single set is the mean itself.
  names = ["dev", "test", *tests]

  def by_column(results):
    rows = [[r["dev"], r["test"], *map(r["sets"].get, tests)] for r in results]
    return [[row[c] for row in rows if row[c] is not None] for c in range(len(names))]

  scores = [by_column(round_.results) for round_ in rounds]
  shown = [c for c in range(len(names)) if any(row[c] for row in scores)]
  rows, bold = [], set()
  for i, (round_, row) in enumerate(zip(rounds, scores)):
    models = f"{len(round_.results)} of {len(round_.config['seeds'])}"
    cells = [round_.name, _learns_from(round_), models]
    for c in shown:
      best = max(statistics.fmean(other[c]) for other in scores if other[c])
      if row[c] and statistics.fmean(row[c]) == best:
        bold.add((i, len(cells)))
      cells.append(_mean(row[c], with_sd=c < 2))
    rows.append(cells)
  header = [names[c] for c in shown]
  page = "<h2>Results</h2>\n" + _table(
    ["round", "learns from", "models", *header],
    rows,
    text_columns=2,
    bold=bold,
    paths=_teachers(rounds),
  )
  if not shown:
    return page
  page += (
    "\n<p>Spearman × 100, mean over a round's finished models; ± is the standard "
    "deviation between them. The best mean of a column is in bold.</p>"
  )
  if all(len(round_.results) < 2 for round_ in rounds):
    return page
  rows = [
    [
      f"{round_.name}-{result['seed']}",
      *(_mean(by_column([result])[c], with_sd=False) for c in shown),
    ]
    for round_ in rounds
    for result in round_.results
  ]
  models = _table(["model", *header], rows)
  return f"{page}\n<details><summary>Every model</summary>\n{models}\n</details>"


def main(workdir: str = "") -> None:
  """Writes the report of a run."""
  if not workdir:
    raise UserError("give WORKDIR, the folder of a training run")
  print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
  command_line.run(main, max_arguments=1)

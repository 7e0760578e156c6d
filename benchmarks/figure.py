"""Draws docs/results.svg, the README's figure, from the first table of docs/results.md.

`python -m benchmarks.figure`
"""

import pathlib
import re

import matplotlib

from dcse_jax.eval import figures

DOCS = pathlib.Path(__file__).parents[1] / "docs"
_TABLE = "## Scores and minutes"
_FIRST, _LAST = 1, 60  # Minutes that are shown.
# What stands in the second column, and its colour.
_COLOURS = {
  "text alone": "#0072B2",
  "text and an encoder": "#E69F00",
  "text and a teacher": "#009E73",
}
# Names that would meet another's stand below their points.
_BELOW = ("skip-gram (gensim)", "words counted", "distil, 3,000 steps")


def read_table(text: str) -> list[tuple[str, str, float | None, float]]:
  """Reads the rows of the table: name, what there is, minutes if any, score."""
  rows = []
  for line in text.partition(_TABLE)[2].partition("\n## ")[0].splitlines():
    line = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line.replace("`", ""))
    cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
    if len(cells) == 4 and cells[1] in _COLOURS:
      minutes = float(cells[2]) if cells[2] != "–" else None
      rows.append((cells[0], cells[1], minutes, float(cells[3])))
  return rows


def main():
  matplotlib.use("svg")
  import matplotlib.pyplot as plt

  rows = read_table((DOCS / "results.md").read_text(encoding="utf-8"))
  settings = {"svg.fonttype": "path", "svg.hashsalt": "dcse_jax", **figures.RC}
  with matplotlib.rc_context(settings):
    figure, axis = plt.subplots(figsize=(8, 3.4))
    for kind, colour in _COLOURS.items():
      points = [row[2:] for row in rows if row[1] == kind and row[2]]
      axis.plot(*zip(*sorted(points)), "o", color=colour, label=kind, markersize=6)
    for name, kind, minutes, score in rows:
      if minutes is None:  # Nothing was trained.
        axis.axhline(score, color=_COLOURS[kind], linestyle=":", linewidth=1)
      axis.annotate(
        f"{name}, {score:.1f}",
        (minutes or _FIRST, score),
        xytext=(6, -11 if name in _BELOW else 4),
        textcoords="offset points",
        color=_COLOURS[kind],
      )
    axis.set_xscale("log")
    ticks = (1, 2, 5, 10, 20, 50)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlim(_FIRST, _LAST)
    axis.set_ylim(56, 82)
    axis.set_xlabel("minutes on a CPU, all included")
    axis.set_ylabel("Spearman x 100, seven STS sets")
    axis.legend(loc="center right", title="from")
    figure.patch.set_facecolor("white")
    figure.savefig(DOCS / "results.svg", metadata={"Date": None})


if __name__ == "__main__":
  main()

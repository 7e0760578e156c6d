"""Draws docs/results.svg, the README's figure, from the tables of docs/results.md.

`python -m benchmarks.figure`
"""

import pathlib
import re

import matplotlib

from dcse_jax.eval import figures

DOCS = pathlib.Path(__file__).parents[1] / "docs"
# What each panel shows: the row's first cells in the tables, and the bar's name.
PANELS = {
  "Three layers of MiniLM, taught by all six": {
    "3 layers, untrained": "before",
    "plain distillation, 200 steps": "similarities, 200 steps",
    "without dropout, the default of `distil.py`": "embeddings, 600 steps",
    "3,000 steps": "embeddings, 3,000 steps",
    "teacher, 6 layers": "the teacher",
  },
  "From 300,000 sentences alone": {
    "neighbours, 512 numbers": "words by neighbours",
    "counted words, 512 numbers in all": "and by spelling",
    "student of the counted words": "their student",
    "both: DistillCSE's round": "DistillCSE's round",
  },
}


def averages(text: str) -> dict[str, float]:
  """Reads the last bold number of each row of the tables, by the row's first cell."""
  found = {}
  for line in text.splitlines():
    first, _, rest = line.removeprefix("| ").partition(" |")
    numbers = re.findall(r"\*\*(\d+\.\d+)\*\*", rest)
    if line.startswith("| ") and numbers:
      found[first] = float(numbers[-1])
  return found


def main():
  matplotlib.use("svg")
  import matplotlib.pyplot as plt

  found = averages((DOCS / "results.md").read_text(encoding="utf-8"))
  settings = {"svg.fonttype": "path", "svg.hashsalt": "dcse_jax", **figures.RC}
  with matplotlib.rc_context(settings):
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.2))
    for axis, (title, rows) in zip(axes, PANELS.items()):
      values = [found[row] for row in rows]
      names = list(rows.values())
      bars = axis.barh(names, values, color="#0072B2", height=0.62)
      bars[0].set_color("#999999")
      axis.bar_label(bars, [f"{value:.1f}" for value in values], padding=3)
      axis.invert_yaxis()
      axis.set_xlim(0, 100)
      axis.set_xticks([0, 50, 100])
      axis.set_title(title, loc="left", weight="bold")
      axis.set_xlabel("Spearman x 100, seven STS sets")
      axis.tick_params(axis="y", length=0)
    figure.patch.set_facecolor("white")
    figure.savefig(DOCS / "results.svg", metadata={"Date": None})


if __name__ == "__main__":
  main()

"""The figures of the report: each is a section about the rounds that have its data."""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import numpy as np

# Okabe and Ito's colours without the yellow, which fades on white; printed without
# colour, lines still differ in dashes and markers.
_COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_MARKERS = "os^DvP*X<>"
_WIDTH = 7.0  # Inches; A4 between its margins, so that 9 pt are printed as 9 pt.
RC = {
  "font.size": 9,
  "axes.titlesize": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "figure.constrained_layout.use": True,
  "legend.frameon": False,
  "legend.handlelength": 3.2,
  "lines.linewidth": 1.4,
  "lines.markersize": 5,
  "savefig.dpi": 150,
  "text.parse_math": False,  # A round's name may hold a dollar sign.
}


@dataclasses.dataclass(frozen=True)
class Round:
  """The results of a round of the recipe so far.

  Attributes:
    config: the recipe's, overridden by the round's own.
    style: its look in every figure.
    results: those of its finished models.
    curves: points [4, P] for each metric: step, mean over seeds, lowest, highest;
      "dev" is the mean Spearman.
    diagnostics: those of its first finished model; None without one.
    teachers: the spread of its teachers; None where it was not measured.
  """

  name: str
  config: dict[str, Any]
  style: dict[str, Any]
  results: list[dict[str, Any]]
  curves: dict[str, np.ndarray]
  diagnostics: dict[str, Any] | None
  teachers: dict[str, Any] | None

  @property
  def pretrains(self) -> bool:
    """Whether its objective is masked-language modelling alone, with its own scale."""
    return self.terms == ["masked_language_model"]

  @property
  def terms(self) -> list[str]:
    """The names of the terms of its objective."""
    parts = self.config["objective"].split("+")
    return [part.rpartition("*")[2].strip() for part in parts]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page: a figure, and perhaps a table below it.

  Attributes:
    caption: HTML.
    rows: cells like the header's, as strings; without rows there is no table.
    text_columns: how many of the first columns are words, not numbers.
  """

  title: str
  figure: Any
  caption: str
  header: Sequence[str] = ()
  rows: Sequence[Sequence[str]] = ()
  text_columns: int = 1


def style(i: int, name: str) -> dict[str, Any]:
  """Returns how the i-th round of a recipe looks in every figure."""
  return dict(
    color=_COLOURS[i % len(_COLOURS)],
    linestyle=_DASHES[i % len(_DASHES)],
    marker=_MARKERS[i % len(_MARKERS)],
    # matplotlib leaves labels that begin with an underscore out of legends.
    label=f"\u200b{name}" if name.startswith("_") else name,
  )


def number(value: float, digits: int = 2) -> str:
  """Formats a number, with a real minus sign."""
  return f"{value:.{digits}f}".replace("-", "−")


def _figure(height: float) -> Any:
  from matplotlib.figure import Figure

  return Figure(figsize=(_WIDTH, height))


def _panels(names: list[str], *, height: float, stack: int = 1, **shared) -> Any:
  """Makes a figure with a panel for each name, at most four side by side.

  Returns:
    The figure, and axes [R, stack] from the top of each panel.
  """
  lines = math.ceil(len(names) / 4)
  abreast = math.ceil(len(names) / lines)
  figure = _figure(lines * height + 0.6)
  axes = figure.subplots(lines * stack, abreast, squeeze=False, **shared)
  axes = axes.reshape(lines, stack, abreast).swapaxes(1, 2).reshape(-1, stack)
  for axis in axes[len(names) :].flat:
    axis.remove()
  for name, panel in zip(names, axes):
    panel[0].set_title(name[:20])  # More would run into the next title.
  return figure, axes[: len(names)]


def _draw(axis: Any, curve: np.ndarray, **style: Any) -> None:
  """Draws a curve over steps."""
  steps, mean, low, high = curve
  axis.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
  axis.plot(steps, mean, **style)
  axis.locator_params(axis="x", nbins=4)
  axis.xaxis.set_major_formatter(
    lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
  )


def _legend(figure: Any) -> None:
  """Puts one legend above all panels, with each label once."""
  lines = {line.get_label(): line for axis in figure.axes for line in axis.lines}
  lines = {label: line for label, line in lines.items() if label[0] != "_"}
  figure.legend(
    lines.values(), lines.keys(), loc="outside upper center", ncols=min(len(lines), 4)
  )


def _losses(rounds: list[Round]) -> Section:
  figure, panels = _panels([r.name for r in rounds], height=2.6, stack=2)
  names = sorted({name for each in rounds for name in each.terms})
  parts = {
    # It is wide and pale, so that it shows under a part that is the whole loss.
    "train/loss": dict(label="total", color="0.75", linewidth=4),
  }
  for i, name in enumerate(names):
    look = dict(color=_COLOURS[i % len(_COLOURS)], linestyle=_DASHES[i % len(_DASHES)])
    parts[f"train/{name}"] = dict(label=name, **look)
  for round_, (loss, rate) in zip(rounds, panels):
    for key, style in parts.items():
      if key in round_.curves:
        _draw(loss, round_.curves[key], **style)
    if "train/learning_rate" in round_.curves:
      _draw(rate, round_.curves["train/learning_rate"], color="black")
    rate.ticklabel_format(axis="y", scilimits=(0, 0))
    rate.sharex(loss)
    loss.tick_params(labelbottom=False)
    for axis, label in ((loss, "loss (nats)"), (rate, "learning rate")):
      axis.set_ylim(bottom=0)
      axis.locator_params(axis="y", nbins=4)
      if axis.get_subplotspec().is_first_col():
        axis.set_ylabel(label)
  figure.supxlabel("step", fontsize=9)
  _legend(figure)
  return Section(
    "Loss and learning rate",
    figure,
    "The loss of each round, with its parts, and below it the learning rate. Lines "
    "are means over seeds and a few neighbouring steps, bands the range of the seeds. "
    "The total is the objective of the table: parts times their weights.",
  )


def _dev(rounds: list[Round]) -> Section:
  # Pretraining has steps and scores of its own, beside which the rest would be flat.
  groups = [[r for r in rounds if r.pretrains == kind] for kind in (True, False)]
  groups = [group for group in groups if group]
  figure = _figure(3.8)
  widths = (1, 2)[-len(groups) :]
  (axes,) = figure.subplots(1, len(groups), squeeze=False, width_ratios=widths)
  for axis, group in zip(axes, groups):
    for i, round_ in enumerate(group):
      curve = round_.curves["dev"]
      # With many points each round marks different ones, so that none hides another.
      marks = (i % 10, 10) if curve.shape[1] > 20 else 1
      _draw(axis, curve, markevery=marks, **round_.style)
  axes[0].set_ylabel("Spearman × 100")
  figure.supxlabel("step", fontsize=9)
  _legend(figure)
  return Section(
    "Spearman on the dev sets",
    figure,
    "Correlation with human scores, mean over the dev sets; higher is better. Lines "
    "are means over seeds, bands their range. Masked language modelling, if any, has "
    "axes of its own.",
  )


def _held_out(rounds: list[Round]) -> Section:
  measured = [(r, term) for r in rounds for term in _measured(r)]
  names = [
    f"{r.name}, {term}" if len(_measured(r)) > 1 else r.name for r, term in measured
  ]
  figure, panels = _panels(names, height=1.9)
  rows = []
  for (round_, term), (axis,) in zip(measured, panels):
    last = []
    for split, label, dash in (
      ("train", "training sentences", "-"),
      ("held_out", "held-out sentences", _DASHES[1]),
    ):
      curve = round_.curves.get(f"eval/{term}_{split}")
      if curve is not None:
        colour = round_.style["color"]
        _draw(axis, curve, color=colour, linestyle=dash)
        # The legend shows the dashes alone, whatever the round's colour.
        axis.plot([], [], color="black", linestyle=dash, label=label)
        last.append(curve[1, -1])
    gap = [last[1] - last[0]] if len(last) == 2 else []
    values = [number(value, 4) for value in last + gap]
    rows.append([round_.name, term, *values, *["–"] * (3 - len(values))])
  figure.supxlabel("step", fontsize=9)
  figure.supylabel("loss", fontsize=9)
  _legend(figure)
  return Section(
    "Losses on training and on held-out sentences",
    figure,
    "Losses that teachers give, on sentences of the training text (solid) and of the dev "
    "sets (dashed), without dropout and shuffling; means over seeds and their range. A "
    "growing gap suggests that the student learns its teachers' noise by heart. "
    "Teachers of which there are only embeddings know nothing of the dev sets. "
    "Below, the last values and their gap, held-out − training.",
    header=("round", "loss", "training", "held-out", "gap"),
    rows=rows,
    text_columns=2,
  )


def _measured(round_: Round) -> list[str]:
  """Lists the terms of a round that are measured without dropout."""
  found = (re.fullmatch("eval/(.+)_train", key) for key in round_.curves)
  return [match[1] for match in found if match]


def _teachers(rounds: list[Round]) -> Section:
  figure, panels = _panels([r.name for r in rounds], height=2.2)
  matrices = [np.asarray(round_.teachers["top12_spearman"]) for round_ in rounds]
  # Each teacher agrees with itself to 100, which would take up the scale.
  matrices = [np.ma.masked_array(m, np.eye(len(m))) for m in matrices]
  # Round to whole tens, so that a small difference does not look large.
  low = 10 * math.floor(min(m.min() for m in matrices) / 10)
  high = 10 * math.floor(max(m.max() for m in matrices) / 10) + 10
  rows = []
  for round_, matrix, (axis,) in zip(rounds, matrices, panels):
    image = axis.imshow(matrix, vmin=low, vmax=high, cmap="Blues")
    axis.set_facecolor("0.9")
    axis.set_xlabel("compared with teacher")
    if axis.get_subplotspec().is_first_col():
      axis.set_ylabel("top 12 of teacher")
    few = len(matrix) <= 8
    ticks = np.arange(0, len(matrix), 1 if few else 5)
    axis.set_xticks(ticks, ticks + 1)
    axis.set_yticks(ticks, ticks + 1)
    for i, j in np.argwhere(~matrix.mask) if few else ():
      ink = "white" if matrix[i, j] > low + 0.65 * (high - low) else "black"
      axis.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", color=ink)
    cells = []
    for order in ("first_order", "second_order"):
      spread = round_.teachers[order]
      # It may be of any size: a millionth where teachers hardly differ.
      cells.append(f"{spread['mean_std']:.2g}".replace("-", "−"))
      cells.append(number(spread["differential_entropy"]))
    cells.append(number(matrix.mean(), 1))
    names = enumerate(round_.teachers["teachers"], 1)
    rows.append(
      [round_.name, ", ".join(f"{i}:\u00a0{name}" for i, name in names), *cells]
    )
  figure.colorbar(image, ax=list(panels.flat), label="Spearman × 100")
  header = ["first order: std", "entropy", "second order: std", "entropy"]
  header = ["round", "teachers", *header, "top-12 Spearman"]
  return Section(
    "Spread of the teachers",
    figure,
    "How far two teachers agree in ranking the twelve sentences that one of them "
    "finds most similar (Spearman × 100); darker is closer. Below, the spread "
    "of the teachers' first order (mean over an embedding's dimensions) and second "
    "order (cosine of two sentences): mean standard deviation and differential entropy "
    "in nats; and the mean of the squares above. DistillCSE with 16 BERT-base "
    "teachers: entropy −9.32 and −1.79, top-12 Spearman 48.6 (Xu et al., 2023, "
    '<a href="https://arxiv.org/abs/2310.13499">arXiv:2310.13499</a>).',
    header=header,
    rows=rows,
    text_columns=2,
  )


def _histograms(rounds: list[Round]) -> Section:
  figure = _figure(0.85 * len(rounds) + 0.8)
  rows = figure.subplots(len(rounds), 2, squeeze=False, sharex="col")
  for round_, row in zip(rounds, rows):
    for axis, order in zip(row, ("first_order", "second_order")):
      values = round_.diagnostics[order]
      axis.stairs(values["train"], values["edges"], fill=True, color=_COLOURS[5])
      if "dev" in values:
        axis.stairs(values["dev"], values["edges"], color="black")
      axis.set_yticks([])
      axis.spines["left"].set_visible(False)
      axis.locator_params(axis="x", nbins=5)
    row[0].set_ylabel(round_.name[:20], rotation=0, ha="right", va="center")
  rows[-1, 0].set_xlabel("first order")
  rows[-1, 1].set_xlabel("second order (cosine)")
  return Section(
    "First and second order",
    figure,
    "Left, the mean over the dimensions of a sentence's embedding; right, the cosine "
    "of two sentences of a batch. Filled: training sentences; outlined: sentences of "
    "the dev sets. Densities of each round's first finished model, each panel to its "
    "own height.",
  )


def _alignment(rounds: list[Round]) -> Section:
  figure = _figure(4.4)
  axis = figure.subplots()
  for round_ in rounds:
    x, y = (round_.curves[f"eval/{key}"][1] for key in ("uniformity", "alignment"))
    axis.plot(x, y, markevery=[-1], **round_.style)
    hollow = round_.style | dict(label=None, markerfacecolor="white", zorder=3)
    axis.plot(x[:1], y[:1], **hollow)
  axis.set_xlabel("uniformity (← smaller is better)")
  axis.set_ylabel("alignment (← smaller is better)")
  _legend(figure)
  return Section(
    "Alignment and uniformity",
    figure,
    "The way of each round, mean over seeds, from the first evaluation (hollow) to the "
    "last (filled). Alignment is how far apart similar sentences lie, uniformity how "
    "unevenly all sentences are spread: the best place is at the lower left.",
  )


# In the page's order: a figure's name -> its section, and whether a round has its data.
SECTIONS = {
  "losses": (_losses, lambda r: "train/loss" in r.curves),
  "dev": (_dev, lambda r: "dev" in r.curves),
  "held_out": (_held_out, _measured),
  "teachers": (_teachers, lambda r: r.teachers),
  "histograms": (_histograms, lambda r: r.diagnostics),
  "alignment": (_alignment, lambda r: "eval/alignment" in r.curves),
}

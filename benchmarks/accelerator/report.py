"""Writes up what was measured: report.md and figure.png."""

import pathlib
from typing import Any

from benchmarks.accelerator.record import Record


def write(record: Record) -> None:
  """Writes the tables and the figure of whatever there is so far."""
  results = record.results()
  path = record.folder / "report.md"
  path.write_text("\n".join(_lines(results)) + "\n")
  try:
    _figure(results, record.folder / "figure.png")
  except Exception as error:  # The tables are there all the same.
    print(f"no figure: {error}")


def _percent(row: dict[str, Any]) -> str:
  share = row.get("model_flop_utilisation")
  return f"{100 * share:.1f}" if share is not None else "-"


def _gb(row: dict[str, Any], name: str) -> str:
  return f"{row[name] / 1e9:.1f}" if row.get(name) else "-"


def _lines(results: dict[str, Any]) -> list[str]:
  facts, measured = results["facts"], results["measured"]
  lines = [f"# {facts.get('device_kind', 'A device')}", ""]
  lines += [f"- {name}: {value}" for name, value in facts.items()]
  for name in ("matrix product", "copy"):
    if name in measured:
      shown = ", ".join(f"{k} {v:.4g}" for k, v in measured[name].items())
      lines.append(f"- {name}: {shown}")
  lines += ["", "## Our step", ""]
  lines += [
    "| step | ms (quartiles) | sentences/s | real tokens/s | model TFLOP/s | MFU % | "
    "compile s | forecast GB | peak GB |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for name, row in measured.items():
    if name.startswith("step: "):
      low, high = row["ms_quartiles"]
      peak = _gb(row, "peak_bytes") if row.get("peak_is_its_own") else "-"
      lines.append(
        f"| {name[6:]} | {row['ms']:.2f} ({low:.2f} to {high:.2f}) | "
        f"{row['sentences_per_second']:.0f} | {row['tokens_per_second']:.0f} | "
        f"{row['model_tflops_per_second']:.1f} | {_percent(row)} | "
        f"{row['compile_seconds']:.0f} | {_gb(row, 'forecast_bytes')} | {peak} |"
      )
  lines += ["", "## PyTorch in turns with it", ""]
  lines += [
    "| peer | our step | ours ms | its ms | our MFU % | its MFU % | our speed (range) |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for name, row in measured.items():
    if name.startswith("peer: "):
      label, _, step = name[6:].partition(" against ")
      low, high = row["our_speed_range"]
      lines.append(
        f"| {label} | {step} | {row['ours']['ms']:.2f} | {row['peer']['ms']:.2f} | "
        f"{_percent(row['ours'])} | {_percent(row['peer'])} | "
        f"{row['our_speed']:.2f} ({low:.2f} to {high:.2f}) |"
      )
  lines += ["", "## Beside the step", ""]
  for name in ("parity", "kernels", "encode", "forms of a stack", "first step"):
    if name in measured:
      shown = ", ".join(f"{k} {v:.4g}" for k, v in measured[name].items() if _is(v))
      lines.append(f"- {name}: {shown}")
  if run := measured.get("real run"):
    lines.append(f"- real run: {run['seconds']:.0f} s, status {run['status']}")
    lines += ["", "```", *run["last_words"].splitlines()[-12:], "```"]
  for name, profile in measured.items():
    if name.startswith("profile: "):
      lines += _profile(name.removeprefix("profile: "), profile)
  lines += ["", "## Not measured", ""]
  lines += [f"- {name}: {error}" for name, error in results["errors"].items()]
  return lines


def _profile(name: str, profile: dict[str, Any]) -> list[str]:
  lines = ["", f"## Where the device's time goes: {name}", ""]
  lines.append(
    f"{profile['device_ms_a_step']:.2f} ms in {profile['kernels_a_step']:.0f} kernels a "
    "step"
  )
  lines += ["", "| asked for by | calls | ms |", "| --- | --- | --- |"]
  for who, calls, ms in profile["by_source"][:30]:
    lines.append(f"| {who} | {calls:.0f} | {ms:.3f} |")
  return lines


def _is(value: Any) -> bool:
  return isinstance(value, (int, float))


def _figure(results: dict[str, Any], path: pathlib.Path) -> None:
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  measured = results["measured"]
  figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
  rows = {n[6:]: row for n, row in measured.items() if n.startswith("step: ")}
  for name, row in measured.items():
    if name.startswith("peer: "):
      batch = name.partition(" against ")[2].split(",")[0]
      rows[f"PyTorch {name[6:].partition(' against ')[0]}, {batch}"] = row["peer"]
  names = list(rows)[::-1]
  colours = ["tab:orange" if n.startswith("PyTorch") else "tab:blue" for n in names]
  left.barh(names, [rows[n]["model_tflops_per_second"] for n in names], color=colours)
  left.set_xlabel("model TFLOP/s on real tokens, bfloat16")
  left.set_title(results["facts"].get("device_kind", ""))
  for name, curve in measured.get("real run", {}).get("curves", {}).items():
    points = [(r["step"], r["train/loss"]) for r in curve if "train/loss" in r]
    if points:
      right.plot(*zip(*points), label=name)
  right.set_xlabel("step")
  right.set_ylabel("loss of a real run")
  if right.lines:
    right.legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)

"""Ours against PyTorch, side by side: `python -m benchmarks WHAT`; see README.md."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from benchmarks import prepare
from benchmarks.contender import Contender


def interleave(contenders, *, rounds: int, steps: int, warm: int) -> None:
  """Every contender does its steps in every round, one after the other."""
  step = 0
  for i in range(warm + rounds):
    # In turns from both ends, so that nobody always follows the same one.
    for contender in contenders[:: 1 if i % 2 else -1]:
      answer = contender.ask("steps", step, steps)
      if i >= warm:
        contender.seconds.append(answer["seconds"] / steps)
        contender.losses.extend(answer["value"])
    step += steps


def show(title: str, contenders, sentences: int) -> None:
  """Speeds relative to the first contender: medians, quartiles of the rounds."""
  base = contenders[0]
  print(f"\n{title}")
  print(f"  {'':34s} speed  (quartiles)      a second  peak MB  loss")
  for contender in contenders:
    ratios = [b / c for b, c in zip(base.seconds, contender.seconds)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    rate = sentences / statistics.median(contender.seconds)
    loss = f"{statistics.fmean(contender.losses):.4f}" if contender.losses else ""
    print(
      f"  {contender.label:34s} {middle:5.2f}  ({low:.2f} to {high:.2f})"
      f"  {rate:9.1f}  {contender.peak_bytes / 1e6:7.0f}  {loss}",
      flush=True,
    )


def _shape(options) -> str:
  layers = f" of {options.layers} layers" if options.layers else ""
  return f"{options.shape}{layers}, {options.length} tokens"


def train(options, folder: str) -> None:
  """Training steps of one shape, batch and number of teachers."""
  online = ["--teachers", str(options.teachers)]
  cached = [*online, "--cached"]
  wanted = [("tuned", "tuned", online), ("published", "published", online)]
  wanted += [("tricks", "tricks", online), ("ours", "ours", online)]
  wanted += [("ours, from the text", "ours", [*online, "--loop"])]
  if options.teachers:
    wanted += [("tricks, cached", "tricks", cached), ("ours, cached", "ours", cached)]
  else:
    wanted += [("sentence-transformers", "sentence-transformers", [])]
  if options.compile:
    wanted += [("tuned, compiled", "tuned", [*online, "--compile"])]
  if options.shape == "modernbert":
    # The published code and our tricks in PyTorch are BERT's.
    wanted = [each for each in wanted if each[1] not in ("published", "tricks")]
  if options.what == "ablation":
    from benchmarks import ours

    wanted = [("ours", "ours", online)]
    wanted += [
      (f"ours without {part}", "ours", [*online, "--without", part])
      for part in ours.WITHOUT
    ]
  if options.only:
    wanted = [entry for entry in wanted if entry[0] in options.only]
  with contextlib.ExitStack() as stack:
    contenders = []
    for label, name, flags in wanted:
      contender = Contender(label, name, folder, options.batch, *flags)
      stack.callback(contender.close)
      contenders.append(contender)
    # One after the other, so that no start-up disturbs another.
    plain = {c.label: c.ask("loss")["value"] for c in contenders}
    for contender in contenders:
      if contender.label.startswith("ours"):
        contender.ask("compile")
    known = [value for value in plain.values() if value == value]
    print(f"  losses without dropout: {', '.join(f'{v:.5f}' for v in known)}")
    if max(known) - min(known) > 1e-3 * abs(known[0]) and options.teachers < 2:
      raise SystemExit("the contenders do not compute the same loss")
    interleave(contenders, rounds=options.rounds, steps=options.steps, warm=2)
    show(
      f"{_shape(options)}, batch {options.batch}, {options.teachers} teachers",
      contenders,
      options.batch,
    )


def encode(options, folder: str) -> None:
  """`encode` of all sentences."""
  with contextlib.ExitStack() as stack:
    contenders = []
    for name in ("encode sentence-transformers", "encode ours"):
      contenders.append(Contender(name, name, folder, options.batch))
      stack.callback(contenders[-1].close)
    sums = [contender.ask("loss")["value"] for contender in contenders]
    print(f"  sums of absolute values: {sums[0]:.2f}, {sums[1]:.2f}")
    if abs(sums[0] - sums[1]) > 1e-4 * sums[0]:
      raise SystemExit("the contenders do not compute the same embeddings")
    interleave(contenders, rounds=options.rounds, steps=1, warm=1)
    show(f"encode, {_shape(options)}, batch {options.batch}", contenders, options.count)


def start(options, folder: str) -> None:
  """Seconds from the start of a process to the end of its first training step."""
  rows = {"tuned": [], "ours, cold": [], "ours, warm": []}
  flags = ["--teachers", str(options.teachers)]
  for i in range(options.rounds):
    for label in rows:
      name = label.partition(",")[0]
      # Cold comes first of a round and fills what warm reads.
      extra = ["--compilation-cache", f"{folder}/xla-{i}"] if name == "ours" else []
      begin = time.perf_counter()
      contender = Contender(label, name, folder, options.batch, *flags, *extra)
      contender.ask("steps", 0, 1)
      rows[label].append(time.perf_counter() - begin)
      contender.close()
  print(f"\nStart to first step, {options.shape}, batch {options.batch}, seconds")
  for label, seconds in rows.items():
    print(
      f"  {label:34s} {statistics.median(seconds):6.1f}"
      f"  ({min(seconds):.1f} to {max(seconds):.1f})"
    )


def shuffle(options) -> None:
  """Group-P: all rows at once and jitted, against one row after the other."""
  from benchmarks import shuffling

  for size in (64, 512):
    times = shuffling.measure(size, options.rounds)
    print(f"\nGroup-P shuffling of {size} x {size}, speed relative to row by row")
    for label, seconds in times.items():
      ratios = [b / c for b, c in zip(times["row by row"], seconds)]
      low, middle, high = statistics.quantiles(ratios, n=4)
      print(f"  {label:34s} {middle:7.1f}  ({low:.1f} to {high:.1f})")


def main() -> None:
  if sys.argv[1:2] == ["quality"]:
    from benchmarks import quality

    quality.main(sys.argv[2:])
    return
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "what", choices=("train", "ablation", "encode", "start", "shuffle", "quality")
  )
  parser.add_argument("--shape", default="6x384", choices=prepare.SHAPES)
  parser.add_argument("--layers", type=int, help="the first ones alone")
  parser.add_argument(
    "--length",
    type=int,
    default=prepare.MAX_LENGTH,
    help="tokens at which texts are cut; above 32 sentences are joined to texts",
  )
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--teachers", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--steps", type=int, default=1)
  parser.add_argument("--corpus")
  parser.add_argument("--model", help="a folder to encode with, in place of a shape")
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--only", nargs="+")
  parser.add_argument("--count", type=int, help="sentences", default=10_000)
  options = parser.parse_args()
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  print(f"{os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory; {vars(options)}")
  if options.what == "shuffle":
    shuffle(options)
    return
  need = (options.rounds + 3) * options.steps * options.batch
  options.count = max(
    options.count, need if options.what in ("train", "ablation") else 0
  )
  joined = -(-options.length // 12) if options.length > prepare.MAX_LENGTH else 1
  sentences, kind = prepare.read_sentences(options.corpus, joined * options.count)
  sentences = prepare.lengthen(sentences, options.length)[: options.count]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    prepare.prepare(
      path,
      shape=options.shape,
      sentences=sentences,
      num_teachers=options.teachers,
      length=options.length,
      layers=options.layers,
    )
    if options.model:
      options.shape = pathlib.Path(options.model).name
      shutil.rmtree(path / "model")
      (path / "model").symlink_to(pathlib.Path(options.model).absolute())
    facts = json.loads(path.joinpath("facts.json").read_text())
    print(
      f"{len(sentences)} {kind}, {facts['mean_tokens']:.1f} of {options.length} tokens "
      "on average"
    )
    measure = {"encode": encode, "start": start}.get(options.what, train)
    measure(options, folder)


if __name__ == "__main__":
  main()

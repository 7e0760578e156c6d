"""Serving: search in fewer bits and its memory; ONNX beside our encoder and PyTorch.

`python -m benchmarks.serving search --rows 1000000` times a search of one query, and of
64, in an index of made-up rows of 384 numbers, each precision in turns.
`python -m benchmarks.serving memory --rows 1000000` prints the most memory of a process
that searches made-up documents as they come, after some and after all, for each precision.
`python -m benchmarks.serving onnx --model DIR --retrieval DIR` times encoders in turns
on the documents of a collection, and scores each. DIR has ONNX files, by `dcse_jax.convert
--onnx_int8`.
"""

import argparse
import itertools
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from dcse_jax import SentenceEncoder
from dcse_jax.embed import neighbours
from dcse_jax.embed import onnx_export
from dcse_jax.embed import row_file
from dcse_jax.embed.precision import has_ranges
from dcse_jax.embed.precision import quantize
from dcse_jax.embed.precision import ranges_of
from dcse_jax.embed.ranking import Ranking
from dcse_jax.eval import retrieval
from dcse_jax.eval import retrieval_sets

_WIDTH, _BLOCK = 384, 16_384
_PRECISIONS = ("float32", "int8", "ubinary")
# After as many rows a search says its most memory so far.
_TOLD = (20_000, 100_000, 300_000, 1_000_000)


def made_up(rows: int):
  """Yields made-up unit rows, some thousands at a time."""
  rng = np.random.default_rng(0)
  for start in range(0, rows, _BLOCK):
    block = rng.standard_normal((min(_BLOCK, rows - start), _WIDTH), np.float32)
    yield block / np.linalg.norm(block, axis=1, keepdims=True)


def in_turns(contenders, rounds: int) -> dict[str, list[float]]:
  """Calls each contender in every round, from both ends in turn; returns seconds."""
  seconds = {name: [] for name in contenders}
  for i in range(rounds + 1):
    for name in list(contenders)[:: 1 if i % 2 else -1]:
      start = time.perf_counter()
      contenders[name]()
      if i:  # The first round compiles.
        seconds[name].append(time.perf_counter() - start)
  return seconds


def show(seconds: dict[str, list[float]], units: int, unit: str) -> None:
  """Prints speeds relative to the first contender: medians, quartiles of the rounds."""
  base = next(iter(seconds.values()))
  for name, each in seconds.items():
    low, middle, high = statistics.quantiles([b / e for b, e in zip(base, each)], n=4)
    rate = units / statistics.median(each)
    print(f"  {name:20s} {middle:6.2f} ({low:.2f} to {high:.2f})  {rate:9.1f} {unit}/s")


def search(options) -> None:
  """Times a search in each precision, from memory-mapped files."""
  queries = next(made_up(1024))
  with tempfile.TemporaryDirectory() as folder:
    indexes = {}
    for precision in _PRECISIONS:
      ranges = ranges_of(itertools.islice(made_up(options.rows), 1))
      path = pathlib.Path(folder, f"{precision}.npy")
      shape = quantize(queries[:2], precision, ranges).shape[1]
      row_file.write_rows(
        path,
        lambda done, p=precision, r=ranges: (
          quantize(block, p, r) for block in made_up(options.rows)
        ),
        shape=(options.rows, shape),
        origin={},
        dtype=str(quantize(queries[:2], precision, ranges).dtype),
      )
      rows = row_file.read(path)
      indexes[precision] = neighbours.make_index(rows, _WIDTH, ranges=ranges)
      print(f"{precision}: {path.stat().st_size / 2**20:.0f} MiB")
    for number in (1, 64):
      print(f"{number} queries at once, the first ten of {options.rows} rows")
      ask = {p: lambda i=i: i.search(queries[:number], 10) for p, i in indexes.items()}
      show(in_turns(ask, options.rounds), number, "queries")


def memory(options) -> None:
  """Prints the most memory of a search in each precision, a process each."""
  for precision in options.precision or _PRECISIONS:
    command = [sys.executable, "-m", "benchmarks.serving", "_memory"]
    command += ["--rows", str(options.rows), "--precision", precision]
    subprocess.run(command, check=True)


def memory_of(options) -> None:
  """Searches a stream, as evaluation does, and prints this process's most memory."""
  (precision,) = options.precision
  first = next(made_up(_BLOCK))
  ranges = ranges_of([first]) if has_ranges(precision) else None
  top_k = 1000 if precision == "float32" else 10
  ranking = Ranking(first[:100], top_k, precision=precision, ranges=ranges)
  start = time.perf_counter()
  rows, told = 0, [n for n in _TOLD if n < options.rows] + [options.rows]
  for block in made_up(options.rows):
    ranking.add(quantize(block, precision, ranges))
    rows += len(block)
    if rows >= told[0]:
      ranking.result()
      most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
      seconds = time.perf_counter() - start
      print(f"{told.pop(0)} {precision}: {most:.0f} MiB, {seconds:.0f} s", flush=True)


def onnx(options) -> None:
  """Times encoders in turns, and scores each on collections."""
  import sentence_transformers

  ours = SentenceEncoder(options.model)
  theirs = sentence_transformers.SentenceTransformer(options.model, device="cpu")
  files = {
    name: onnx_export.OnnxEncoder(pathlib.Path(options.model, name), ours.model)
    for name in (onnx_export.FLOAT, onnx_export.INT8)
  }
  encoders = {
    "PyTorch": lambda texts: theirs.encode(texts, batch_size=64),
    "ours": ours.encode,
    **{name: each.encode for name, each in files.items()},
  }
  collections = retrieval_sets.read_collections(options.retrieval, dev=False)
  each = next(iter(collections.values()))
  for kind, texts in (
    ("queries", list(each.queries.values())),
    ("documents", list(itertools.islice(each.documents(), options.texts))),
  ):
    print(f"{len(texts)} {kind}, batches of 64", flush=True)
    calls = {label: lambda e=encode: e(texts) for label, encode in encoders.items()}
    show(in_turns(calls, options.rounds), len(texts), "texts")
  for name, each in collections.items():
    for label in files:  # `evaluate` scores our encoder.
      ranking = Ranking(encoders[label](list(each.queries.values())), 1000)
      ranking.add(encoders[label](list(each.documents())))
      found = retrieval.measure(each, *ranking.result())
      print(f"{name}, {label}: nDCG@10 {found['nDCG@10']:.2f}", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  kinds = {"search": search, "memory": memory, "_memory": memory_of, "onnx": onnx}
  parser.add_argument("what", choices=kinds)
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--texts", type=int, default=512)
  parser.add_argument("--precision", action="append", choices=_PRECISIONS)
  parser.add_argument("--model")
  parser.add_argument("--retrieval")
  options = parser.parse_args()
  kinds[options.what](options)


if __name__ == "__main__":
  main()

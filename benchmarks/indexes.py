"""Search beyond memory: recall, bytes, time and memory of the indexes that there are.

`python -m benchmarks.indexes --rows 1000000` compares them on made-up rows that lie in
clusters of a space of few dimensions, `--embeddings FILE.npy` on given ones, of which the
last thousand are the queries. `--multipliers` says instead how many rows of signs must be
compared with the query itself. Each index is built in a process of its own, and searched
in another. Times are those of the CPU, all threads together: a machine that is shared
changes them little.
"""

import argparse
import itertools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from dcse_jax.embed import embedded
from dcse_jax.embed import index_folder
from dcse_jax.embed import index_writer
from dcse_jax.embed import neighbours
from dcse_jax.embed import row_file
from dcse_jax.embed.precision import quantize
from dcse_jax.embed.precision import ranges_of
from dcse_jax.embed.recall import recalls
from dcse_jax.model.vectors import unit_length

_WIDTH, _QUERIES, _BLOCK = 384, 1000, 16_384
# Made-up rows: clusters, and dimensions of what tells clusters and rows apart.
_CLUSTERS, _LATENT = 20_000, 64
# How many lists a query looks at, where there are lists.
_PROBES = (4, 8, 16, 32, 64, 128, 256)
_KINDS = ("float32", "int8", "ubinary", "lists", "hnsw")


def made_up(rows: int):
  """Yields made-up rows of unit length, some thousands at a time.

  A row is its cluster's centre and a difference, both in the same 64 dimensions of
  falling variance, and a little noise in all others. Clusters are of unlike sizes.
  """
  rng = np.random.default_rng(0)
  spread = np.arange(1, _LATENT + 1, dtype=np.float32) ** -0.5
  basis = np.linalg.qr(rng.standard_normal((_WIDTH, _LATENT)))[0].T.astype(np.float32)
  centres = rng.standard_normal((_CLUSTERS, _LATENT), np.float32)
  shares = 1 / np.arange(1, _CLUSTERS + 1) ** 0.5
  shares /= shares.sum()
  for start in range(0, rows, _BLOCK):
    number = min(_BLOCK, rows - start)
    latent = centres[rng.choice(_CLUSTERS, number, p=shares)]
    latent = latent + 0.7 * rng.standard_normal((number, _LATENT), np.float32)
    noise = rng.standard_normal((number, _WIDTH), np.float32)
    yield unit_length((latent * spread) @ basis + 0.03 * noise)


def write_rows(folder: pathlib.Path, blocks, rows: int, width: int) -> None:
  """Writes rows in each precision, and the last of them as queries."""
  blocks = iter(blocks)
  first = next(blocks)
  ranges = ranges_of([first])
  np.save(folder / "ranges.npy", ranges)
  files = {}
  for precision in ("float32", "int8", "ubinary"):
    like = quantize(first[:2], precision, ranges)
    files[precision] = np.lib.format.open_memmap(
      folder / f"{precision}.npy",
      mode="w+",
      dtype=like.dtype,
      shape=(rows - _QUERIES, like.shape[1]),
    )
  row, queries = 0, []
  for block in itertools.chain([first], blocks):
    kept = block[: max(rows - _QUERIES - row, 0)]
    for precision, file in files.items():
      file[row : row + len(kept)] = quantize(kept, precision, ranges)
    queries.append(block[len(kept) :])
    row += len(kept)
  np.save(folder / "queries.npy", np.concatenate(queries))


def read_blocks(folder: pathlib.Path):
  rows = row_file.read(folder / "float32.npy")
  return (rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK))


def build(folder: pathlib.Path, kind: str):
  """Builds or opens what is searched; returns how, and the bytes of a row."""
  if kind == "lists":
    path = folder / "index"
    if not path.exists():
      path.mkdir()
      rows = row_file.read(folder / "float32.npy")
      sentences = lambda: map(str, range(len(rows)))
      blocks = lambda: read_blocks(folder)
      source = embedded.Embedded("", *rows.shape, "", blocks, sentences)
      about = index_writer.write(path, source, {"model": "", "text": ""})
      print(json.dumps({k: v for k, v in about.items() if k != "files"}), flush=True)
    index = index_folder.IndexFolder(path)
    files = [p for p in path.iterdir() if not p.name.startswith("text")]
    size = sum(p.stat().st_size for p in files) / index.about["rows"]
    return index.search, size, index.about["probes"]
  if kind == "hnsw":
    rows = row_file.read(folder / "float32.npy")
    index = neighbours.FaissIndex(rows)
    return index.search, rows.shape[1] * 4 + 4 * 2 * 32, None
  rows, ranges = row_file.read(folder / f"{kind}.npy"), np.load(folder / "ranges.npy")
  index = neighbours.make_index(rows, ranges.shape[1], ranges=ranges)
  return index.search, rows.dtype.itemsize * rows.shape[1], None


def one(folder: pathlib.Path, kind: str, what: str) -> None:
  """Builds an index, or searches it; prints what that took."""
  start = time.process_time()
  search, size, probes = build(folder, kind)
  seconds = time.process_time() - start
  if what == "build":
    print(
      f"{kind}: built in {seconds:.0f} s of CPU, {most():.0f} MiB at most", flush=True
    )
    return
  queries = np.load(folder / "queries.npy")
  for each in dict.fromkeys([probes, *_PROBES]) if probes else (None,):
    more = {"probes": each} if each else {}
    found = search(queries, 11, **more)
    name = f"{kind}-{each}" if each else kind
    np.savez(folder / f"{name}.npz", scores=found[0][:, :10], rows=found[1][:, :10])
    alone = [timed(search, q[None], more) for q in queries[:200]]
    together = [timed(search, queries[i : i + 64], more) for i in range(0, 640, 64)]
    about = {
      "name": name + (" (chosen)" if each and each == probes else ""),
      "bytes": size,
      "ms": 1e3 * statistics.median(alone),
      "ms_of_64": 1e3 * statistics.median(together) / 64,
      "MiB": most(),
    }
    (folder / f"{name}.json").write_text(json.dumps(about))


def timed(search, queries: np.ndarray, more) -> float:
  start = time.process_time()
  search(queries, 10, **more)
  return time.process_time() - start


def most() -> float:
  """Returns the most memory of this process so far, mapped files included, MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def call(folder: pathlib.Path, kind: str, what: str) -> None:
  command = [sys.executable, "-m", "benchmarks.indexes", "--folder", str(folder)]
  subprocess.run([*command, "--kind", kind, "--what", what], check=True)


def compare(folder: pathlib.Path, kinds) -> None:
  """Builds, searches and measures each kind, and prints a table."""
  for kind in kinds:
    call(folder, kind, "build")
    call(folder, kind, "search")
  names = sorted(path.stem for path in folder.glob("*.npz"))
  found = [np.load(folder / f"{name}.npz") for name in names]
  answers = [lambda q, k, f=each: (f["scores"], f["rows"]) for each in found]
  shares = recalls(
    answers, np.load(folder / "queries.npy"), None, read_blocks(folder)
  ).mean(axis=1)
  print("| | recall@10 | bytes a row | ms a query | of 64 at once | MiB |")
  for name, share in zip(names, shares):
    about = json.loads((folder / f"{name}.json").read_text())
    print(
      f"| {about['name']} | {share:.4f} | {about['bytes']:.0f} | {about['ms']:.2f} "
      f"| {about['ms_of_64']:.2f} | {about['MiB']:.0f} |"
    )


def multipliers(folder: pathlib.Path) -> None:
  """Prints the recall of signs by how many are compared with the query itself."""
  rows, queries = row_file.read(folder / "ubinary.npy"), np.load(folder / "queries.npy")
  numbers = (1, 2, 4, 8, 16, 32, 64)
  make = lambda number: neighbours.make_index(
    rows, queries.shape[1], rescore_multiplier=number
  )
  searches = [make(number).search for number in numbers]
  shares = recalls(searches, queries, None, read_blocks(folder)).mean(axis=1)
  for number, share, search in zip(numbers, shares, searches):
    alone = [timed(search, q[None], {}) for q in queries[:200]]
    milliseconds = 1e3 * statistics.median(alone)
    print(f"| {number} | {share:.4f} | {milliseconds:.2f} |")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--embeddings")
  parser.add_argument("--kinds", nargs="+", default=_KINDS, choices=_KINDS)
  parser.add_argument("--multipliers", action="store_true")
  parser.add_argument("--place", help="the folder of a large disk")
  parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--kind", help=argparse.SUPPRESS)
  parser.add_argument("--what", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.folder:
    one(options.folder, options.kind, options.what)
    return
  with tempfile.TemporaryDirectory(dir=options.place) as folder:
    folder = pathlib.Path(folder)
    blocks, rows, width = made_up(options.rows + _QUERIES), options.rows, _WIDTH
    if options.embeddings:
      given = row_file.read(options.embeddings)
      rows, width = len(given) - _QUERIES, given.shape[1]
      starts = range(0, len(given), _BLOCK)
      blocks = (unit_length(given[i : i + _BLOCK]) for i in starts)
    write_rows(folder, blocks, rows + _QUERIES, width)
    if options.multipliers:
      multipliers(folder)
    else:
      compare(folder, options.kinds)


if __name__ == "__main__":
  main()

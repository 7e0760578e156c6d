"""Large texts: how fast they are read and tokenised, and in how much memory.

`python -m benchmarks.corpus --rows 1000000 2500000 5000000` makes up sentences of about
95 characters and a WordPiece tokenizer for them, and prints rows a second and the peak of
memory for each number of rows.
"""

import argparse
import pathlib
import string
import tempfile
import time

import numpy as np

from dcse_jax.data import text as text_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.hub import wordpiece
from dcse_jax.model import model as model_lib

_VOCAB_SIZE = 30_000
_MAX_LENGTH = 32
_BLOCK = 50_000
_STATUS, _PEAK = (
  pathlib.Path("/proc/self/status"),
  pathlib.Path("/proc/self/clear_refs"),
)


def _write(path: pathlib.Path, rows: int) -> None:
  """Writes sentences of 5 to 24 words, common ones more often, as in a language."""
  rng = np.random.default_rng(0)
  letters = np.asarray(list(string.ascii_lowercase))
  words = {"".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(40_000)}
  words = np.asarray(sorted(words), object)
  share = np.cumsum(1 / np.arange(1, len(words) + 1))
  with path.open("w") as file:
    for start in range(0, rows, _BLOCK):
      lengths = rng.integers(5, 25, min(_BLOCK, rows - start))
      drawn = words[np.searchsorted(share, rng.random(lengths.sum()) * share[-1])]
      for each in np.split(drawn, np.cumsum(lengths)[:-1]):
        file.write(" ".join(each) + "\n")


def _measure(name: str, rows: int, act):
  """Does something, and prints rows a second and the peak of memory meanwhile."""
  _PEAK.write_text("5")
  wall, cpu = time.perf_counter(), time.process_time()
  result = act()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  peak = int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) / 1024
  print(
    f"  {name:10s} {rows / wall:9.0f} rows/s  {rows / cpu:9.0f} rows/s of one core"
    f"  peak {peak:7.1f} MB",
    flush=True,
  )
  return result


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    _write(folder / "small.txt", _BLOCK)
    small = text_lib.read_text(str(folder / "small.txt")).columns[0]
    tokenizer = wordpiece.train_wordpiece(small, vocab_size=_VOCAB_SIZE)
    tokenize = lambda part: model_lib.tokenize(tokenizer, part, _MAX_LENGTH)
    tokenize(small[:2000])
    for rows in options.rows:
      print(f"{rows} rows")
      path = folder / "text.txt"
      _write(path, rows)
      read = lambda: text_lib.read_text(str(path), store=folder)
      text = _measure("read", rows, read)
      cache = lambda: tokens_lib.build_token_cache(
        folder,
        text.columns,
        tokenize=tokenize,
        tokenizer_state="",
        max_length=_MAX_LENGTH,
        pad_token_id=0,
        vocab_size=_VOCAB_SIZE,
      )
      _measure("tokenise", rows, cache)
      _measure("open again", rows, cache)


if __name__ == "__main__":
  main()

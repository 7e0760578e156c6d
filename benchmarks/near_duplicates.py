"""Near duplicates: how many planted ones `prepare` finds, what else it takes, how fast.

`python -m benchmarks.near_duplicates --text wikipedia.txt` writes each sentence once, and
once more with small edits that a seeded generator makes, and prepares this text with each
threshold. It prints sentences a second and the peak of memory; the share of edited copies that
were left out, by kind of edit; and the share of sentences that were left out though nobody
edited them, with how many of these are truly that like an earlier sentence.
"""

import argparse
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcse_jax.data import cleaning
from dcse_jax.data import near_duplicates
from dcse_jax.data import parts
from dcse_jax.data import text as text_lib


def _letter(words: list[str], rng: random.Random, others: list[str]) -> list[str]:
  place = rng.randrange(len(words))
  word = words[place]
  at = rng.randrange(len(word))
  changed = word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]
  return [*words[:place], changed, *words[place + 1 :]]


def _case(words: list[str], rng: random.Random, others: list[str]) -> list[str]:
  return [*(word.upper() for word in words[:3]), *words[3:-1], words[-1] + " !"]


def _word(words: list[str], rng: random.Random, others: list[str]) -> list[str]:
  place = rng.randrange(len(words))
  return [*words[:place], rng.choice(others), *words[place + 1 :]]


def _two_words(words: list[str], rng: random.Random, others: list[str]) -> list[str]:
  return _word(_word(words, rng, others), rng, others)


def _dropped(words: list[str], rng: random.Random, others: list[str]) -> list[str]:
  place = rng.randrange(len(words))
  return words[:place] + words[place + 1 :]


def _added(words: list[str], rng: random.Random, others: list[str]) -> list[str]:
  return [*words, rng.choice(others), rng.choice(others)]


_EDITS = {
  "case and punctuation": _case,
  "a letter": _letter,
  "a word left out": _dropped,
  "a word replaced": _word,
  "two words added": _added,
  "two words replaced": _two_words,
}


def _plant(sentences: list[str], seed: int) -> list[tuple[str, str]]:
  """Edits each sentence; the kind of edit, and the copy."""
  rng, kinds = random.Random(seed), list(_EDITS)
  copies = []
  for sentence in sentences:
    others = rng.choice(sentences).split()
    kind = rng.choice(kinds)
    copy = " ".join(_EDITS[kind](sentence.split(), rng, others))
    copies.append((kind, copy))
  return copies


def _jaccard(one: str, other: str) -> float:
  first, second = (set(each) for each in near_duplicates.runs([one, other]))
  return len(first & second) / len(first | second)


def _best(sentences: list[str], row: int, signatures: np.ndarray) -> float:
  """Finds how like the likest of all earlier sentences is."""
  similar = (signatures[:row] == signatures[row]).mean(axis=1)
  nearest = np.argsort(-similar)[:3]
  return max(_jaccard(sentences[row], sentences[i]) for i in nearest)


def _of_children() -> resource.struct_rusage:
  return resource.getrusage(resource.RUSAGE_CHILDREN)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--text", required=True)
  parser.add_argument("--rows", type=int, default=200_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument(
    "--thresholds", type=float, nargs="+", default=[0.6, 0.7, 0.8, 0.9]
  )
  options = parser.parse_args()
  rules = cleaning.Rules()
  cleaned = map(cleaning.clean, text_lib.first_cells(options.text))
  kept = (each for each in cleaned if not cleaning.fault(each, rules))
  sentences = list(dict.fromkeys(kept))[: options.rows]
  copies = _plant(sentences, options.seed)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    every = [*sentences, *(copy for _, copy in copies)]
    ids = range(len(every))
    pq.write_table(pa.table({"id": ids, "text": every}), folder / "text.parquet")
    print(f"{len(sentences)} sentences, and as many edited")
    size = len(sentences)
    like = np.asarray([_jaccard(one, two) for one, two in zip(every, every[size:])])
    signatures = near_duplicates.signatures(sentences)
    for threshold in options.thresholds:
      output, start = folder / f"clean-{threshold}", time.perf_counter()
      command = [sys.executable, "-m", "dcse_jax.prepare", "--id_column=id"]
      command += [f"--input={folder}/text.parquet", f"--output={output}"]
      command += [f"--near_duplicates={threshold}", f"--workers={options.workers}"]
      before = _of_children()
      subprocess.run(command, check=True)
      used, seconds = _of_children(), time.perf_counter() - start
      cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
      print(
        f"threshold {threshold}: {len(every) / seconds:.0f} sentences/s, "
        f"{len(every) / cpu:.0f} of one core, peak of a process "
        f"{used.ru_maxrss / 1024:.0f} MiB",
        flush=True,
      )
      _tell(every, copies, like, signatures, output, threshold)


def _tell(every, copies, like, signatures, output: pathlib.Path, threshold) -> None:
  """Prints what was found among the copies, and what else was left out."""
  stays = np.zeros(len(every), bool)
  for path in parts.paths(output):
    stays[pq.read_table(path, columns=["id"])["id"].to_numpy().astype(int)] = True
  size = len(copies)
  kinds = np.asarray([kind for kind, _ in copies])
  for kind in _EDITS:
    of_kind = kinds == kind
    share = 1 - stays[size:][of_kind].mean()
    print(f"  {kind:22s} Jaccard {like[of_kind].mean():.2f}: {share:.2%} found")
  are_like = like >= threshold
  print(
    f"  of copies that are at least as like: {1 - stays[size:][are_like].mean():.2%}"
  )
  print(f"  of copies that are less like: {1 - stays[size:][~are_like].mean():.2%}")
  lost = np.flatnonzero(~stays[:size])
  shown = np.random.default_rng(0).permutation(lost)[:500]
  truly = [_best(every, row, signatures) >= threshold for row in shown]
  wrong = 1 - np.mean(truly) if len(shown) else 0.0
  print(
    f"  unedited and left out: {len(lost)}, {len(lost) / size:.3%}; not that like any "
    f"earlier one: {wrong:.1%} of {len(shown)} looked at",
    flush=True,
  )


if __name__ == "__main__":
  main()

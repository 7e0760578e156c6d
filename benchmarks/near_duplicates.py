"""Near duplicates: how many planted ones `prepare` finds, what else it takes, how fast.

`python -m benchmarks.near_duplicates --text wikipedia.txt` writes each sentence once, and
once more with small edits that a seeded generator makes. It prepares this text, and prints
sentences a second and the peak of memory. Then it prints for each threshold the share of edited
copies that are left out, by kind of edit; and the share of sentences that are left out though
nobody edited them, with how many of these are truly that like an earlier sentence.
"""

import argparse
import contextlib
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from dcse_jax.data import cleaning
from dcse_jax.data import duplicates
from dcse_jax.data import near_duplicates
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


def _best(sentences: list[str], row: int, signatures: np.ndarray) -> float:
  """Finds how like the likest of all earlier sentences is."""
  similar = (signatures[:row] == signatures[row]).mean(axis=1)
  nearest = np.argsort(-similar)[:3]
  return max(near_duplicates.jaccard(sentences[row], sentences[i]) for i in nearest)


def _of_children() -> resource.struct_rusage:
  return resource.getrusage(resource.RUSAGE_CHILDREN)


def _peak_mib(pid: int) -> float:
  """Adds up the most that a process and its children have held until now.

  What getrusage says of a child begins with what its parent held.
  """
  total = 0.0
  with contextlib.suppress(OSError, IndexError):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    total = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    total += sum(map(_peak_mib, map(int, children.split())))
  return total


def _time(every: list[str], workers: int) -> None:
  """Prepares sentences by the command, and prints how fast, and in how much memory."""
  with tempfile.TemporaryDirectory() as folder:
    text = pathlib.Path(folder) / "text.txt"
    text.write_text("".join(f"{each}\n" for each in every), encoding="utf-8")
    command = [sys.executable, "-m", "dcse_jax.prepare", f"--input={text}"]
    command += [f"--output={folder}/clean", f"--workers={workers}"]
    before, start, peak = _of_children(), time.perf_counter(), 0.0
    process = subprocess.Popen(command)
    while process.poll() is None:
      peak = max(peak, _peak_mib(process.pid))
      time.sleep(0.1)
    seconds, after = time.perf_counter() - start, _of_children()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(path.stat().st_size for path in pathlib.Path(folder, "clean").iterdir())
    print(
      f"{len(every) / seconds:.0f} sentences/s, "
      f"{len(every) / cpu:.0f} for each second of a core, peak of "
      f"{workers} workers and their parent {peak:.0f} MiB, {size / 1e6:.1f} MB of "
      f"{text.stat().st_size / 1e6:.1f} MB written",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--text", required=True)
  parser.add_argument("--rows", type=int, default=200_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workers", type=int, nargs="*", default=[2])
  parser.add_argument(
    "--thresholds", type=float, nargs="*", default=[0.6, 0.7, 0.8, 0.9]
  )
  options = parser.parse_args()
  rules = cleaning.Rules()
  cleaned = map(cleaning.clean, text_lib.first_cells(options.text))
  kept = (each for each in cleaned if not cleaning.fault(each, rules))
  sentences = list(dict.fromkeys(kept))[: options.rows]
  copies = _plant(sentences, options.seed)
  every = [*sentences, *(cleaning.clean(copy) for _, copy in copies)]
  print(f"{len(sentences)} sentences, and as many edited", flush=True)
  for workers in options.workers:
    _time(every, workers)
  if not options.thresholds:
    return
  kinds = np.asarray([kind for kind, _ in copies])
  like = np.asarray(
    [near_duplicates.jaccard(one, two) for one, two in zip(every, every[len(kinds) :])]
  )
  signatures = near_duplicates.signatures(every)
  digests = [duplicates.digest(each.encode()) for each in every]
  is_equal = duplicates.repeats(np.asarray(digests, np.uint64))
  for threshold in options.thresholds:
    start, left_out = time.process_time(), is_equal.copy()
    is_like = lambda row, other: (
      near_duplicates.jaccard(every[row], every[other]) >= threshold
    )
    for band in range(near_duplicates.num_bands(threshold)):
      near_duplicates.find_in_band(
        left_out, signatures, ~is_equal, threshold, band, is_like
      )
    print(f"threshold {threshold}: {time.process_time() - start:.1f} s of a core")
    _tell(threshold, every, left_out, kinds, like, signatures)


def _tell(threshold, every, left_out, kinds, like, signatures) -> None:
  """Prints what was found among the copies, and what else was left out."""
  size = len(kinds)
  found = left_out[size:]
  for kind in _EDITS:
    of_kind = kinds == kind
    share = found[of_kind].mean()
    print(f"  {kind:22s} Jaccard {like[of_kind].mean():.2f}: {share:.2%} found")
  are_like = like >= threshold
  print(f"  copies that are at least as like: {found[are_like].mean():.2%} found")
  print(f"  copies that are less like: {found[~are_like].mean():.2%} found")
  lost = np.flatnonzero(left_out[:size])
  shown = np.random.default_rng(0).permutation(lost)[:200]
  truly = [_best(every, row, signatures) >= threshold for row in shown]
  wrong = 1 - np.mean(truly) if len(shown) else 0.0
  print(
    f"  unedited and left out: {len(lost)}, {len(lost) / size:.3%}; not that like any "
    f"earlier one: {wrong:.1%} of {len(shown)} looked at",
    flush=True,
  )


if __name__ == "__main__":
  main()

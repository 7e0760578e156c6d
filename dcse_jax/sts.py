"""Semantic textual similarity: Spearman correlation with human scores."""

from collections.abc import Callable, Sequence
import dataclasses
import math
import pathlib

import numpy as np
import scipy.stats

from dcse_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StsSet:
  """Sentence pairs with a human score each; all three of equal length."""

  scores: np.ndarray
  first: list[str]
  second: list[str]


def read_sts_file(path: pathlib.Path) -> StsSet:
  """Reads `score TAB sentence1 TAB sentence2 [TAB subset]` lines, no header.

  Fields are never quoted. Subsets are concatenated: the SimCSE "all"
  convention.

  Raises:
    UserError: a line of another form, named, or no line at all.
  """
  scores, first, second = [], [], []
  try:
    lines = path.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  for number, line in enumerate(lines, 1):
    try:
      fields = line.decode("utf-8").rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
      raise UserError(
        f"{path}:{number}: not UTF-8; re-save the file as UTF-8"
      ) from error
    if fields == [""]:
      continue
    try:
      score = float(fields[0])
    except ValueError:
      score = math.nan
    if len(fields) not in (3, 4) or not math.isfinite(score):
      raise UserError(
        f"{path}:{number}: expected a score, two sentences and at most a "
        "subset, separated by tabs"
      )
    scores.append(score)
    first.append(fields[1])
    second.append(fields[2])
  if len(scores) < 2:
    raise UserError(f"{path} holds {len(scores)} pairs: Spearman needs two")
  return StsSet(np.asarray(scores), first, second)


def read_sts(folder: str, names: Sequence[str] | None = None) -> dict[str, StsSet]:
  """Reads the STS sets of a folder, each named by its file.

  Args:
    folder: holds NAME.tsv files.
    names: which sets; None means all.

  Raises:
    UserError: no such folder or set, or a file of another form.
  """
  path = pathlib.Path(folder).expanduser()
  there = sorted(file.stem for file in path.glob("*.tsv"))
  if not there:
    raise UserError(f"{folder} holds no .tsv file: name a folder of STS sets")
  for name in names or ():
    if name not in there:
      raise UserError(
        f"no evaluation yields {name!r}: {folder} holds {', '.join(there)}"
      )
  names = there if names is None else names
  return {name: read_sts_file(path / f"{name}.tsv") for name in names}


def averaged_sets(names: Sequence[str]) -> list[str]:
  """The sets that "avg" is the mean of: all but train and dev sets.

  Where a folder holds nothing else, those count.
  """
  tests = [n for n in names if not n.lower().endswith(("-train", "-dev"))]
  return tests or list(names)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Spearman's rank correlation, ties averaged, in percent.

  A constant argument, such as a collapsed encoder's cosines, ranks nothing: 0.
  """
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return 0.0
  return 100.0 * float(scipy.stats.spearmanr(a, b).statistic)


def paired_cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Cosine of row i with row i, [n, D] and [n, D] to [n]; 0 for zero rows."""
  norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
  return np.sum(first * second, axis=1) / np.maximum(norms, 1e-12)


def score_sts(
  embed: Callable[[list[str]], np.ndarray], sets: dict[str, StsSet]
) -> dict[str, float]:
  """Scores every set.

  Args:
    embed: sentences to embeddings [n, D]; called once, with each distinct
      sentence once.
    sets: by name.

  Returns:
    Spearman in percent by set, and "avg", their mean over `averaged_sets`.
  """
  row = {}
  for pairs in sets.values():
    for sentence in (*pairs.first, *pairs.second):
      row.setdefault(sentence, len(row))
  embeddings = embed(list(row))
  scores = {}
  for name, pairs in sets.items():
    cosine = paired_cosine(
      embeddings[[row[s] for s in pairs.first]],
      embeddings[[row[s] for s in pairs.second]],
    )
    scores[name] = spearman(cosine, pairs.scores)
  scores["avg"] = float(np.mean([scores[n] for n in averaged_sets(list(sets))]))
  return scores


def format_table(scores: dict[str, float], title: str) -> str:
  """A two-column table; sets outside the average are marked."""
  averaged = averaged_sets([name for name in scores if name != "avg"])
  width = max(map(len, scores))
  lines = [title]
  for name, score in scores.items():
    mark = "" if name == "avg" or name in averaged else "  (not in avg)"
    lines.append(f"  {name:<{width}}  {score:6.2f}{mark}")
  return "\n".join(lines)

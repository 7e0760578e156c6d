"""Semantic textual similarity: Spearman correlation with human scores."""

from collections.abc import Callable, Sequence
import dataclasses
import math
import pathlib

import numpy as np
import scipy  # Its parts load at first use: two seconds of every start.

from dcse_jax.errors import UserError
from dcse_jax.sentence_encoder import unit_length


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


Rows = dict[str, tuple[np.ndarray, np.ndarray]]


def index_sentences(sets: dict[str, StsSet]) -> tuple[list[str], Rows]:
  """Every distinct sentence of the sets, and where each pair's are in that list.

  Returns:
    The sentences, and by set the places of the first and of the second ones.
  """
  row = {}
  for pairs in sets.values():
    for sentence in (*pairs.first, *pairs.second):
      row.setdefault(sentence, len(row))
  places = lambda sentences: np.asarray([row[s] for s in sentences])
  rows = {name: (places(p.first), places(p.second)) for name, p in sets.items()}
  return list(row), rows


def score_pairs(
  embeddings: np.ndarray, rows: Rows, sets: dict[str, StsSet]
) -> dict[str, float]:
  """Scores every set.

  Args:
    embeddings: of the sentences of `index_sentences`, [n, D].
    rows: as `index_sentences` gives them.
    sets: by name.

  Returns:
    Spearman in percent by set, and "avg", their mean over `averaged_sets`.
  """
  scores = {}
  for name, pairs in sets.items():
    first, second = rows[name]
    cosine = paired_cosine(embeddings[first], embeddings[second])
    scores[name] = spearman(cosine, pairs.scores)
  scores["avg"] = float(np.mean([scores[n] for n in averaged_sets(list(sets))]))
  return scores


def score_sts(
  embed: Callable[[list[str]], np.ndarray], sets: dict[str, StsSet]
) -> dict[str, float]:
  """`score_pairs`, by a function from sentences to embeddings [n, D]."""
  sentences, rows = index_sentences(sets)
  return score_pairs(embed(sentences), rows, sets)


def alignment(first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> float:
  """Mean squared distance of paraphrases on the unit sphere, in [0, 4].

  Args:
    first: embeddings, [n, D].
    second: embeddings, [n, D]; row i pairs with row i of first.
    scores: of the pairs, [n]; paraphrases are those with four fifths of the best
      score or more: 4 and above of STS-B's 5.

  References:
    Wang and Isola, 2020, Eq. 3 (arXiv:2005.10242); the pairs as in Gao et al.,
    SimCSE, 2021, section 6.
  """
  alike = scores >= 0.8 * scores.max()
  gaps = unit_length(first[alike]) - unit_length(second[alike])
  return float(np.mean(np.sum(gaps**2, axis=1)))


def uniformity(embeddings: np.ndarray) -> float:
  """Log mean Gaussian potential of every two embeddings on the unit sphere.

  Args:
    embeddings: [n, D] with n > 1; each pair of rows counts once.

  Returns:
    log E exp(-2 ||x - y||^2), at most 0; smaller is more evenly spread.

  References:
    Wang and Isola, 2020, Eq. 4 (arXiv:2005.10242).
  """
  unit = unit_length(embeddings)
  total, block = 0.0, 1024
  for start in range(0, len(unit), block):
    cosine = unit[start : start + block] @ unit[start:].T
    potential = np.exp(4.0 * np.minimum(cosine, 1.0) - 4.0, dtype=np.float64)
    total += np.triu(potential, k=1).sum()
  return float(np.log(total / (len(unit) * (len(unit) - 1) / 2)))


def format_table(scores: dict[str, float], title: str) -> str:
  """A two-column table; sets outside the average are marked."""
  averaged = averaged_sets([name for name in scores if name != "avg"])
  width = max(map(len, scores))
  lines = [title]
  for name, score in scores.items():
    mark = "" if name == "avg" or name in averaged else "  (not in avg)"
    lines.append(f"  {name:<{width}}  {score:6.2f}{mark}")
  return "\n".join(lines)

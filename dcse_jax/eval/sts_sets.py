"""Sets of sentence pairs with human scores: which there are, and their files."""

import codecs
from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import json
import math
import pathlib

import numpy as np

from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import user_path

# The sets that SimCSE and its successors report, in their order; names of STS files.
SEVEN_TEST_SETS = (
  "STS12-test",
  "STS13-test",
  "STS14-test",
  "STS15-test",
  "STS16-test",
  "STSB-test",
  "SICKR-test",
)

# MTEB scores the first in place of SICKR-test; SimCSE's analysis reads the second.
SICKR_ALL, STSB_ALL = "SICKR-all", "STSB-all"

# The subsets of each year, as SentEval's senteval/sts.py lists them: STS13 without SMT.
_SENTEVAL_SUBSETS = {
  "STS12": "MSRpar MSRvid SMTeuroparl surprise.OnWN surprise.SMTnews",
  "STS13": "FNWN headlines OnWN",
  "STS14": "deft-forum deft-news headlines OnWN images tweet-news",
  "STS15": "answers-forums answers-students belief headlines images",
  "STS16": "answer-answer headlines plagiarism postediting question-question",
}
_SENTEVAL_SICK = {"train": "train", "dev": "trial", "test": "test_annotated"}


@dataclasses.dataclass(frozen=True)
class StsSet:
  """Sentence pairs with a human score each; all three have one length."""

  scores: np.ndarray
  first: list[str]
  second: list[str]


def digest(sts_set: StsSet) -> str:
  """Returns a digest of the pairs and their scores."""
  rows = zip(sts_set.scores.tolist(), sts_set.first, sts_set.second)
  return hashlib.blake2b(json.dumps(list(rows)).encode(), digest_size=16).hexdigest()


def _read_lines(path: pathlib.Path) -> list[str]:
  """Reads the lines of a UTF-8 file, empty ones too, without their ends."""
  try:
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  if not lines[-1]:
    lines.pop()  # This is what follows the last line's end.
  for number, line in enumerate(lines, 1):
    try:
      lines[number - 1] = line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
      raise UserError(
        f"{path}:{number}: not UTF-8; re-save the file as UTF-8"
      ) from error
  return lines


def _number(text: str) -> float:
  """Returns the finite number that a text spells, else NaN."""
  try:
    number = float(text)
  except ValueError:
    return math.nan
  return number if math.isfinite(number) else math.nan


def _make_set(path: pathlib.Path, pairs: Sequence[tuple[float, str, str]]) -> StsSet:
  if len(pairs) < 2:
    raise UserError(f"{path} holds {len(pairs)} pairs: Spearman needs two")
  scores, first, second = zip(*pairs)
  return StsSet(np.asarray(scores), list(first), list(second))


def _spaced(sentence: str) -> str:
  """Returns a sentence as SentEval has it: its tokens with one space between two."""
  return " ".join(sentence.split())


@dataclasses.dataclass(frozen=True)
class _Table:
  """The layout of a file of pairs, in fields between tabs that are never quoted.

  Attributes:
    form: says in errors what a line holds.
    score, first, second: which field each is.
    most: the most fields in a line; there are at least as many as are read.
    header: the number of lines before the pairs.
    clean: is applied to each sentence.
  """

  form: str
  score: int
  first: int
  second: int
  most: float = math.inf
  header: int = 0
  clean: Callable[[str], str] = _spaced

  def read(self, path: pathlib.Path) -> StsSet:
    pairs = []
    fewest = 1 + max(self.score, self.first, self.second)
    for number, line in enumerate(_read_lines(path), 1):
      if not line or number <= self.header:
        continue
      fields = line.split("\t")
      right = fewest <= len(fields) <= self.most
      score = _number(fields[self.score]) if right else math.nan
      if math.isnan(score):
        raise UserError(f"{path}:{number}: expected {self.form}, separated by tabs")
      sentences = fields[self.first], fields[self.second]
      pairs.append((score, *map(self.clean, sentences)))
    return _make_set(path, pairs)


_TSV = _Table("a score, two sentences and at most a subset", 0, 1, 2, 4, clean=str)
# Some lines of the organisers' own STS-B have licences after the sentences.
_STSB = _Table("genre, file, year, id, score and two sentences", 4, 5, 6)
_SICK = _Table(
  "pair_ID, sentence_A, sentence_B, relatedness_score and entailment_judgment",
  *(3, 1, 2, 5),
  header=1,
)


def read_sts_file(path: pathlib.Path) -> StsSet:
  """Reads `score TAB sentence1 TAB sentence2 [TAB subset]` lines, no header.

  Fields are never quoted. Subsets are concatenated: the SimCSE "all"
  convention.

  Raises:
    UserError: a line has another form (the error names it), or there is none.
  """
  return _TSV.read(path)


def _read_year(folder: pathlib.Path) -> StsSet:
  """Reads SentEval's STS??-en-test; pairs without a score are left out."""
  pairs = []
  for subset in _SENTEVAL_SUBSETS[folder.name[:5]].split():
    path = folder / f"STS.input.{subset}.txt"
    gold = folder / f"STS.gs.{subset}.txt"
    lines, scores = _read_lines(path), _read_lines(gold)
    if len(lines) != len(scores):
      raise UserError(
        f"{gold} has {len(scores)} lines and {path.name} {len(lines)}: they "
        "must be as many; fetch both again"
      )
    for number, (line, text) in enumerate(zip(lines, scores), 1):
      # The organisers' own STS16 files have two more fields, the sentences' sources.
      fields = line.split("\t")
      if len(fields) < 2:
        raise UserError(f"{path}:{number}: expected two sentences, separated by a tab")
      if not text.strip():
        continue
      score = _number(text)
      if math.isnan(score):
        raise UserError(f"{gold}:{number}: expected a score or nothing")
      pairs.append((score, _spaced(fields[0]), _spaced(fields[1])))
  return _make_set(folder, pairs)


_Files = dict[str, tuple[Callable[[pathlib.Path], StsSet], pathlib.Path]]


def _senteval_files(path: pathlib.Path) -> _Files:
  """Finds SentEval's sets at a path: each one's reader and file; perhaps none.

  Args:
    path: SentEval's `data`, `data/downstream` or `data/downstream/STS`.
  """
  files = {}
  for root in (path / "downstream", path, path.parent):
    if root == path.parent and path.name != "STS":
      continue
    for year in _SENTEVAL_SUBSETS:
      files[f"{year}-test"] = _read_year, root / "STS" / f"{year}-en-test"
    for split, name in _SENTEVAL_SICK.items():
      benchmark = root / "STS" / "STSBenchmark" / f"sts-{split}.csv"
      files[f"STSB-{split}"] = _STSB.read, benchmark
      files[f"SICKR-{split}"] = _SICK.read, root / "SICK" / f"SICK_{name}.txt"
    there = {
      name: (read, file) for name, (read, file) in files.items() if file.exists()
    }
    if there:
      return dict(sorted(there.items()))
  return {}


def find(folder: str) -> _Files:
  """Finds the reader and file of each STS set, by name, as `read_sts` describes them.

  Raises:
    UserError: there are none.
  """
  path = user_path(folder)
  tables = [path] if path.is_file() else sorted(path.glob("*.tsv"))
  files = {file.stem: (read_sts_file, file) for file in tables}
  files = files or _senteval_files(path)
  if not files:
    raise UserError(
      f"{folder} holds no .tsv file and is not SentEval's data folder: name a "
      "folder of STS sets"
    )
  return files


def read_sts(folder: str, names: Sequence[str] | None = None) -> dict[str, StsSet]:
  """Reads STS sets: a folder of them, SentEval's own folder, or one file.

  Args:
    folder: holds NAME.tsv files (see `read_sts_file`); or is one such file; or is
      SentEval's `data`, `data/downstream` or `data/downstream/STS`, whose sets
      get the names STS12-test to STS16-test, STSB-SPLIT and SICKR-SPLIT with
      SPLIT train, dev or test.
    names: which of the sets that `find` finds; None means all.

  Raises:
    UserError: there is no such folder, or a file has another form.
  """
  files = find(folder)
  chosen = list(files) if names is None else names
  return {name: files[name][0](files[name][1]) for name in chosen}


def all_splits(sets: dict[str, StsSet], name: str) -> StsSet:
  """Joins the train, dev and test pairs of NAME-all.

  Raises:
    UserError: one of the three is not there.
  """
  parts = [f"{name.removesuffix('-all')}-{split}" for split in ("train", "dev", "test")]
  for part in parts:
    if part not in sets:
      raise UserError(
        f"{name} is train, dev and test together, and {part} is not there: add it"
      )
  return StsSet(
    np.concatenate([sets[part].scores for part in parts]),
    [sentence for part in parts for sentence in sets[part].first],
    [sentence for part in parts for sentence in sets[part].second],
  )


def with_all_of_sickr(sets: dict[str, StsSet]) -> dict[str, StsSet]:
  """Replaces SICKR-test by SICKR-all, with train and dev pairs too, as MTEB does.

  Sets without SICKR-test are returned as they are.

  Raises:
    UserError: SICKR-train or SICKR-dev is not there.
  """
  if "SICKR-test" not in sets:
    return sets
  try:
    whole = all_splits(sets, SICKR_ALL)
  except UserError as error:
    raise UserError(
      f"MTEB's SICK-R: {error}, or choose the SentEval convention"
    ) from error
  renamed = {"SICKR-test": SICKR_ALL}
  return {
    renamed.get(name, name): whole if name in renamed else pairs
    for name, pairs in sets.items()
  }


def is_test(name: str) -> bool:
  """Returns whether a set's name says that it is not for training or choosing."""
  return not name.lower().endswith(("-train", "-dev"))


def averaged_sets(names: Sequence[str]) -> list[str]:
  """Returns the sets whose mean is "avg": the usual seven, if all are there.

  Otherwise it is all but train and dev sets, or these if there is nothing else.
  """
  seven = [n for n in names if n in (*SEVEN_TEST_SETS, SICKR_ALL)]
  if len(seven) == len(SEVEN_TEST_SETS):
    return seven
  return [n for n in names if is_test(n)] or list(names)

"""Transfer tasks: sentences or pairs with labels, and their files."""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import gzip
import pathlib
import re
import zlib

import numpy as np

from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import user_path

TASKS = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")

_SPLITS = ("train", "dev", "test")
FOLDS = 10

# SentEval's files with label 1 and with label 0.
_SENTEVAL_BINARY = {
  "MR": ("rt-polarity.pos", "rt-polarity.neg"),
  "CR": ("custrev.pos", "custrev.neg"),
  "SUBJ": ("subj.objective", "subj.subjective"),
  "MPQA": ("mpqa.pos", "mpqa.neg"),
}


@dataclasses.dataclass(frozen=True)
class Split:
  """Labelled sentences, or pairs of them.

  Attributes:
    labels: [n] strings.
    sentences: one list of n, or two: the first and the second of each pair.
  """

  labels: np.ndarray
  sentences: tuple[list[str], ...]


# The splits by "train", "dev" and "test"; without "test" a task is cross-validated.
Task = dict[str, Split]


def _read_lines(path: pathlib.Path, encoding: str | None = None) -> list[str]:
  """Reads a file's lines, in an encoding or, without one, as UTF-8 or else Latin-1."""
  try:
    content = path.read_bytes()
    if path.suffix == ".gz":
      content = gzip.decompress(content)
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"cannot read {path} ({error}): fetch it again") from error
  try:
    text = content.decode(encoding or "utf-8-sig")
  except UnicodeDecodeError:
    text = content.decode("latin-1")
  return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


Row = tuple[str, ...]  # A label and one sentence or two.


def _table_row(line: str) -> Row | None:
  fields = tuple(line.split("\t"))
  return fields if len(fields) in (2, 3) else None


def _sst_row(line: str) -> Row | None:
  fields = line.strip().split("\t")
  return (fields[1], fields[0]) if len(fields) == 2 else None


def _trec_row(line: str) -> Row | None:
  match = re.fullmatch(r"(\w+):\S+ (.+)", line.strip())
  return match and match.groups()


def _mrpc_row(line: str) -> Row | None:
  fields = line.split("\t")
  return (fields[0], *fields[3:]) if len(fields) == 5 else None


def _read_rows(
  path: pathlib.Path,
  row: Callable[[str], Row | None],
  form: str,
  *,
  header: int = 0,
  encoding: str | None = None,
) -> Split:
  rows = []
  for number, line in enumerate(_read_lines(path, encoding), 1):
    if number <= header:
      continue
    fields = row(line)
    if not fields or not fields[0] or rows and len(fields) != len(rows[0]):
      raise UserError(f"{path}:{number}: expected {form}")
    rows.append(fields)
  if not rows:
    raise UserError(f"{path} holds no row: fetch it again")
  return _split(rows)


def _split(rows: Sequence[Row]) -> Split:
  labels, *sentences = zip(*rows)
  # An empty sentence is a full stop, as in SentEval's examples.
  clean = lambda sentence: " ".join(sentence.split()) or "."
  return Split(np.asarray(labels), tuple(list(map(clean, s)) for s in sentences))


def _read_tables(files: Sequence[pathlib.Path]) -> dict[str, Task]:
  tasks: dict[str, Task] = {}
  for file in files:
    stem = file.name.removesuffix(".gz").removesuffix(".tsv")
    name, _, split = stem.rpartition("-")
    if split not in _SPLITS:
      name, split = stem, "train"
    if split in tasks.setdefault(name, {}):
      raise UserError(f"{file}: {name} has another file for {split}; remove one")
    form = "a label and one sentence or, in every line, two, separated by tabs"
    tasks[name][split] = _read_rows(file, _table_row, form)
  return tasks


def _read_senteval(root: pathlib.Path) -> dict[str, Task]:
  """Reads the tasks whose folders SentEval's `data/downstream` has.

  As in SentEval, all but SST2 and MRPC are read as Latin-1 even where they are UTF-8.
  """
  tasks: dict[str, Task] = {}
  for name, files in _SENTEVAL_BINARY.items():
    if (root / name).is_dir():
      rows = []
      for label, file in zip("10", files):
        lines = _read_lines(root / name / file, "latin-1")
        # Latin-1 has line ends besides \n, and SentEval splits at them too.
        lines = [part for line in lines for part in line.splitlines() or [""]]
        rows += [(label, line) for line in lines]
      tasks[name] = {"train": _split(rows)}
  folder = root / "SST" / "binary"
  if folder.is_dir():
    form = "a sentence and a label, separated by a tab"
    tasks["SST2"] = {
      split: _read_rows(folder / f"sentiment-{split}", _sst_row, form)
      for split in _SPLITS
    }
  folder = root / "TREC"
  if folder.is_dir():
    tasks["TREC"] = {
      split: _read_rows(
        folder / file, _trec_row, "LABEL:fine and a question", encoding="latin-1"
      )
      for split, file in {"train": "train_5500.label", "test": "TREC_10.label"}.items()
    }
  folder = root / "MRPC"
  if folder.is_dir():
    form = "a label, two ids and two sentences, separated by tabs"
    tasks["MRPC"] = {
      split: _read_rows(
        folder / f"msr_paraphrase_{split}.txt", _mrpc_row, form, header=1
      )
      for split in ("train", "test")
    }
  return tasks


def read_transfer(folder: str) -> dict[str, Task]:
  """Reads the transfer tasks of a folder, SentEval's first and in its order.

  Args:
    folder: holds TASK.tsv, or TASK-train.tsv with TASK-test.tsv and perhaps
      TASK-dev.tsv, with `label TAB sentence [TAB second sentence]` lines, perhaps
      gzipped (.tsv.gz); or is SentEval's `data` or `data/downstream`. A task that
      has no file there is left out. A file that is not UTF-8 is read as Latin-1;
      SentEval's own MR, CR, SUBJ, MPQA and TREC always are, as it does.

  Raises:
    UserError: there is no such folder or task, or a file has another form.
  """
  path = user_path(folder)
  tables = sorted([*path.glob("*.tsv"), *path.glob("*.tsv.gz")])
  if tables:
    tasks = _read_tables(tables)
  else:
    tasks = _read_senteval(path / "downstream") or _read_senteval(path)
  if not tasks:
    raise UserError(
      f"{folder} holds no .tsv or .tsv.gz file and is not SentEval's data folder: "
      "name a folder of transfer tasks"
    )
  for name, task in tasks.items():
    _check(f"{folder}: {name}", task)
  order = (*TASKS, *sorted(tasks))
  return {name: tasks[name] for name in dict.fromkeys(order) if name in tasks}


def _check(where: str, task: Task) -> None:
  if "train" not in task or "dev" in task and "test" not in task:
    raise UserError(
      f"{where} has only {' and '.join(task)}: a task is one file without a split "
      "in its name, or train and test and perhaps dev"
    )
  counts = collections.Counter(task["train"].labels.tolist())
  rarest, count = counts.most_common()[-1]
  if len(counts) < 2:
    raise UserError(f"{where} has one label, {rarest!r}: nothing to tell apart")
  if "dev" not in task and count < FOLDS:
    raise UserError(
      f"{where} has too few rows ({count}) with label {rarest!r}: {FOLDS}-fold "
      f"cross-validation needs {FOLDS}"
    )
  for split, rows in task.items():
    if len(rows.sentences) != len(task["train"].sentences):
      raise UserError(f"{where}: {split} and train differ in sentences a row")
    if unknown := set(rows.labels.tolist()) - set(counts):
      raise UserError(f"{where}: {split} has label {min(unknown)!r}, which train lacks")

"""SentEval's transfer tasks: logistic regression on frozen embeddings.

Two classifiers score them. "senteval" is SentEval's own, step by step: the figures of
papers are by it; see `senteval`. "sklearn", the default, is about twice as fast, and a
protocol of its own: its figures are not comparable with the other's. On made-up features
they were 0.2 points lower to 7 higher, most where features differ in size (SentEval does
not scale them) and rows are few.

The splits that a task has say how scikit-learn's is scored:

- one (MR, CR, SUBJ, MPQA): ten stratified folds, each the test set once; the mean.
  C is chosen anew for each by the mean accuracy on the nine others, every one of
  them predicted by a classifier that saw neither it nor the test fold. The
  classifier that is tested saw all nine.
- train and test (TREC, MRPC): C by ten-fold cross-validation on train.
- train, dev and test (SST2): C by accuracy on dev, which is never trained on.

Features are the embedding, or of a pair |u - v| and u * v end to end. Each feature
is brought to mean 0 and standard deviation 1 over the rows trained on, so that it
makes no difference whether a model normalises its embeddings by a common length. C,
the inverse weight of the L2 penalty, is one of 4^-6, 4^-5, ... 1, the smallest of
equally good ones.

References:
  Conneau and Kiela, SentEval, 2018 (arXiv:1803.05449).
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import gzip
import importlib.util
import itertools
import pathlib
import re
import zlib

import numpy as np

from dcse_jax.eval import senteval
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import user_path

# And what tables call them.
CLASSIFIERS = {
  "sklearn": "scikit-learn's logistic regression, not SentEval's own classifier",
  "senteval": "SentEval's own classifier (logistic regression by Adam, ten folds)",
}

TASKS = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")

_SPLITS = ("train", "dev", "test")
_FOLDS = 10
_GRID = tuple(4.0**power for power in range(-6, 1))

# SentEval's files of label 1 and of label 0.
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


# By "train", "dev" and "test"; without "test" it is cross-validated.
Task = dict[str, Split]


# Reading.


def _read_lines(path: pathlib.Path, encoding: str | None = None) -> list[str]:
  """A file's lines, in an encoding or, without one, as UTF-8 or else Latin-1."""
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

  As SentEval does, those but SST2 and MRPC are taken as Latin-1 even where they are
  UTF-8.
  """
  tasks: dict[str, Task] = {}
  for name, files in _SENTEVAL_BINARY.items():
    if (root / name).is_dir():
      rows = []
      for label, file in zip("10", files):
        lines = _read_lines(root / name / file, "latin-1")
        # Latin-1 has line ends besides \n, and SentEval splits at them, too.
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
  """Reads the transfer tasks of a folder, SentEval's in its own order first.

  Args:
    folder: holds TASK.tsv, or TASK-train.tsv with TASK-test.tsv and perhaps
      TASK-dev.tsv, with `label TAB sentence [TAB second sentence]` lines, perhaps
      gzipped (.tsv.gz); or is SentEval's `data` or `data/downstream`. A task that
      has no file there is left out. Files are UTF-8, and one that is not is read as
      Latin-1; of SentEval's own MR, CR, SUBJ, MPQA and TREC all are, as it does.

  Raises:
    UserError: no such folder or task, or a file of another form.
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
  if "dev" not in task and count < _FOLDS:
    raise UserError(
      f"{where} has too few rows ({count}) with label {rarest!r}: {_FOLDS}-fold "
      f"cross-validation needs {_FOLDS}"
    )
  for split, rows in task.items():
    if len(rows.sentences) != len(task["train"].sentences):
      raise UserError(f"{where}: {split} and train differ in sentences a row")
    if unknown := set(rows.labels.tolist()) - set(counts):
      raise UserError(f"{where}: {split} has label {min(unknown)!r}, which train lacks")


# Scoring.


def check_installed() -> None:
  """Raises UserError where there is no scikit-learn."""
  if importlib.util.find_spec("sklearn") is None:
    raise UserError("transfer tasks need scikit-learn: pip install 'dcse_jax[eval]'")


def _predictions(
  features: np.ndarray,
  labels: np.ndarray,
  held_out: Sequence[np.ndarray],
  grid: Sequence[float] = _GRID,
) -> Iterator[list[np.ndarray]]:
  """For each C, the labels predicted for each block [m, F] of held-out features."""
  from sklearn.linear_model import LogisticRegression
  import threadpoolctl  # Comes with scikit-learn.

  mean, deviation = features.mean(axis=0), features.std(axis=0)
  # What varies by rounding alone (MiniLM has three such numbers) is no feature.
  deviation[deviation <= 1e-6 * deviation.max()] = np.inf
  held_out = [(block - mean) / deviation for block in held_out]
  features = (features - mean) / deviation
  # From strong to weak penalty, each from where the last one ended.
  classifier = LogisticRegression(max_iter=1000, warm_start=True)
  # On a busy machine, threads that wait for each other take forty times as long. Set
  # after the import: what is loaded later would not keep to it.
  with threadpoolctl.threadpool_limits(1):
    for c in grid:
      classifier.set_params(C=c).fit(features, labels)
      yield [classifier.predict(block) for block in held_out]


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
  return 100.0 * float(np.mean(predicted == labels))


def _folds(labels: np.ndarray) -> np.ndarray:
  """The fold of each row, [n]; the same for every model."""
  from sklearn.model_selection import StratifiedKFold

  fold = np.zeros(len(labels), int)
  folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
  for i, (_, rows) in enumerate(folds.split(fold, labels)):
    fold[rows] = i
  return fold


def _validate(
  features: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> np.ndarray:
  """Accuracy of each C on dev or, without, by cross-validation on train, [C]."""
  x, y = features["train"], labels["train"]
  if "dev" in features:
    held_out = _predictions(x, y, [features["dev"]])
    return np.asarray([_accuracy(p, labels["dev"]) for (p,) in held_out])
  fold, scores = _folds(y), []
  for i in range(_FOLDS):
    held_out = _predictions(x[fold != i], y[fold != i], [x[fold == i]])
    scores.append([_accuracy(p, y[fold == i]) for (p,) in held_out])
  return np.mean(scores, axis=0)


def _cross_validate(x: np.ndarray, y: np.ndarray) -> float:
  """Nested cross-validation, as the module says; accuracy in percent."""
  fold = _folds(y)
  # [i, j]: on fold j, of a classifier that saw neither i nor j. One serves both.
  inner = np.zeros((_FOLDS, _FOLDS, len(_GRID)))
  for i, j in itertools.combinations(range(_FOLDS), 2):
    seen = (fold != i) & (fold != j)
    pairs = _predictions(x[seen], y[seen], [x[fold == i], x[fold == j]])
    for c, (of_i, of_j) in enumerate(pairs):
      inner[j, i, c] = _accuracy(of_i, y[fold == i])
      inner[i, j, c] = _accuracy(of_j, y[fold == j])
  scores = []
  for i in range(_FOLDS):
    seen, c = fold != i, _GRID[np.argmax(inner[i].sum(axis=0))]
    ((predicted,),) = _predictions(x[seen], y[seen], [x[fold == i]], [c])
    scores.append(_accuracy(predicted, y[fold == i]))
  return float(np.mean(scores))


def _features(embed: Callable[[list[str]], np.ndarray], rows: Split) -> np.ndarray:
  if len(rows.sentences) == 1:
    return embed(rows.sentences[0])
  u, v = map(embed, rows.sentences)
  return np.concatenate([np.abs(u - v), u * v], axis=1)


def _senteval_order(rows: Split, classes: np.ndarray) -> np.ndarray:
  """Its order of rows, which its folds depend on: by words, then by class."""
  words = [[len(s.split()) for s in sentences] for sentences in rows.sentences]
  return np.lexsort([classes, *reversed(words)])


def _score_senteval(
  features: dict[str, np.ndarray], task: Task, dev: bool
) -> tuple[float | None, np.ndarray | None]:
  """What `score_task` scores: an accuracy, or the labels predicted for the test set."""
  names = np.unique(task["train"].labels)
  classes = {s: np.searchsorted(names, task[s].labels) for s in features}
  for split in features.keys() - {"test"}:
    order = _senteval_order(task[split], classes[split])
    features[split] = features[split][order]
    classes[split] = classes[split][order]
  if "test" not in task:
    return senteval.cross_validate(features["train"], classes["train"], dev=dev), None
  accuracy, predicted = senteval.predict(features, classes)
  return (accuracy, None) if dev else (None, names[predicted])


def _score_sklearn(
  features: dict[str, np.ndarray], task: Task, dev: bool
) -> tuple[float | None, np.ndarray | None]:
  labels = {split: task[split].labels for split in features}
  x, y = features["train"], labels["train"]
  if dev:
    return float(_validate(features, labels).max()), None
  if "test" not in task:
    return _cross_validate(x, y), None
  c = _GRID[np.argmax(_validate(features, labels))]
  ((predicted,),) = _predictions(x, y, [features["test"]], [c])
  return None, predicted


def score_task(
  embed: Callable[[list[str]], np.ndarray],
  task: Task,
  *,
  dev: bool = False,
  classifier: str = "sklearn",
) -> dict[str, float]:
  """Trains and tests classifiers on embeddings, as the module says.

  Args:
    embed: from sentences to embeddings [n, D].
    task: as `read_transfer` gives it.
    dev: scores what the penalty is chosen by (the dev set, or else cross-validation
      on train) and leaves the test set alone.
    classifier: one of `CLASSIFIERS`.

  Returns:
    "accuracy" in percent and, of pairs labelled 0 and 1, "f1" of the label 1 in
    percent; with dev only the former.
  """
  # No test set is embedded, let alone scored, where it is not to be looked at.
  splits = {name: rows for name, rows in task.items() if not dev or name != "test"}
  features = {name: _features(embed, rows) for name, rows in splits.items()}
  score = {"sklearn": _score_sklearn, "senteval": _score_senteval}[classifier]
  accuracy, predicted = score(features, task, dev)
  if predicted is None:
    return {"accuracy": accuracy}
  labels = task["test"].labels
  scores = {"accuracy": _accuracy(predicted, labels)}
  if len(task["train"].sentences) == 2 and set(task["train"].labels) == {"0", "1"}:
    told, true = predicted == "1", labels == "1"
    scores["f1"] = 200.0 * float((told & true).sum() / max(told.sum() + true.sum(), 1))
  return scores

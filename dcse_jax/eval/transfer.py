"""SentEval's transfer tasks: logistic regression on frozen embeddings.

There are two classifiers. "senteval" is SentEval's own, step by step, which papers use
for their figures; see `senteval`. "sklearn", the default, is about twice as fast, and a
protocol of its own: its figures are not comparable with the other's. On made-up
features they were 0.2 points lower to 7 higher, most where features differ in size
(SentEval does not scale them) and rows are few.

The splits that a task has say how scikit-learn's is scored:

- one (MR, CR, SUBJ, MPQA): the mean over ten stratified folds, each the test set once.
  C is chosen anew for each by the mean accuracy on the nine others, every one of
  them predicted by a classifier that saw neither it nor the test fold. The
  classifier that is tested saw all nine.
- train and test (TREC, MRPC): C is chosen by ten-fold cross-validation on train.
- train, dev and test (SST2): C is chosen on dev, which is never trained on.

Features are the embedding or, for a pair, |u - v| and u * v end to end. Each feature
is brought to mean 0 and standard deviation 1 over the rows trained on, so that it
makes no difference whether a model scales its embeddings to a common length. C,
the inverse weight of the L2 penalty, is one of 4^-6, 4^-5, ... 1, the smallest of
equally good ones.

References:
  Conneau and Kiela, SentEval, 2018 (arXiv:1803.05449).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import hashlib
import importlib.util
import itertools
from typing import Any, Self

import numpy as np

from dcse_jax.eval import senteval
from dcse_jax.eval.evaluator import Evaluator
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.evaluator import Subject
from dcse_jax.eval.transfer_tasks import FOLDS
from dcse_jax.eval.transfer_tasks import Split
from dcse_jax.eval.transfer_tasks import Task
from dcse_jax.eval.transfer_tasks import read_transfer
from dcse_jax.runtime.errors import UserError

# The classifiers, and what tables call them.
CLASSIFIERS = {
  "sklearn": "scikit-learn's logistic regression, not SentEval's own classifier",
  "senteval": "SentEval's own classifier (logistic regression by Adam, ten folds)",
}
_GRID = tuple(4.0**power for power in range(-6, 1))


def _predictions(
  features: np.ndarray,
  labels: np.ndarray,
  held_out: Sequence[np.ndarray],
  grid: Sequence[float] = _GRID,
) -> Iterator[list[np.ndarray]]:
  """Yields for each C the labels predicted for each block [m, F] of held-out rows."""
  from sklearn.linear_model import LogisticRegression
  import threadpoolctl  # Comes with scikit-learn.

  mean, deviation = features.mean(axis=0), features.std(axis=0)
  # Numbers that vary only by rounding (MiniLM has three) are not features.
  deviation[deviation <= 1e-6 * deviation.max()] = np.inf
  held_out = [(block - mean) / deviation for block in held_out]
  features = (features - mean) / deviation
  # From strong to weak penalty, each starts where the last one ended.
  classifier = LogisticRegression(max_iter=1000, warm_start=True)
  # On a busy machine, threads that wait for each other take forty times as long. The
  # limit comes after the import, since it does not bind what is loaded later.
  with threadpoolctl.threadpool_limits(1):
    for c in grid:
      classifier.set_params(C=c).fit(features, labels)
      yield [classifier.predict(block) for block in held_out]


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
  return 100.0 * float(np.mean(predicted == labels))


def _folds(labels: np.ndarray) -> np.ndarray:
  """Returns the fold of each row, [n]; the same for every model."""
  from sklearn.model_selection import StratifiedKFold

  fold = np.zeros(len(labels), int)
  folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
  for i, (_, rows) in enumerate(folds.split(fold, labels)):
    fold[rows] = i
  return fold


def _validate(
  features: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> np.ndarray:
  """Returns each C's accuracy on dev, or else by cross-validation on train, [C]."""
  x, y = features["train"], labels["train"]
  if "dev" in features:
    held_out = _predictions(x, y, [features["dev"]])
    return np.asarray([_accuracy(p, labels["dev"]) for (p,) in held_out])
  fold, scores = _folds(y), []
  for i in range(FOLDS):
    held_out = _predictions(x[fold != i], y[fold != i], [x[fold == i]])
    scores.append([_accuracy(p, y[fold == i]) for (p,) in held_out])
  return np.mean(scores, axis=0)


def _cross_validate(x: np.ndarray, y: np.ndarray) -> float:
  """Runs nested cross-validation, as the module says; returns accuracy in percent."""
  fold = _folds(y)
  # [i, j]: accuracy on fold j of a classifier that saw neither; it serves [j, i] too.
  inner = np.zeros((FOLDS, FOLDS, len(_GRID)))
  for i, j in itertools.combinations(range(FOLDS), 2):
    seen = (fold != i) & (fold != j)
    pairs = _predictions(x[seen], y[seen], [x[fold == i], x[fold == j]])
    for c, (of_i, of_j) in enumerate(pairs):
      inner[j, i, c] = _accuracy(of_i, y[fold == i])
      inner[i, j, c] = _accuracy(of_j, y[fold == j])
  scores = []
  for i in range(FOLDS):
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
  """Sorts rows as SentEval does, whose folds depend on it: by words, then by class."""
  words = [[len(s.split()) for s in sentences] for sentences in rows.sentences]
  return np.lexsort([classes, *reversed(words)])


def _score_senteval(
  features: dict[str, np.ndarray], task: Task, dev: bool
) -> tuple[float | None, np.ndarray | None]:
  """Returns an accuracy, or the labels predicted for the test set, for `score_task`."""
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
    embed: turns sentences into embeddings [n, D].
    task: from `read_transfer`.
    dev: returns the accuracy that the penalty is chosen by (on the dev set, or else by
      cross-validation on train) and leaves the test set alone.
    classifier: one of `CLASSIFIERS`.

  Returns:
    "accuracy" in percent and, for pairs labelled 0 and 1, "f1" of the label 1 in
    percent; with dev only the former.
  """
  # With dev the test set is not even embedded.
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


@dataclasses.dataclass(frozen=True)
class Transfer(Evaluator):
  """Scores embeddings by classifiers that are trained on them.

  Attributes:
    tasks: the tasks by name.
    options: the command's; with dev, no test set is looked at.
  """

  kind = "transfer"
  form = "DIR"
  about = "Folder of transfer tasks as TSVs, or SentEval's data folder. Repeats."
  measure = "accuracy"

  tasks: dict[str, Task]
  options: Options = Options()

  @classmethod
  def read(cls, places: Sequence[str], options: Options) -> Self:
    """Reads folders of tasks; a UserError also says that scikit-learn is missing."""
    tasks: dict[str, Task] = {}
    for place in places:
      more = read_transfer(place)
      if both := tasks.keys() & more.keys():
        raise UserError(
          f"--transfer {place}: there is a {min(both)} already; rename one"
        )
      tasks |= more
    if importlib.util.find_spec("sklearn") is None:
      raise UserError("transfer tasks need scikit-learn: pip install 'dcse_jax[eval]'")
    return cls(tasks, options)

  @property
  def columns(self) -> tuple[str, ...]:
    """The names of the tasks."""
    return tuple(self.tasks)

  @property
  def sentences(self) -> Iterable[str]:
    """The sentences of all splits that may be looked at."""
    for task in self.tasks.values():
      for split, rows in task.items():
        if not (self.options.dev and split == "test"):
          for column in rows.sentences:
            yield from column

  def score(self, subject: Subject) -> dict[str, float]:
    """Returns each task's accuracy, "avg", and TASK_f1 where `score_task` has one."""
    scores, f1 = {}, {}
    for name, task in self.tasks.items():
      result = score_task(
        subject.embed, task, dev=self.options.dev, classifier=self.options.classifier
      )
      scores[name] = result["accuracy"]
      if "f1" in result:
        f1[f"{name}_f1"] = result["f1"]
    return scores | {"avg": float(np.mean(list(scores.values())))} | f1

  def digest(self, column: str) -> str:
    """Returns a digest of the labels and sentences of a task, or of all tasks."""
    state = hashlib.blake2b(digest_size=16)
    for name, task in self.tasks.items():
      if column in (name, "avg"):
        for split, rows in task.items():
          state.update(
            repr((name, split, rows.labels.tolist(), rows.sentences)).encode()
          )
    return state.hexdigest()

  def describe(self) -> dict[str, Any]:
    """Returns the title, the classifier and the tasks in the mean."""
    of = "validation accuracy" if self.options.dev else "accuracy"
    return {
      "title": (
        f"SentEval's transfer tasks: {of} x 100 on frozen embeddings by "
        f"{CLASSIFIERS[self.options.classifier]}"
      ),
      "classifier": self.options.classifier,
      "averaged": list(self.tasks),
    }

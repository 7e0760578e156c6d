"""What every evaluator offers, offline and while a model trains.

An evaluator is one file with one class, and one line in `registry`. It is read once,
before anything is computed, and then scores any number of models.
"""

import abc
from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import Any, ClassVar, Self

import numpy as np

from dcse_jax.model.model import Model

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
  """What a command may ask of evaluators; each reads what concerns it.

  Attributes:
    dev: only what one may choose by is looked at, never a test set.
    convention: SICK-R by its test pairs ("senteval") or by all its pairs ("mteb").
    classifier: one of `transfer.CLASSIFIERS`.
    alignment_set: the STS set that alignment and uniformity are measured on, or
      STSB-all; None takes STSB-test or, with dev, STSB-dev, where it is there.
    alignment_above: see `sts.paraphrases`.
  """

  dev: bool = False
  convention: str = "senteval"
  classifier: str = "sklearn"
  alignment_set: str | None = None
  alignment_above: float | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to score.

  Attributes:
    model: with its parameters.
    embed: from sentences to embeddings [n, D]; only those that an evaluator lists in
      `sentences` are known.
  """

  model: Model
  embed: Embed


class Evaluator(abc.ABC):
  """Scores models by one kind of data.

  Attributes:
    kind: its name: a config calls it by KIND:PLACE, and the command has a flag --KIND.
    form: what a place is, in capitals.
    about: help for the flag.
    measure: what its scores are, in percent.
    required: fields of `Model` that a model must have for it.
  """

  kind: ClassVar[str]
  form: ClassVar[str]
  about: ClassVar[str]
  measure: ClassVar[str]
  required: ClassVar[tuple[str, ...]] = ()

  @classmethod
  @abc.abstractmethod
  def read(cls, places: Sequence[str], options: Options) -> Self:
    """Reads the data.

    Args:
      places: files or folders, one or more.
      options: of the command; a run's are the defaults but for `dev`.

    Raises:
      UserError: it cannot be read or scored; the message says how to mend it.
    """

  @property
  @abc.abstractmethod
  def columns(self) -> tuple[str, ...]:
    """Names of the scores whose mean is "avg", or that stand beside it."""

  @property
  def sentences(self) -> Iterable[str]:
    """Every sentence that `score` embeds, perhaps repeated."""
    return ()

  @abc.abstractmethod
  def score(self, subject: Subject) -> dict[str, float]:
    """Scores a model.

    Returns:
      By column the score in percent; "avg", which chooses the best model; and
      perhaps others.
    """

  def metric_name(self, column: str) -> str:
    """What a column is called in metrics.jsonl."""
    return f"eval/{self.kind}_{column.lower()}"

  def metrics(self, scores: dict[str, float], subject: Subject) -> dict[str, float]:
    """What a training run writes into metrics.jsonl, by name.

    Args:
      scores: as `score` gives them.
      subject: the model that has them.
    """
    del subject
    return {self.metric_name(column): scores[column] for column in self.columns}

  @abc.abstractmethod
  def digest(self, column: str) -> str:
    """A digest of the data behind a column, or behind all of them for "avg"."""

  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """All of a command's results but the scores, JSON: `title`, `averaged` and more."""


def embed_once(
  encode: Embed, evaluators: Iterable[Evaluator], sentences: Sequence[str] | None = None
) -> Embed:
  """Encodes every sentence of some evaluators once; returns what looks them up.

  Args:
    encode: from sentences to embeddings [n, D].
    evaluators: whose sentences they are.
    sentences: `distinct_sentences` of the evaluators, where they are known.
  """
  if sentences is None:
    sentences = distinct_sentences(evaluators)
  row = {sentence: i for i, sentence in enumerate(sentences)}
  embeddings = encode(sentences) if sentences else np.zeros((0, 1), np.float32)
  return lambda wanted: embeddings[[row[sentence] for sentence in wanted]]


def distinct_sentences(evaluators: Iterable[Evaluator]) -> list[str]:
  """Each sentence of some evaluators once, in their order."""
  return list(dict.fromkeys(s for each in evaluators for s in each.sentences))

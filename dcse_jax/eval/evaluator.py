"""The interface of evaluators, offline and while a model trains.

An evaluator is one file with one class, and one line in `registry`. It reads its data
once, before anything is computed, and then scores any number of models.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
from typing import Any, ClassVar, Self

import numpy as np

from dcse_jax.model.model import Model

Embed = Callable[[Sequence[str]], np.ndarray]
# Turns texts after the named prompt into embeddings [m, D], some thousands at a time.
Stream = Callable[[Iterable[str], str], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Options:
  """Options that a command may set for evaluators; each reads those that concern it.

  Attributes:
    dev: look only at data that models may be chosen by, never at a test set.
    convention: score SICK-R on its test pairs ("senteval") or on all pairs ("mteb").
    classifier: one of `transfer.CLASSIFIERS`.
    alignment_set: the STS set that alignment and uniformity are measured on, or
      STSB-all; None takes STSB-test or, with dev, STSB-dev, if it is there.
    alignment_above: see `sts.paraphrases`.
    bm25: whether retrieval scores BM25 as well, as a row of reference.
    precisions: those that retrieval scores documents in besides, such as "int8".
  """

  dev: bool = False
  convention: str = "senteval"
  classifier: str = "sklearn"
  alignment_set: str | None = None
  alignment_above: float | None = None
  bm25: bool = False
  precisions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to score.

  Attributes:
    model: with its parameters.
    embed: turns sentences into embeddings [n, D]; it only knows those that evaluators
      list in `sentences`.
    stream: turns any texts into embeddings, as many as there may be.
  """

  model: Model
  embed: Embed
  stream: Stream


class Evaluator(abc.ABC):
  """Scores models by one kind of data.

  Attributes:
    kind: its name: a config says KIND:PLACE, and the command has a flag --KIND.
    form: what a place is, in capitals, such as FILE.
    about: the flag's help.
    measure: what its scores, in percent, measure.
    unit: what `score_drawn` draws anew; "" if it draws nothing.
    required: fields of `Model` that a model must have for it.
  """

  kind: ClassVar[str]
  form: ClassVar[str]
  about: ClassVar[str]
  measure: ClassVar[str]
  unit: ClassVar[str] = ""
  required: ClassVar[tuple[str, ...]] = ()

  @classmethod
  @abc.abstractmethod
  def read(cls, places: Sequence[str], options: Options) -> Self:
    """Reads the data.

    Args:
      places: files or folders, one or more.
      options: the command's; those of a training run are the defaults but for `dev`.

    Raises:
      UserError: the data cannot be read or scored; the message says how to mend it.
    """

  @property
  @abc.abstractmethod
  def columns(self) -> tuple[str, ...]:
    """The names of the scores whose mean is "avg", or that stand beside it."""

  @property
  def sentences(self) -> Iterable[str]:
    """Every sentence that `score` embeds, perhaps repeated."""
    return ()

  @abc.abstractmethod
  def score(self, subject: Subject) -> dict[str, float]:
    """Scores a model.

    Returns:
      The score of each column in percent; "avg", which chooses the best model; and
      perhaps others.
    """

  def score_drawn(
    self, subject: Subject, draws: int
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores a model, and once more on each of some drawings of the data.

    A drawing takes as many units as there are, with replacement; draw i is the same for
    every model, so that differences between models are not of the data.

    Args:
      subject: the model.
      draws: how many drawings, 0 for none.

    Returns:
      What `score` returns; and for columns and "avg" the scores of the drawings,
      [draws], none of them where nothing is drawn.
    """
    del draws
    return self.score(subject), {}

  def references(self) -> dict[str, dict[str, float]]:
    """Returns what `score` would of methods without a model, by their names."""
    return {}

  def metric_name(self, column: str) -> str:
    """Returns the name of a column in metrics.jsonl."""
    return f"eval/{self.kind}_{column.lower()}"

  def metrics(self, scores: dict[str, float], subject: Subject) -> dict[str, float]:
    """Returns what a training run writes into metrics.jsonl, by name.

    Args:
      scores: what `score` returned.
      subject: the model that has them.
    """
    del subject
    return {self.metric_name(column): scores[column] for column in self.columns}

  @abc.abstractmethod
  def digest(self, column: str) -> str:
    """Returns a digest of the data behind a column, or behind all for "avg"."""

  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """Returns a command's other results, JSON: `title`, `averaged` and more."""


def draw_counts(number: int, draws: int) -> np.ndarray:
  """Draws some units with replacement, as many as there are; the same at every call.

  Args:
    number: how many units there are.
    draws: how often they are drawn.

  Returns:
    How often each one was taken, [draws, number].
  """
  rng = np.random.default_rng(0)
  return rng.multinomial(number, np.full(number, 1 / number), size=draws)


def embed_once(
  encode: Embed, evaluators: Iterable[Evaluator], sentences: Sequence[str] | None = None
) -> Embed:
  """Encodes every sentence of some evaluators once; returns a function to look them up.

  Args:
    encode: turns sentences into embeddings [n, D].
    evaluators: those that have the sentences.
    sentences: `distinct_sentences` of the evaluators, if they are known already.
  """
  if sentences is None:
    sentences = distinct_sentences(evaluators)
  row = {sentence: i for i, sentence in enumerate(sentences)}
  embeddings = encode(sentences) if sentences else np.zeros((0, 1), np.float32)
  return lambda wanted: embeddings[[row[sentence] for sentence in wanted]]


def distinct_sentences(evaluators: Iterable[Evaluator]) -> list[str]:
  """Lists each sentence of some evaluators once, in their order."""
  return list(dict.fromkeys(s for each in evaluators for s in each.sentences))

"""Measures a model while it trains, and on a probe after."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.eval import diagnostics
from dcse_jax.eval import registry
from dcse_jax.eval.evaluator import Subject
from dcse_jax.eval.evaluator import distinct_sentences
from dcse_jax.eval.evaluator import embed_once
from dcse_jax.losses.terms import Weighted
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model.inference import encode_tokens

# About how many sentences a probe has, in whole batches.
_PROBE_SENTENCES = 512


@dataclasses.dataclass(frozen=True)
class Probe:
  """Batches of sentences on which models are measured.

  Attributes:
    train: the sentences that are trained on first, whole batches end to end.
    held_out: sentences of the dev sets, likewise; empty without sets.
    batch_size: the round's.
    max_length: the round's, in tokens.
  """

  train: list[str]
  held_out: list[str]
  batch_size: int
  max_length: int

  def embed(self, model: model_lib.Model, split: str) -> np.ndarray:
    """Computes a model's embeddings of a split, [n, B, D]."""
    # A teacher may take fewer tokens than the student, here as when it teaches.
    max_length = min(self.max_length, model.config.max_tokens)
    embed = embedder(model, getattr(self, split), max_length)
    return self.batches(embed({"encoder": model.params}))

  def batches(self, embeddings: np.ndarray) -> np.ndarray:
    """Divides embeddings into batches, [n * B, D] to [n, B, D]."""
    return embeddings.reshape(-1, self.batch_size, embeddings.shape[-1])

  def histograms(self, model: model_lib.Model) -> dict[str, Any]:
    """Computes `diagnostics.histograms` of a model."""
    held_out = self.embed(model, "held_out") if self.held_out else None
    return diagnostics.histograms(self.embed(model, "train"), held_out)


def probe_size(num_sentences: int, batch_size: int) -> int:
  """Counts the sentences that a probe takes: whole batches, about 512 or one."""
  wanted = max(_PROBE_SENTENCES // batch_size, 1) * batch_size
  return min(wanted, num_sentences // batch_size * batch_size)


def dev_sentences(dev: Sequence[registry.Named]) -> list[str]:
  """Lists each sentence of evaluators once, mixed: files have pairs side by side."""
  sentences = distinct_sentences(each.evaluator for each in dev)
  order = np.random.default_rng(0).permutation(len(sentences))
  return [sentences[i] for i in order]


def embedder(
  model: model_lib.Model,
  sentences: Sequence[str],
  max_length: int,
  *,
  projected: bool = False,
) -> Callable[[Any], np.ndarray]:
  """Makes a function from trained parameters to embeddings [n, D] of sentences.

  Args:
    model: has the tokenizer, shape, pooling and head that go with the parameters.
    sentences: are tokenised once, at the first call.
    max_length: where to cut them, in tokens.
    projected: whether to apply the training-only projection if there is one.
  """
  tokens: list[list[int]] = []

  def embed(params):
    if not tokens and sentences:
      tokens.extend(model.tokenize(sentences, max_length))
    # Parameters go to the device once, not with every batch.
    on_device = jax.device_put(params["encoder"])
    embeddings = encode_tokens(on_device, model.config, tokens, pooling=model.pooling)
    if projected and "projection" in params:
      projection = params["projection"]
      return np.asarray(encoder_lib.project(projection, model.config, embeddings))
    return model.head(embeddings) if model.head else embeddings

  return embed


class Scorer:
  """A scorer of trained parameters; it encodes each distinct sentence once.

  Evaluators that need a part which the parameters lack are left out.

  Args:
    model: has the tokenizer, shape and pooling that go with the parameters.
    evaluators: those that score; there may be none.
    projected: whether to score what comes out of the training-only projection.
  """

  def __init__(
    self,
    model: model_lib.Model,
    evaluators: Sequence[registry.Named],
    *,
    projected: bool = False,
  ):
    self._model, self._evaluators = model, evaluators
    self._sentences = distinct_sentences(each.evaluator for each in evaluators)
    self._embed = embedder(
      model, self._sentences, model.max_length, projected=projected
    )

  def _measure(self, params: Any) -> Iterator[tuple[int, dict[str, float], Subject]]:
    """Yields each evaluator that can score these, by its place, and its scores."""
    language_model = params.get("language_model")
    model = dataclasses.replace(
      self._model, params=params["encoder"], language_model=language_model
    )
    encode = lambda _: self._embed(params)
    subject = Subject(model, embed_once(encode, (), self._sentences))
    for i, named in enumerate(self._evaluators):
      if all(getattr(model, field) is not None for field in named.evaluator.required):
        yield i, named.evaluator.score(subject), subject

  def scores(self, params: Any) -> list[dict[str, float]]:
    """Returns each evaluator's scores in percent, by name; {} where it is left out."""
    found: list[dict[str, float]] = [{} for _ in self._evaluators]
    for i, scores, _ in self._measure(params):
      columns = self._evaluators[i].columns
      found[i] = {name: scores[column] for name, column in columns.items()}
    return found

  def metrics(self, params: Any) -> dict[str, float]:
    """Returns what evaluators write, and "score", the mean over names, if any."""
    metrics, chosen = {}, []
    for i, scores, subject in self._measure(params):
      named = self._evaluators[i]
      metrics |= named.evaluator.metrics(scores, subject)
      chosen += [scores[column] for column in named.columns.values()]
    if chosen:
      metrics["score"] = float(np.mean(chosen))
    return metrics


class HeldOut:
  """A measure of terms' losses on a probe, without dropout or randomness.

  Args:
    model: has the tokenizer, shape and pooling that go with the parameters.
    probe: the sentences.
    terms: those that have a held-out measure.
    teachers: the teachers' joint embeddings of the probe, [n, B, E], by split.
  """

  def __init__(
    self,
    model: model_lib.Model,
    probe: Probe,
    terms: Sequence[Weighted],
    teachers: dict[str, np.ndarray],
  ):
    self._probe, self._terms, self._teachers = probe, terms, teachers
    self._embed = {
      # Losses see the projection, here as in training.
      split: embedder(model, getattr(probe, split), probe.max_length, projected=True)
      for split in teachers
    }

  def metrics(self, params: Any) -> dict[str, float]:
    """Returns "eval/TERM_train" and, if there are such, "eval/TERM_held_out", in nats."""
    result = {}
    for split, embed in self._embed.items():
      batches = self._probe.batches(embed(params))
      for each in self._terms:
        values = []
        for anchors, teacher in zip(batches, self._teachers[split]):
          arrays = {"anchors": jnp.asarray(anchors), "teacher": jnp.asarray(teacher)}
          arrays |= {f"all_{name}": array for name, array in arrays.items()}
          values.append(each.term.held_out(arrays, each.settings))
        result[f"eval/{each.term.name}_{split}"] = float(np.mean(values))
    return result

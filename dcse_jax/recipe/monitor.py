"""What a model is measured by while it trains, and what is kept of it after."""

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

# Sentences of a probe, in as many whole batches as they fill.
_PROBE_SENTENCES = 512


@dataclasses.dataclass(frozen=True)
class Probe:
  """Sentences in batches, to look at a model with.

  Attributes:
    train: what it trains on first, whole batches end to end.
    held_out: from the dev sets, likewise; empty without sets.
    batch_size: of the round.
    max_length: of the round, in tokens.
  """

  train: list[str]
  held_out: list[str]
  batch_size: int
  max_length: int

  def embed(self, model: model_lib.Model, split: str) -> np.ndarray:
    """Embeddings by a model, [n, B, D]."""
    # As when it teaches: a teacher may take fewer tokens than the student.
    max_length = min(self.max_length, model.config.max_tokens)
    embed = embedder(model, getattr(self, split), max_length)
    return self.batches(embed({"encoder": model.params}))

  def batches(self, embeddings: np.ndarray) -> np.ndarray:
    """[n * B, D] to [n, B, D]."""
    return embeddings.reshape(-1, self.batch_size, embeddings.shape[-1])

  def histograms(self, model: model_lib.Model) -> dict[str, Any]:
    """`diagnostics.histograms` of a model."""
    held_out = self.embed(model, "held_out") if self.held_out else None
    return diagnostics.histograms(self.embed(model, "train"), held_out)


def probe_size(num_sentences: int, batch_size: int) -> int:
  """Counts the sentences that a probe takes: whole batches, about 512 or one."""
  wanted = max(_PROBE_SENTENCES // batch_size, 1) * batch_size
  return min(wanted, num_sentences // batch_size * batch_size)


def dev_sentences(dev: Sequence[registry.Named]) -> list[str]:
  """Each sentence of evaluators once, mixed: pairs lie side by side in a file."""
  sentences = distinct_sentences(each.evaluator for each in dev)
  order = np.random.default_rng(0).permutation(len(sentences))
  return [sentences[i] for i in order]


def embedder(
  model: model_lib.Model,
  sentences: Sequence[str],
  max_length: int,
  *,
  heads: Sequence[str] = (),
) -> Callable[[Any], np.ndarray]:
  """Makes a function from trained parameters to embeddings [n, D] of sentences.

  Args:
    model: whose tokenizer, shape, pooling and head the parameters have.
    sentences: tokenised once, at the first call.
    max_length: cuts them, in tokens.
    heads: names of parts that are trained along, to apply in this order where there
      are such: "projection", "teacher_map".
  """
  tokens: list[list[int]] = []

  def embed(params):
    if not tokens and sentences:
      tokens.extend(model.tokenize(sentences, max_length))
    # Once, not with every batch.
    on_device = jax.device_put(params["encoder"])
    embeddings = encode_tokens(on_device, model.config, tokens, pooling=model.pooling)
    if model.head:
      return model.head(embeddings)
    for head in (name for name in heads if name in params):
      if head == "projection":
        embeddings = encoder_lib.project(params[head], model.config, embeddings)
      else:
        embeddings = embeddings @ params[head]["kernel"] + params[head]["bias"]
    return np.asarray(embeddings)

  return embed


class Scorer:
  """Scores trained parameters by evaluators; each distinct sentence is encoded once.

  Those that need a part which the parameters lack are left out.

  Args:
    model: whose tokenizer, shape and pooling the parameters have.
    evaluators: may be none.
    keep_head: scores what comes out of the heads that are trained along.
  """

  def __init__(
    self,
    model: model_lib.Model,
    evaluators: Sequence[registry.Named],
    *,
    keep_head: bool = False,
  ):
    self._model, self._evaluators = model, evaluators
    self._sentences = distinct_sentences(each.evaluator for each in evaluators)
    heads = ("projection", "teacher_map") if keep_head else ()
    self._embed = embedder(model, self._sentences, model.max_length, heads=heads)

  def _measure(self, params: Any) -> Iterator[tuple[int, dict[str, float], Subject]]:
    """Yields the place of each evaluator that can measure these, and its scores."""
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
    """Scores in percent by name for each evaluator; empty where it is left out."""
    found: list[dict[str, float]] = [{} for _ in self._evaluators]
    for i, scores, _ in self._measure(params):
      columns = self._evaluators[i].columns
      found[i] = {name: scores[column] for name, column in columns.items()}
    return found

  def metrics(self, params: Any) -> dict[str, float]:
    """What evaluators write, and "score", the mean over names; none without any."""
    metrics, chosen = {}, []
    for i, scores, subject in self._measure(params):
      named = self._evaluators[i]
      metrics |= named.evaluator.metrics(scores, subject)
      chosen += [scores[column] for column in named.columns.values()]
    if chosen:
      metrics["score"] = float(np.mean(chosen))
    return metrics


class HeldOut:
  """The losses of terms on a probe, without dropout and chance.

  Args:
    model: whose tokenizer, shape and pooling the parameters have.
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
      # As trained: losses see the projection.
      split: embedder(
        model, getattr(probe, split), probe.max_length, heads=("projection",)
      )
      for split in teachers
    }

  def metrics(self, params: Any) -> dict[str, float]:
    """In nats, "eval/TERM_train" and "eval/TERM_held_out" if there is such."""
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

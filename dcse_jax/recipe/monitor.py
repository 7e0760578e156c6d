"""Scores of a model by evaluators, while it trains and after."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from dcse_jax.eval import registry
from dcse_jax.eval.evaluator import Subject
from dcse_jax.eval.evaluator import distinct_sentences
from dcse_jax.eval.evaluator import embed_once
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model.inference import chunks
from dcse_jax.model.inference import encode_tokens


def _embed(
  model: model_lib.Model,
  params: Any,
  encoder: encoder_lib.Params,
  tokens: Sequence[Sequence[int]],
  heads: Sequence[str],
) -> np.ndarray:
  """Computes embeddings of token ids; `encoder` is params["encoder"] on the device."""
  embeddings = encode_tokens(
    encoder, model.config, tokens, pooling=model.pooling, left_out=model.left_out
  )
  embeddings = model.finish(embeddings, normalize=False)
  for head in (name for name in heads if name in params):
    if head == "projection":
      embeddings = encoder_lib.project(params[head], model.config, embeddings)
    else:
      embeddings = embeddings @ params[head]["kernel"] + params[head]["bias"]
  return np.asarray(embeddings)


def embedder(
  model: model_lib.Model,
  sentences: Sequence[str],
  max_length: int,
  *,
  heads: Sequence[str] = (),
) -> Callable[[Any], np.ndarray]:
  """Makes a function from trained parameters to embeddings [n, D] of sentences.

  Args:
    model: has the tokenizer, shape, pooling and head that go with the parameters.
    sentences: are tokenised once, at the first call.
    max_length: where to cut them, in tokens.
    heads: names of parts that are trained along, "projection" and "teacher_map", to
      apply in this order where there are any.
  """
  tokens: list[list[int]] = []

  def embed(params):
    if not tokens and sentences:
      tokens.extend(model.tokenize(sentences, max_length))
    # Parameters go to the device once, not with every batch.
    return _embed(model, params, jax.device_put(params["encoder"]), tokens, heads)

  return embed


class Scorer:
  """A scorer of trained parameters; it encodes each distinct sentence once.

  Evaluators that need a part which the parameters lack are left out.

  Args:
    model: has the tokenizer, shape and pooling that go with the parameters.
    evaluators: those that score; there may be none.
    keep_head: whether to score what comes out of the heads that are trained along.
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
    self._heads = ("projection", "teacher_map") if keep_head else ()
    self._embed = embedder(model, self._sentences, model.max_length, heads=self._heads)

  def _stream(
    self, params: Any, texts: Iterable[str], prompt_name: str
  ) -> Iterator[np.ndarray]:
    """Yields embeddings of any texts, tokenised as they come: see `evaluator.Stream`."""
    model = self._model.with_prompt(prompt_name)
    encoder = jax.device_put(params["encoder"])
    for chunk in chunks(texts):
      tokens = model.tokenize(chunk, model.max_length)
      yield _embed(model, params, encoder, tokens, self._heads)

  def _measure(self, params: Any) -> Iterator[tuple[int, dict[str, float], Subject]]:
    """Yields each evaluator that can score these, by its place, and its scores."""
    language_model = params.get("language_model")
    model = dataclasses.replace(
      self._model, params=params["encoder"], language_model=language_model
    )
    encode = lambda _: self._embed(params)
    stream = functools.partial(self._stream, params)
    subject = Subject(model, embed_once(encode, (), self._sentences), stream)
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

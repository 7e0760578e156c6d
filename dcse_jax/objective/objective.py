"""The objective of a round: a weighted sum of the terms of `losses`.

An objective computes what its terms ask for and nothing else, by asking each of
`inputs.PROVIDERS` in turn. First sentences are encoded, microbatch by microbatch, and
terms of single tokens are computed there, whose arrays are then forgotten; after that
the embeddings of the whole batch are compared, chunk of rows by chunk of rows.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from dcse_jax import losses
from dcse_jax.losses.terms import Weighted
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.chunks import Chunks
from dcse_jax.model.flops import encode_flops
from dcse_jax.objective.inputs import PROVIDERS
from dcse_jax.objective.inputs import Provider
from dcse_jax.objective.inputs import Sentences
from dcse_jax.objective.inputs import Size
from dcse_jax.objective.inputs import Start
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.matryoshka import sum_over_widths
from dcse_jax.objective.matryoshka import validate_widths
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import stacks as stacks_lib

# The place of a head is part of its seed.
_HEADS = (
  "projection",
  "language_model",
  "discriminator",
  "predictor",
  "teacher_map",
)
_OF_TOKENS = tuple(n for p in PROVIDERS if p.of_tokens for n in p.offers)
# Each row has its own labels.
_OF_STEP = tuple(n for p in PROVIDERS for n in p.of_step if n != "labels")
# Providers of the whole batch build on these, whether a term asks for them or not.
_BUILT_UPON = ("anchors", "positives", "served")


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """A loss function for `step.make_train_step`, and what it trains.

  Attributes:
    terms: with their weights and settings.
    config: the student's.
    pooling: the student's.
    dtype: that of the matrix products.
    stacks: the teachers.
    mask_token_id: the id of [MASK]; only needed for masked tokens.
    special_token_ids: [CLS], [SEP] and the like, which are never masked.
    tokenizer_size: how many tokens the tokenizer has, from which random words are
      drawn; None: as many as the table of embeddings has rows.
    microbatches: how the encoding is divided; loss and gradient are the same. The
      step's packing then has a group for each microbatch on each device.
    row_chunks: how the comparing is divided; loss and gradient are the same.
    widths: how many first numbers of embeddings are compared, each with the weight of
      the terms then; () compares whole embeddings alone.
    keep_head: whether heads that are trained along are evaluated and exported.
    text: the sum as it was written, for errors.
  """

  terms: tuple[Weighted, ...]
  config: encoder_lib.EncoderConfig
  pooling: str
  dtype: Any = jnp.float32
  stacks: Sequence[stacks_lib.TeacherStack | stacks_lib.CachedTeachers] = ()
  mask_token_id: int | None = None
  special_token_ids: tuple[int, ...] = ()
  tokenizer_size: int | None = None
  microbatches: Chunks = Chunks()
  row_chunks: Chunks = Chunks()
  widths: tuple[tuple[int, float], ...] = ()
  keep_head: bool = False
  text: str = ""

  # What providers ask for.

  @functools.cached_property
  def inputs(self) -> tuple[str, ...]:
    """The names that the terms ask for, without "all_"."""
    return losses.inputs_of(self.terms)

  def asks_for(self, names: Sequence[str]) -> bool:
    """Returns whether a term asks for one of these names."""
    return any(name in self.inputs for name in names)

  @property
  def has_views(self) -> bool:
    """Whether anything needs embeddings of the batch's sentences."""
    return any(p.needs_views and self.asks_for(p.offers) for p in PROVIDERS)

  @property
  def has_pairs(self) -> bool:
    """Whether anything needs a second view of a sentence, or its positive."""
    return any(p.needs_pairs and self.asks_for(p.offers) for p in PROVIDERS) or (
      self.asks_for(("positives",))
    )

  @property
  def teacher_size(self) -> int:
    """The width of the teachers' joint embedding."""
    return sum(stack.size for stack in self.stacks)

  def setting(self, name: str) -> Any:
    """Returns the value of a setting that one term has, or several with one value."""
    values = [each.settings[name] for each in self.terms if name in each.settings]
    if any(value != values[0] for value in values):
      raise UserError(f"terms of one objective must have one {name}, not {values}")
    return values[0]

  def settings_of(self, name: str) -> Mapping[str, Any]:
    """Returns the settings of the term that asks for a name."""
    asks = lambda each: {name, f"all_{name}"} & set(each.term.inputs)
    return next(each.settings for each in self.terms if asks(each))

  def project(self, params: Any, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Applies the training-only projection to embeddings, where there is one."""
    if "projection" not in params:
      return arrays
    project = functools.partial(encoder_lib.project, params["projection"], self.config)
    return {name: project(value) for name, value in arrays.items()}

  def prepared(self, sentences: Sentences, prefix: str) -> dict[str, jax.Array]:
    """Returns what a provider prepared for a microbatch, without its prefix."""
    return {
      name.removeprefix(prefix): value
      for name, value in sentences.rows.items()
      if name.startswith(prefix)
    }

  def validate_width(self, name: str, start: Start) -> str:
    """Says what is wrong if embeddings are not as wide as states; else ""."""
    if start.pooled_size == self.config.hidden_size:
      return ""
    return (
      f"{name} are of embeddings as wide as the encoder's states, and {start.name} is "
      f"pooled by {self.pooling}: use a model with one pooling"
    )

  def embedding_flops(self, size: Size, sentences: int) -> float:
    """Counts FLOPs from sentences to their embeddings, projection included."""
    flops = encode_flops(self.config, self.pooling, sentences=sentences, **size.lengths)
    if pooling_lib.get(self.pooling).projected:
      flops += 2 * sentences * self.config.hidden_size**2
    return flops

  # Before training.

  @property
  def _asked(self) -> list[Provider]:
    return [provider for provider in PROVIDERS if provider.is_asked(self)]

  def validate(self, start: Start) -> str:
    """Says why a round that begins at a start cannot have this objective, or ""."""
    problems = (provider.validate(self, start) for provider in self._asked)
    return next(filter(None, problems), "") or validate_widths(self, start)

  def init_params(
    self,
    encoder: encoder_lib.Params,
    rng: jax.Array,
    language_model: encoder_lib.Params | None = None,
  ) -> Any:
    """Makes the parameters to train: the encoder, and the heads that the terms need.

    Args:
      encoder: the one to start from.
      rng: draws the heads.
      language_model: a head to start from, if there is one.
    """
    init = lambda name, module: encoder_lib.init_params(
      self.config, jax.random.fold_in(rng, _HEADS.index(name)), module
    )
    parts = (p.init_params(self, encoder, init, language_model) for p in self._asked)
    return _join({"encoder": encoder}, parts)

  def frozen_params(
    self, encoder: encoder_lib.Params, language_model: encoder_lib.Params | None
  ) -> dict[str, Any]:
    """Returns parameters that are read but not trained, by name, without teachers.

    Args:
      encoder: the one that training starts from.
      language_model: its head.
    """
    return _join(
      {}, (p.frozen_params(self, encoder, language_model) for p in self._asked)
    )

  def init_carry(self) -> dict[str, Any]:
    """Makes what is handed to the first step besides the parameters."""
    return _join({}, (provider.init_carry(self) for provider in self._asked))

  @property
  def corpus_settings(self) -> dict[str, Mapping[str, Any]]:
    """The settings of what `corpus.Corpus` joins to batches, by its name there."""
    return _join({}, (provider.corpus_settings(self) for provider in self._asked))

  def abstract_batch(self, batch: int, columns: int, length: int) -> dict[str, Any]:
    """Returns the shapes of what a batch of rows holds besides tokens and ids."""
    shapes = (p.abstract_batch(self, batch, columns, length) for p in self._asked)
    return _join({}, shapes)

  def flops(self, size: Size) -> float:
    """Counts the model FLOPs of a training step of one model, on all devices together.

    It counts matrix products, a multiplication and an addition each: three times for
    what is trained (forward, and the gradients of inputs and of weights), and once for
    what is frozen; and the products of [B, D] embeddings, 2 B^2 D each, one for each
    `all_...` embedding that a term takes. It does not count dropout, normalisation,
    padding where the lengths are known, microbatches' second forward pass, and small
    parts of some terms: products with a queue or with other layers, a predictor.
    """
    trained, frozen = map(sum, zip(*(p.flops(self, size) for p in self._asked)))
    compared = {f"all_{name}": 1 for p in PROVIDERS for name in p.compared}
    compared["all_negatives"] = max(0, size.columns - 2)
    asked = (name for each in self.terms for name in each.term.inputs)
    products = sum(compared.get(name, 0) for name in asked)
    numbers = sum(width for width, _ in self.widths) or self.config.hidden_size
    trained += products * 2 * size.batch**2 * numbers
    return 3 * trained + frozen

  # In a step.

  def __call__(
    self, params: Any, inputs: StepInputs
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the objective of a batch.

    Args:
      params: made by `init_params`.
      inputs: everything else.

    Returns:
      The loss, a scalar, and scalars by name: each term's mean over the batch, and what
      providers count (for masked tokens `accuracy`, the share that is guessed right) or
      report.
      If anything is to be handed to the next step, `carry` holds it.
    """
    rows = {name: inputs.batch[name] for name in ("input_ids", "attention_mask")}
    rows = _join(rows, (provider.prepare(self, inputs) for provider in self._asked))
    packing = self.microbatches.packing_of_chunk(inputs.packing)

    def embed(rows, row_ids):
      return self._embed(
        Sentences(params, inputs.frozen, rows, row_ids, inputs.rng, packing)
      )

    offered, values, counts = self.microbatches.map(embed, rows)
    of_step = {}
    for provider in self._asked:
      for name, value in provider.join(self, params, inputs, offered).items():
        (of_step if name in provider.of_step else offered)[name] = value
    compared = lambda terms, offered, of_step: compare(
      terms,
      offered,
      jax.random.fold_in(inputs.rng, 2),
      of_step=of_step,
      row_chunks=self.row_chunks,
    )
    if self.widths:
      values |= sum_over_widths(compared, self.terms, offered, of_step, self.widths)
    else:
      values |= compared(self.terms, offered, of_step)
    parts = {name: jnp.mean(value) for name, value in values.items()}
    loss = sum(each.weight * parts[each.term.name] for each in self.terms)
    for name, (hits, trials) in counts.items():
      parts[name] = jnp.sum(hits) / jnp.maximum(jnp.sum(trials), 1)
    parts = _join(parts, (provider.report(of_step) for provider in self._asked))
    if carry := _join({}, (p.carry(inputs, offered) for p in self._asked)):
      parts["carry"] = carry
    return loss, parts

  def _embed(self, sentences: Sentences):
    """Computes a microbatch's arrays, and the terms and counts of single tokens."""
    offered, values, counts = {}, {}, {}
    for provider in self._asked:
      arrays = provider.embed(self, sentences, offered)
      if not provider.of_tokens:
        offered |= arrays
        continue
      takes = lambda term, p=provider: any(name in term.inputs for name in p.offers)
      values |= _evaluate(self.terms, takes, arrays)
      counts |= provider.count(arrays)
    asked = [n for n in offered if n in self.inputs or n in _BUILT_UPON]
    return {name: offered[name] for name in asked}, values, counts


def _join(first: dict[str, Any], parts) -> dict[str, Any]:
  """Joins dictionaries into one, in their order."""
  joined = dict(first)
  for part in parts:
    joined |= part
  return joined


def _is_whole(term: losses.Term) -> bool:
  """Returns whether a term takes only inputs of the whole batch."""
  return all(name.startswith("all_") or name in _OF_STEP for name in term.inputs)


def _is_by_row(term: losses.Term) -> bool:
  is_of_tokens = any(name in term.inputs for name in _OF_TOKENS)
  return not is_of_tokens and not _is_whole(term)


def compare(
  terms: Sequence[Weighted],
  offered: Mapping[str, jax.Array],
  rng: jax.Array,
  *,
  of_step: Mapping[str, Any] | None = None,
  row_chunks: Chunks = Chunks(),
) -> dict[str, jax.Array]:
  """Computes the terms that compare the sentences of a batch.

  Args:
    terms: terms of single tokens among them are left out.
    offered: arrays with a row for each sentence, [B, ...].
    rng: a key.
    of_step: the other inputs that a step offers.
    row_chunks: how the rows are divided; the values are the same.

  Returns:
    The values of each term, [B], by name.
  """
  rngs = jax.random.split(rng, len(terms))
  # This gathers once, and not in every turn of the loop over chunks.
  gather = mesh_lib.whole if row_chunks.number > 1 else lambda x: x
  every = {f"all_{name}": gather(value) for name, value in offered.items()}
  every |= of_step or {}
  asked = [name for each in terms for name in each.term.inputs]
  rows = {name: value for name, value in offered.items() if name in asked}

  def evaluate(rows, row_ids):
    if row_ids is None:
      row_ids = jnp.arange(len(jax.tree.leaves(rows)[0]))
    given = {**every, **rows, "labels": row_ids}
    return _evaluate(terms, _is_by_row, given, rngs)

  values = row_chunks.map(evaluate, rows) if rows else {}
  return values | _evaluate(terms, _is_whole, every, rngs)


def _evaluate(terms, kind, given, rngs=None) -> dict[str, jax.Array]:
  """Computes the terms of a kind, each [b]."""
  values = {}
  for i, each in enumerate(terms):
    if not kind(each.term):
      continue
    everything = given if rngs is None else {**given, "rng": rngs[i]}
    arguments = {name: everything[name] for name in each.term.required}
    arguments |= {name: everything.get(name) for name in each.term.optional}
    values[each.term.name] = each.term.fn(**arguments, **each.settings)
  return values

"""What a round trains on: a weighted sum of the terms of `losses`.

An objective computes what its terms ask for and nothing else. In the order of the
data: sentences are encoded, microbatch by microbatch, and what concerns single
tokens is lost and forgotten there; the embeddings of the whole batch are then
compared, block of rows by block of rows.

What a step offers, each with a row for each sentence of the batch:

  anchors, positives     two views after the projection, [B, D]: the first column
                         twice under independent dropout, or two columns
  negatives              the third column, [B, D], if there is one
  undropped              the first view without dropout, [B, D]
  layers                 the first view of earlier layers, [B, L, D], which the
                         term's setting `layers` counts from 1
  predictions            what a small network, trained along, makes of the anchors,
                         [B, D]
  teacher                `stacks.teacher_embeddings`, [B, E], if there are teachers
  input_ids, attention_mask
                         of the first column, [B, S]
  clusters, confidence   its clusters and how sure they are, [B, G]; see `corpus`
  retrieved, retrieved_id, sentence_id
                         a near neighbour of it, with dropout, [B, D], and the
                         numbers of both, [B], equal for equal sentences; see
                         `corpus`
  masked_logits, masked_labels, is_masked
                         of masked tokens, [B, K, V] and [B, K]: of the first view, or
                         of two side by side as the term's `masked_views` says
  replaced_logits, is_replaced, is_token
                         of the first view with words that a frozen language model
                         filled in, [B, S]; or of two side by side: see the term

and of the step itself

  own                    the row of the batch that each row is, [b]
  rng                    a key, another for each term and step
  progress               the share of the training that is done, in [0, 1]
  queue, is_queued       positives of earlier batches, the latest first, without
                         gradient, [Q, D], and which of them there are, [Q]; Q is
                         the term's setting `queue_size`
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.losses.terms import Weighted
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.chunks import Blocks
from dcse_jax.model.model import Model
from dcse_jax.model.packing import Packing
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import stacks as stacks_lib

Batch = Mapping[str, Any]

# These are sequences, as whatever a program is traced from must be: sets have another
# order in each process, and the program would have, too.
_VIEWS = ("anchors", "positives", "negatives")
_PROJECTED = (*_VIEWS, "undropped", "layers", "retrieved")
# What comes with the batch as terms take it.
_FROM_BATCH = ("sentence_id", "clusters", "confidence", "retrieved_id")
_MASKED = ("masked_logits", "masked_labels", "is_masked")
_REPLACED = ("replaced_logits", "is_replaced", "is_token")
# What needs the views.
_EMBEDDED = (*_PROJECTED, *_REPLACED, "predictions", "queue")

# Devlin et al.: 15 % of tokens are predicted; of these 80 % are masked, 10 %
# replaced by any token, 10 % left.
PREDICTED, _MASK, _REPLACE = 0.15, 0.8, 0.1
# Their places are part of the seed of each.
_HEADS = ("projection", "language_model", "discriminator", "predictor")
_ALWAYS = (1.0, 0.0)  # Every one is masked.

# Three kinds of terms. Some see tokens, which are gone when the batch is together;
# some see rows and whatever else; some see the whole batch only, and at once.


def _by_masked(term: losses.Term) -> bool:
  return any(name in term.takes for name in _MASKED)


def _by_replaced(term: losses.Term) -> bool:
  return any(name in term.takes for name in _REPLACED)


def _whole(term: losses.Term) -> bool:
  of_step = ("rng", "progress", "queue", "is_queued")
  return all(name.startswith("all_") or name in of_step for name in term.takes)


def _by_row(term: losses.Term) -> bool:
  return not (_by_masked(term) or _by_replaced(term) or _whole(term))


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """A loss function for `step.make_train_step`, and what it trains.

  Attributes:
    terms: weights and settings.
    config: of the student.
    pooling: of the student.
    dtype: of the matrix products.
    stacks: the teachers.
    mask_token_id: of [MASK]; needed for masked tokens alone.
    special_token_ids: never masked, [CLS], [SEP] and the like.
    microbatches: how sentences are encoded; loss and gradient are the same.
      `packing` then has a group for each of them on each device.
    row_blocks: how similarities are compared; loss and gradient are the same.
  """

  terms: tuple[Weighted, ...]
  config: encoder_lib.EncoderConfig
  pooling: str
  dtype: Any = jnp.float32
  stacks: Sequence[stacks_lib.TeacherStack | stacks_lib.CachedTeachers] = ()
  mask_token_id: int | None = None
  special_token_ids: tuple[int, ...] = ()
  microbatches: Blocks = Blocks()
  row_blocks: Blocks = Blocks()

  @functools.cached_property
  def _takes(self) -> tuple[str, ...]:
    return losses.taken(self.terms)

  def _takes_any(self, names: Sequence[str]) -> bool:
    return any(name in self._takes for name in names)

  def init_params(
    self,
    encoder: encoder_lib.Params,
    rng: jax.Array,
    language_model: encoder_lib.Params | None = None,
  ) -> Any:
    """What is trained: the encoder, and the heads that the terms need.

    Args:
      encoder: to start from.
      rng: of the heads.
      language_model: a head to start from, if there is one.
    """
    params = {"encoder": encoder}
    init = lambda name, module: encoder_lib.init_params(
      self.config, jax.random.fold_in(rng, _HEADS.index(name)), module
    )
    if self.pooling == "cls" and self._takes_any(_EMBEDDED):
      params["projection"] = init("projection", encoder_lib.Projection)
    if self._takes_any(_MASKED):
      params["language_model"] = language_model or init(
        "language_model", encoder_lib.LanguageModelHead
      )
    if self._takes_any(_REPLACED):
      head = init("discriminator", encoder_lib.TokenHead)
      params["discriminator"] = {"encoder": encoder, "head": head}
    if "predictions" in self._takes:
      params["predictor"] = init("predictor", encoder_lib.Predictor)
    return params

  def frozen_params(
    self, encoder: encoder_lib.Params, language_model: encoder_lib.Params | None
  ) -> tuple[Any, ...]:
    """What is read but not trained, beside teachers: it follows their parameters.

    Args:
      encoder: that training starts from.
      language_model: its head.
    """
    if not self._takes_any(_REPLACED):
      return ()
    return ({"encoder": encoder, "language_model": language_model},)

  def init_memory(self) -> dict[str, Any]:
    """What a step hands to the next, beside what is trained."""
    if "queue" not in self._takes:
      return {}
    size = self._setting("queue_size")
    return {
      "queue": np.zeros((size, self.config.hidden_size), np.float32),
      "queued": np.zeros((), np.int32),
    }

  @property
  def corpus_settings(self) -> dict[str, Mapping[str, Any]]:
    """Of the terms that ask for what `corpus.Corpus` knows, by its name there."""
    return {
      name: each.settings
      for each in self.terms
      for name in ("clusters", "retrieved")
      if {name, f"all_{name}"} & set(each.term.takes)
    }

  def _setting(self, name: str) -> Any:
    """Of the one term that has it."""
    values = [each.settings[name] for each in self.terms if name in each.settings]
    if any(value != values[0] for value in values):
      raise UserError(f"terms of one objective must have one {name}, not {values}")
    return values[0]

  def __call__(
    self,
    params: Any,
    batch: Batch,
    rng: jax.Array,
    teacher_params: Any,
    packing: Packing | None = None,
    memory: Mapping[str, jax.Array] | None = None,
    progress: jax.Array | float = 0.0,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The objective of a batch.

    Args:
      params: as `init_params` makes them.
      batch: `input_ids` and `attention_mask`, [B, C, S]. One column is encoded
        twice under independent dropout; of more, the first is the anchor, the
        second the positive, the third a hard negative. Stacks may ask for more:
        see `stacks.teacher_embeddings`.
      rng: the step's key.
      teacher_params: of each stack, and `frozen_params`.
      packing: of the batch; None leaves the padding in. The loss is the same.
      memory: what the step before gave; at first `init_memory`.
      progress: of the training, in [0, 1].

    Returns:
      The loss, and by name the mean of each term over the batch; with masked
      tokens also `accuracy`, the share of them whose best guess is right; scalars.
      With a queue also `memory`, for the next step.
    """
    packing = self.microbatches.packing_of_block(packing)
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    generator = None
    if self._takes_any(_MASKED):
      views = self._setting("masked_views")
      rows |= self._mask_views(batch, jax.random.fold_in(rng, 1), PREDICTED, views)
    if self._takes_any(_REPLACED):
      share, key = self._setting("mask_probability"), jax.random.fold_in(rng, 6)
      if self._setting("edits") == "published":
        edited = self._mask_views(batch, key, share, 2)
      else:
        edited = self._mask_views(batch, key, share, 1, _ALWAYS)
      rows |= {f"edited_{name}": value for name, value in edited.items()}
      generator = jax.lax.stop_gradient(teacher_params[-1])
    if "retrieved" in self._takes:
      rows |= {n: batch[n] for n in ("retrieved_input_ids", "retrieved_mask")}

    def of_sentences(rows, numbers):
      return self._of_sentences(params, rows, numbers, rng, packing, generator)

    offered, values, counts = self.microbatches.map(of_sentences, rows)
    if "predictions" in self._takes:
      offered["predictions"] = encoder_lib.predict(
        params["predictor"], self.config, offered["anchors"]
      )
    for name in ("input_ids", "attention_mask"):
      if name in self._takes:
        offered[name] = batch[name][:, 0]
    for name in _FROM_BATCH:
      if name in self._takes:
        offered[name] = batch[name]
    if "teacher" in self._takes and self.stacks:
      offered["teacher"] = stacks_lib.teacher_embeddings(
        teacher_params,
        self.stacks,
        batch,
        dtype=self.dtype,
        packing=packing,
        microbatches=self.microbatches,
      )
    of_step = {"progress": progress}
    if memory:
      size = len(memory["queue"])
      of_step["queue"] = memory["queue"]
      of_step["is_queued"] = jnp.arange(size) < memory["queued"]
    values |= compare(
      self.terms,
      offered,
      jax.random.fold_in(rng, 2),
      of_step=of_step,
      row_blocks=self.row_blocks,
    )
    parts = {name: jnp.mean(value) for name, value in values.items()}
    loss = sum(each.weight * parts[each.term.name] for each in self.terms)
    if counts:
      right, masked = jax.tree.map(jnp.sum, counts)
      parts["accuracy"] = right / jnp.maximum(masked, 1)
    if memory:
      positives = jax.lax.stop_gradient(offered["positives"])
      parts["memory"] = {
        "queue": jnp.concatenate([positives, memory["queue"]])[:size],
        "queued": jnp.minimum(memory["queued"] + len(positives), size),
      }
    return loss, parts

  def _of_sentences(self, params, rows, numbers, rng, packing, generator):
    """Embeddings of sentences, and the terms that are of single ones."""
    offered, values, counts = {}, {}, ()
    if self._takes_any(_EMBEDDED):
      views = self._views(params, rows, numbers, jax.random.fold_in(rng, 3), packing)
      embeddings, offered["layers"] = views
      for i, name in enumerate(("anchors", "positives", "negatives")):
        if i < embeddings.shape[1]:
          offered[name] = embeddings[:, i]
      if "layers" not in self._takes:
        del offered["layers"]
    if "retrieved" in self._takes:
      offered["retrieved"] = encoder_lib.encode(
        params["encoder"],
        self.config,
        rows["retrieved_input_ids"],
        rows["retrieved_mask"],
        pooling=self.pooling,
        rng=jax.random.fold_in(rng, 5),
        dtype=self.dtype,
        numbers=numbers,
      )
    if "undropped" in self._takes:
      offered["undropped"] = encoder_lib.encode(
        params["encoder"],
        self.config,
        rows["input_ids"][:, 0],
        rows["attention_mask"][:, 0],
        pooling=self.pooling,
        dtype=self.dtype,
        packing=packing,
      )
    if "projection" in params:
      for name in _PROJECTED:
        if name in offered:
          offered[name] = encoder_lib.project(
            params["projection"], self.config, offered[name]
          )
    if self._takes_any(_REPLACED):
      replaced = self._detect_replaced(
        params, rows, numbers, jax.random.fold_in(rng, 7), generator, offered
      )
      values |= _evaluate(self.terms, _by_replaced, replaced)
    if self._takes_any(_MASKED):
      masked = self._score_masked(
        params, rows, numbers, jax.random.fold_in(rng, 4), packing
      )
      values |= _evaluate(self.terms, _by_masked, masked)
      guess = jnp.argmax(masked["masked_logits"], axis=-1)
      right = (guess == masked["masked_labels"]) & masked["is_masked"]
      counts = right.sum(axis=1), masked["is_masked"].sum(axis=1)
    return offered, values, counts

  def _views(self, params, rows, numbers, rng, packing):
    """Embeddings of every view, [n, views, D], and the first's by earlier layers."""
    columns, length = rows["input_ids"].shape[1:]
    views = columns
    if columns == 1:
      views, packing = 2, packing and packing.times(2)
    if numbers is not None:
      numbers = (numbers[:, None] * views + np.arange(views)).reshape(-1)
    grid = lambda x: jnp.repeat(x, views // columns, axis=1).reshape(-1, length)
    inputs = (
      params["encoder"],
      self.config,
      grid(rows["input_ids"]),
      grid(rows["attention_mask"]),
    )
    settings = dict(
      pooling=self.pooling, rng=rng, dtype=self.dtype, packing=packing, numbers=numbers
    )
    by_view = lambda x: x.reshape(-1, views, *x.shape[1:])
    if "layers" not in self._takes:
      return by_view(encoder_lib.encode(*inputs, **settings)), None
    embeddings, layers = encoder_lib.encode_with_layers(
      *inputs, layers=tuple(self._setting("layers")), **settings
    )
    return by_view(embeddings), by_view(layers)[:, 0]

  def _mask_views(
    self,
    batch: Batch,
    rng: jax.Array,
    share: float,
    views: int,
    shown_as: tuple[float, float] = (_MASK, _REPLACE),
  ) -> dict[str, jax.Array]:
    """Views with a share of their tokens to guess, [B, views, ...], others each step.

    Views are the columns of the text, or a single column as often, masked otherwise.
    """
    masked = []
    for view in range(views):
      column = view if batch["input_ids"].shape[1] > 1 else 0
      key = jax.random.fold_in(rng, view) if view else rng
      ids, mask = (batch[n][:, column] for n in ("input_ids", "attention_mask"))
      masked.append(self._mask_tokens(ids, mask, key, share, shown_as))
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *masked)

  def _mask_tokens(self, input_ids, attention_mask, rng, share, shown_as):
    """Masks one view: a few slots a row, so that only these meet the vocabulary."""
    choice_rng, kind_rng, token_rng = jax.random.split(rng, 3)
    special = jnp.isin(input_ids, jnp.asarray(self.special_token_ids))
    is_word = attention_mask & ~special
    slots = max(1, round(share * input_ids.shape[1]))
    score = jnp.where(is_word, jax.random.uniform(choice_rng, input_ids.shape), -1)
    _, position = jax.lax.top_k(score, slots)
    wanted = jnp.maximum(1, jnp.round(share * is_word.sum(axis=1)))
    wanted = jnp.minimum(wanted, is_word.sum(axis=1))
    is_masked = jnp.arange(slots) < wanted[:, None]
    row = jnp.arange(len(input_ids))[:, None]
    labels = input_ids[row, position]
    kind = jax.random.uniform(kind_rng, labels.shape)
    other = jax.random.randint(token_rng, labels.shape, 0, self.config.vocab_size)
    masked, replaced = shown_as
    shown = jnp.where(kind < masked, self.mask_token_id, labels)
    shown = jnp.where(kind >= 1 - replaced, other, shown)
    shown = jnp.where(is_masked, shown, labels)
    return {
      "masked_ids": input_ids.at[row, position].set(shown),
      "masked_mask": attention_mask,
      "position": position,
      "masked_labels": labels,
      "is_masked": is_masked,
    }

  def _detect_replaced(self, params, rows, numbers, rng, generator, offered):
    """Logits of the tokens' being replaced, in sentences that are filled in now."""
    edited = {
      name.removeprefix("edited_"): value
      for name, value in rows.items()
      if name.startswith("edited_")
    }
    views = edited["masked_ids"].shape[1]
    embeddings = [offered["anchors"], offered.get("positives")][:views]
    embeddings = jnp.stack(embeddings, axis=1).reshape(-1, self.config.hidden_size)
    edited, numbers = _flat_views(edited, numbers)
    mask = edited["masked_mask"]
    row = jnp.arange(len(mask))[:, None]
    labels, position = edited["masked_labels"], edited["position"]
    if self._setting("edits") == "published":
      original = rows["input_ids"][:, :2]
      original = jnp.broadcast_to(original, (len(original), 2, original.shape[2]))
      original = original.reshape(mask.shape)
      generator_rng, rng = jax.random.split(rng)
      guess = self._fill_in_all(generator, edited, numbers, generator_rng)
      guess = guess.astype(original.dtype).at[:, 0].set(original[:, 0])
      ids = jnp.where(mask, guess, self.config.pad_token_id)
      is_replaced, is_token = (ids != original) & mask, jnp.ones_like(mask)
    else:
      # The slots that are not masked hold the words that stand there.
      original = rows["input_ids"][:, 0]
      guess = self._fill_in_masked(generator, edited).astype(labels.dtype)
      guess = jnp.where(edited["is_masked"], guess, labels)
      ids = original.at[row, position].set(guess)
      is_replaced, is_token = ids != original, mask
    found = encoder_lib.detect_replaced(
      params["discriminator"],
      self.config,
      ids,
      mask,
      embeddings,
      rng=rng,
      dtype=self.dtype,
      numbers=numbers,
    )
    side_by_side = lambda x: x.reshape(-1, views * x.shape[1])
    return {
      "replaced_logits": side_by_side(found),
      "is_replaced": side_by_side(is_replaced),
      "is_token": side_by_side(is_token),
    }

  def _fill_in_masked(self, generator, edited):
    """The language model's best guesses of masked tokens, [n, K]."""
    states = encoder_lib.states_at(
      generator["encoder"],
      self.config,
      edited["masked_ids"],
      edited["masked_mask"],
      edited["position"],
      dtype=self.dtype,
    )
    return jnp.argmax(self._score_tokens(generator, states), axis=-1)

  def _fill_in_all(self, generator, edited, numbers, rng):
    """The language model's best guess of every token, under dropout, [n, S]."""
    states = encoder_lib.hidden_states(
      generator["encoder"],
      self.config,
      edited["masked_ids"],
      edited["masked_mask"],
      rng=rng,
      dtype=self.dtype,
      numbers=numbers,
    )[-1]
    # One position after the other: all together would meet the vocabulary at once.
    guess = lambda states: jnp.argmax(self._score_tokens(generator, states), axis=-1)
    return jax.lax.map(guess, states.swapaxes(0, 1)).swapaxes(0, 1)

  def _score_tokens(self, params, states):
    return encoder_lib.score_tokens(
      params["language_model"],
      params["encoder"],
      self.config,
      states,
      dtype=self.dtype,
    )

  def _score_masked(self, params, rows, numbers, rng, packing):
    """The language model's logits of masked tokens, with their labels."""
    names = ("masked_ids", "masked_mask", "position", "masked_labels", "is_masked")
    masked = {name: rows[name] for name in names}
    views = masked["position"].shape[1]
    if rows["input_ids"].shape[1] == 1:
      packing = packing and packing.times(views)
    masked, numbers = _flat_views(masked, numbers)
    states = encoder_lib.states_at(
      params["encoder"],
      self.config,
      masked["masked_ids"],
      masked["masked_mask"],
      masked["position"],
      rng=rng,
      dtype=self.dtype,
      packing=packing,
      numbers=numbers,
    )
    side_by_side = lambda x: x.reshape(-1, views * x.shape[1], *x.shape[2:])
    return {
      "masked_logits": side_by_side(self._score_tokens(params, states)),
      "masked_labels": side_by_side(masked["masked_labels"]),
      "is_masked": side_by_side(masked["is_masked"]),
    }


def _flat_views(rows, numbers):
  """Arrays [n, views, ...] as [n * views, ...], with the numbers of the new rows."""
  views = jax.tree.leaves(rows)[0].shape[1]
  if numbers is not None:
    numbers = (numbers[:, None] * views + np.arange(views)).reshape(-1)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows), numbers


def compare(
  terms: Sequence[Weighted],
  offered: Mapping[str, jax.Array],
  rng: jax.Array,
  *,
  of_step: Mapping[str, Any] | None = None,
  row_blocks: Blocks = Blocks(),
) -> dict[str, jax.Array]:
  """The terms that compare the sentences of a batch.

  Args:
    terms: others are left out.
    offered: with a row for each sentence, [B, ...].
    rng: a key.
    of_step: what else a step offers.
    row_blocks: so many rows at a time; the values are the same.

  Returns:
    By name the values of each term, [B].
  """
  rngs = jax.random.split(rng, len(terms))
  # Once, and not in every turn of the loop over blocks.
  gather = mesh_lib.whole if row_blocks.number > 1 else lambda x: x
  every = {f"all_{name}": gather(value) for name, value in offered.items()}
  every |= of_step or {}
  asked = [name for each in terms for name in each.term.takes]
  rows = {name: value for name, value in offered.items() if name in asked}

  def of_rows(rows, numbers):
    if numbers is None:
      numbers = jnp.arange(len(jax.tree.leaves(rows)[0]))
    return _evaluate(terms, _by_row, {**every, **rows, "own": numbers}, rngs)

  values = row_blocks.map(of_rows, rows) if rows else {}
  return values | _evaluate(terms, _whole, every, rngs)


def _evaluate(terms, kind, given, rngs=None) -> dict[str, jax.Array]:
  """The terms of a kind, each [b]."""
  values = {}
  for i, each in enumerate(terms):
    if not kind(each.term):
      continue
    everything = given if rngs is None else {**given, "rng": rngs[i]}
    arguments = {name: everything[name] for name in each.term.needs}
    arguments |= {name: everything.get(name) for name in each.term.welcomes}
    values[each.term.name] = each.term.fn(**arguments, **each.settings)
  return values


def make_objective(
  config: config_lib.ConfigDict,
  start: Model,
  stacks: Sequence[stacks_lib.TeacherStack | stacks_lib.CachedTeachers],
  *,
  groups: int,
) -> Objective:
  """The objective of a round.

  Args:
    config: of the round.
    start: the model that it starts from.
    stacks: its teachers.
    groups: devices that share a batch.
  """
  tokenizer = start.tokenizer
  return Objective(
    terms=config_lib.terms(config),
    config=start.config,
    pooling=start.pooling,
    dtype=jnp.dtype(config.dtype),
    stacks=stacks,
    mask_token_id=tokenizer.mask_token_id,
    special_token_ids=tuple(sorted(tokenizer.all_special_ids)),
    microbatches=Blocks(config.microbatches, groups),
    row_blocks=Blocks(config.row_blocks, groups),
  )

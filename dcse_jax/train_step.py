"""One training step, a pure function of the global batch.

A loss function takes (params, batch, rng, teacher_params, packing) to the
scalar loss and its named parts; `make_train_step` turns any such function into a
step. `packing` is static: what the batch's first column, or all of its columns
if it has several, holds at most without its padding (`packing.Packing`).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcse_jax import encoder as encoder_lib
from dcse_jax import losses
from dcse_jax import teachers as teachers_lib
from dcse_jax.microbatches import Microbatches
from dcse_jax.packing import Packing

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
# (params, batch, rng, teacher_params, packing) -> loss, parts.
LossFn = Callable[..., tuple[jax.Array, Metrics]]

# Devlin et al.: 15 % of tokens are predicted; of these 80 % are masked, 10 %
# replaced by any token, 10 % left.
_PREDICTED, _MASKED, _REPLACED = 0.15, 0.8, 0.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that changes from step to step.

  Attributes:
    params: of the encoder and of the training-only head.
    step: so many batches were met.
    skipped: of these so many changed nothing, for a loss or a gradient that was
      not a number.
    rng: raw data of the run's key; a step folds its number in.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  skipped: jax.Array
  rng: jax.Array


def init_state(
  params: Any, tx: optax.GradientTransformation, rng: jax.Array
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    params=params,
    opt_state=tx.init(params),
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    rng=jax.random.key_data(rng),
  )


def make_train_step(
  loss_fn: LossFn, tx: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The step (state, batch, teacher_params, packing) -> (state, metrics).

  It is not yet jitted; packing must be static, None leaves the padding in. A
  batch whose loss or gradient is not finite changes neither parameters nor
  optimizer; `is_finite` of the metrics says so.
  """

  def train_step(state, batch, teacher_params, packing=None):
    rng = jax.random.wrap_key_data(state.rng)
    rng = jax.random.fold_in(rng, state.step)
    (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, batch, rng, teacher_params, packing
    )
    norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    keep = lambda new, old: jnp.where(is_finite, new, old)
    metrics = {
      "loss": loss,
      **parts,
      "gradient_norm": norm,
      # The optimizer's own count, too, leaves out what was skipped.
      "learning_rate": schedule(state.step - state.skipped),
      "is_finite": is_finite,
    }
    state = dataclasses.replace(
      state,
      params=jax.tree.map(
        keep, optax.apply_updates(state.params, updates), state.params
      ),
      opt_state=jax.tree.map(keep, opt_state, state.opt_state),
      step=state.step + 1,
      skipped=state.skipped + ~is_finite,
    )
    return state, metrics

  return train_step


def init_sentence_params(
  encoder: encoder_lib.Params,
  config: encoder_lib.EncoderConfig,
  pooling: str,
  rng: jax.Array,
) -> Any:
  """What `sentence_loss` trains: the encoder and, under "cls", a projection."""
  params = {"encoder": encoder}
  if pooling == "cls":
    params["projection"] = encoder_lib.init_params(config, rng, encoder_lib.Projection)
  return params


def sentence_loss(
  params: Any,
  batch: Batch,
  rng: jax.Array,
  teacher_params: Any,
  packing: Packing | None = None,
  *,
  config: encoder_lib.EncoderConfig,
  pooling: str,
  dtype: Any,
  contrast: Callable[..., jax.Array],
  stacks: Sequence[teachers_lib.TeacherStack | teachers_lib.CachedTeachers] = (),
  shuffle: Mapping[str, float] | None = None,
  distill_weight: float = 1.0,
  student_temperature: float = 0.025,
  teacher_temperature: float = 0.0125,
  divergence: str = "cross_entropy",
  microbatches: Microbatches = Microbatches(),
) -> tuple[jax.Array, Metrics]:
  """Contrastive loss plus distill_weight times distillation, batch means.

  Args:
    params: as `init_sentence_params` makes them.
    batch: `input_ids` and `attention_mask`, [B, C, S]. One column is encoded
      twice under independent dropout; of more, the first is the anchor, the
      second the positive, the third a hard negative. Stacks may ask for more:
      see `teachers.teacher_similarity`.
    rng: the step's key.
    teacher_params: of each stack.
    packing: of the batch; None leaves the padding in. The loss is the same.
    config: of the student.
    pooling: of the student.
    dtype: of the matrix products.
    contrast: (anchors, positives[, negatives=]) -> [B].
    stacks: the teachers; none means no distillation.
    shuffle: the rule for `losses.group_shuffle`; None leaves the similarities.
    distill_weight: the paper's lambda.
    student_temperature: divides the student's cosines in the distillation.
    teacher_temperature: divides the teachers' averaged cosines.
    divergence: see `losses.distillation`.
    microbatches: how the batch is encoded; the loss and its gradient are the
      same. `packing` then has a group for each of them on each device.

  Returns:
    The loss and its parts, scalars.

  References:
    Xu et al., DistillCSE, 2023, Eq. 3 (arXiv:2310.13499). The student's
    similarities are of the first view with itself, after the projection, with
    dropout, as published.
  """
  dropout_rng, shuffle_rng = jax.random.split(rng)
  packing = microbatches.packing_of_one(packing)
  _, columns, length = batch["input_ids"].shape
  views, views_packing = columns, packing
  if columns == 1:
    views, views_packing = 2, packing and packing.times(2)

  def embed(rows, numbers):
    grid = lambda x: jnp.repeat(x, views // columns, axis=1).reshape(-1, length)
    if numbers is not None:
      numbers = (numbers[:, None] * views + np.arange(views)).reshape(-1)
    embeddings = encoder_lib.encode(
      params["encoder"],
      config,
      grid(rows["input_ids"]),
      grid(rows["attention_mask"]),
      pooling=pooling,
      rng=dropout_rng,
      dtype=dtype,
      packing=views_packing,
      numbers=numbers,
    )
    return embeddings.reshape(-1, views, embeddings.shape[-1])

  rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
  embeddings = microbatches.map(embed, rows)
  if "projection" in params:
    embeddings = encoder_lib.project(params["projection"], config, embeddings)
  anchors, positives = embeddings[:, 0], embeddings[:, 1]
  hard = {"negatives": embeddings[:, 2]} if views == 3 else {}
  contrastive = jnp.mean(contrast(anchors, positives, **hard))
  if not stacks:
    return contrastive, {"contrastive": contrastive}
  target = teachers_lib.teacher_similarity(
    teacher_params,
    stacks,
    batch,
    dtype=dtype,
    packing=packing,
    microbatches=microbatches,
  )
  if shuffle:
    target = losses.group_shuffle(target, shuffle_rng, **shuffle)
  distillation = jnp.mean(
    losses.distillation(
      losses.cosine_similarity(anchors, anchors),
      target,
      student_temperature=student_temperature,
      teacher_temperature=teacher_temperature,
      divergence=divergence,
    )
  )
  loss = contrastive + distill_weight * distillation
  return loss, {"contrastive": contrastive, "distillation": distillation}


def init_language_model_params(
  encoder: encoder_lib.Params,
  config: encoder_lib.EncoderConfig,
  rng: jax.Array,
) -> Any:
  """What `language_model_loss` trains: the encoder and its scoring head."""
  head = encoder_lib.init_params(config, rng, encoder_lib.LanguageModelHead)
  return {"encoder": encoder, "head": head}


def language_model_loss(
  params: Any,
  batch: Batch,
  rng: jax.Array,
  teacher_params: Any,
  packing: Packing | None = None,
  *,
  config: encoder_lib.EncoderConfig,
  dtype: Any,
  mask_token_id: int,
  special_token_ids: tuple[int, ...],
  microbatches: Microbatches = Microbatches(),
) -> tuple[jax.Array, Metrics]:
  """Masked language modelling of the first column, masked anew at every step.

  Args:
    params: as `init_language_model_params` makes them.
    batch: `input_ids` and `attention_mask`, [B, C, S].
    rng: the step's key.
    teacher_params: unused.
    packing: of the batch; None leaves the padding in. The loss is the same.
    config: of the encoder.
    dtype: of the matrix products.
    mask_token_id: of [MASK].
    special_token_ids: never predicted, [CLS], [SEP] and the like.
    microbatches: as in `sentence_loss`.

  Returns:
    The loss and its parts, scalars; `accuracy` is the share of masked tokens
    whose best guess is right, in [0, 1].
  """
  del teacher_params
  choice_rng, kind_rng, token_rng, dropout_rng = jax.random.split(rng, 4)
  input_ids = batch["input_ids"][:, 0]
  attention_mask = batch["attention_mask"][:, 0]
  special = jnp.isin(input_ids, jnp.asarray(special_token_ids))
  is_word = attention_mask & ~special

  # A fixed number of slots a row, so that only these meet the vocabulary.
  slots = max(1, round(_PREDICTED * input_ids.shape[1]))
  score = jnp.where(is_word, jax.random.uniform(choice_rng, input_ids.shape), -1)
  _, position = jax.lax.top_k(score, slots)
  wanted = jnp.maximum(1, jnp.round(_PREDICTED * is_word.sum(axis=1)))
  wanted = jnp.minimum(wanted, is_word.sum(axis=1))
  is_slot = jnp.arange(slots) < wanted[:, None]

  row = jnp.arange(input_ids.shape[0])[:, None]
  labels = input_ids[row, position]
  kind = jax.random.uniform(kind_rng, labels.shape)
  other = jax.random.randint(token_rng, labels.shape, 0, config.vocab_size)
  shown = jnp.where(kind < _MASKED, mask_token_id, labels)
  shown = jnp.where(kind >= 1 - _REPLACED, other, shown)
  input_ids = input_ids.at[row, position].set(jnp.where(is_slot, shown, labels))

  def score(rows, numbers):
    states = encoder_lib.states_at(
      params["encoder"],
      config,
      rows["input_ids"],
      rows["attention_mask"],
      rows["position"],
      rng=dropout_rng,
      dtype=dtype,
      packing=microbatches.packing_of_one(packing),
      numbers=numbers,
    )
    logits = encoder_lib.score_tokens(
      params["head"], params["encoder"], config, states, dtype=dtype
    )
    loss = losses.masked_language_model(logits, rows["labels"], rows["is_slot"])
    right = (jnp.argmax(logits, axis=-1) == rows["labels"]) & rows["is_slot"]
    return loss, right.sum(axis=1)

  loss, right = microbatches.map(
    score,
    {
      "input_ids": input_ids,
      "attention_mask": attention_mask,
      "position": position,
      "labels": labels,
      "is_slot": is_slot,
    },
  )
  return jnp.mean(loss), {"accuracy": right.sum() / jnp.maximum(is_slot.sum(), 1)}

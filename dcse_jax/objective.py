"""From a round's config to the loss that it trains with."""

from collections.abc import Callable
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax import train_step
from dcse_jax.folder import Model
from dcse_jax.microbatches import Microbatches
from dcse_jax.teachers import CachedTeachers
from dcse_jax.teachers import TeacherStack

_log = logging.getLogger(__name__)


def make_objective(
  config: config_lib.ConfigDict,
  start: Model,
  stacks: tuple[TeacherStack | CachedTeachers, ...],
  *,
  groups: int,
) -> tuple[Callable[[jax.Array], Any], train_step.LossFn]:
  """What a round trains, and on what loss.

  Args:
    config: of the round.
    start: the model that it starts from.
    stacks: its teachers.
    groups: devices that share a batch.

  Returns:
    rng -> parameters to start from, and the loss function for
    `train_step.make_train_step`.
  """
  dtype = jnp.dtype(config.dtype)
  microbatches = Microbatches(config.microbatches, groups)
  if config.objective == "masked_language_model":
    init_fn = functools.partial(
      train_step.init_language_model_params, start.params, start.config
    )
    return init_fn, functools.partial(
      train_step.language_model_loss,
      config=start.config,
      dtype=dtype,
      mask_token_id=start.tokenizer.mask_token_id,
      special_token_ids=tuple(start.tokenizer.all_special_ids),
      microbatches=microbatches,
    )
  if config.contrastive == "focal_info_nce":
    contrast = functools.partial(
      losses.focal_info_nce,
      temperature=config.temperature,
      margin=config.margin,
    )
  else:
    contrast = functools.partial(
      losses.info_nce,
      temperature=config.temperature,
      # The weight is for hard negatives alone and 0 by default.
      negative_weight=config.negative_weight,
    )
  init_fn = functools.partial(
    train_step.init_sentence_params,
    start.params,
    start.config,
    start.pooling,
  )
  return init_fn, functools.partial(
    train_step.sentence_loss,
    config=start.config,
    pooling=start.pooling,
    dtype=dtype,
    contrast=contrast,
    stacks=stacks,
    shuffle=_shuffle_rule(config) if stacks else None,
    distill_weight=config.distill_weight,
    student_temperature=config.student_temperature,
    teacher_temperature=config.teacher_temperature,
    divergence=config.divergence,
    microbatches=microbatches,
  )


def _shuffle_rule(config) -> dict[str, float] | None:
  if config.group_probability:
    others = config.batch_size - 1
    if others * config.group_probability < 2:
      _log.warning(
        "group_probability=%g of batch_size=%d: groups hold fewer than two "
        "sentences, so next to nothing is shuffled",
        config.group_probability,
        config.batch_size,
      )
    return {"probability": config.group_probability}
  if config.group_size:
    return {"size": config.group_size}
  if config.group_top:
    return {"top": config.group_top}
  return None

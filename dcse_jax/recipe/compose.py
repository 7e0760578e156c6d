"""Makes a round's objective from its config."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import jax.numpy as jnp

from dcse_jax import config as config_lib
from dcse_jax.model.chunks import Chunks
from dcse_jax.model.family import with_dropout
from dcse_jax.model.model import Model
from dcse_jax.objective.objective import Objective


def make_objective(
  config: config_lib.ConfigDict,
  start: Model,
  stacks: Sequence[Any] = (),
  *,
  groups: int = 1,
) -> Objective:
  """Makes the objective of a round.

  Args:
    config: the round's.
    start: the model that it starts from.
    stacks: its teachers.
    groups: how many devices share a batch.
  """
  tokenizer, shape = start.tokenizer, start.config
  if config.dropout >= 0:
    shape = with_dropout(shape, config.dropout)
  return Objective(
    terms=config_lib.terms(config),
    config=shape,
    pooling=start.pooling,
    dtype=jnp.dtype(config.dtype),
    stacks=stacks,
    mask_token_id=tokenizer.mask_token_id,
    special_token_ids=tuple(sorted(tokenizer.all_special_ids)),
    # A tokenizer may have tokens for which the table has no row: no text has them.
    tokenizer_size=min(len(tokenizer), start.config.vocab_size),
    microbatches=Chunks(config.microbatches, groups),
    row_chunks=Chunks(config.row_blocks, groups),
    widths=tuple(zip(config.matryoshka, config.matryoshka_weights or repeat(1.0))),
    keep_head=config.keep_head,
    text=config.objective,
  )

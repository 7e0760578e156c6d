"""Hard negatives that a round mines while it trains: what it needs, and from where."""

import pathlib
from typing import Any

import numpy as np

from dcse_jax import config as config_lib
from dcse_jax.data.tokens import TokenCache
from dcse_jax.objective.mined import Miner
from dcse_jax.objective.mined import Mining
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import checkpoint


def check(
  name: str,
  config: config_lib.ConfigDict,
  tokens: TokenCache,
  corpus: TokenCache | None,
) -> None:
  """Refuses a text or a corpus that a round cannot mine hard negatives for.

  Args:
    name: the round's.
    config: the round's.
    tokens: its text.
    corpus: more documents, if there are any.

  Raises:
    UserError: the text has not two columns, or there are too few documents.
  """
  if not config.mine_every:
    return
  if len(tokens.tokens) != 2 or tokens.scores is not None:
    raise UserError(
      f"round {name}: mine_every={config.mine_every} finds the hard negatives of pairs, "
      f"and {config.text} has {len(tokens.tokens)} columns"
      f"{'' if tokens.scores is None else ' and scores'}: name those of anchors and "
      "positives alone, or set mine_every=0"
    )
  if config.bucket_batches:
    raise UserError(
      f"round {name}: bucket_batches={config.bucket_batches} sorts rows by their length, "
      f"which mine_every={config.mine_every} changes: set one of them to 0"
    )
  if any(tokens.left_out):
    raise UserError(
      f"round {name}: mine_every={config.mine_every} does not know prompts that are not "
      "pooled (include_prompt of the model's Pooling): set mine_every=0, or mine before "
      "training"
    )
  documents = len(np.unique(tokens.sentence_ids[:, 1])) + len(corpus or ())
  if documents <= config.mine_num_negatives:
    raise UserError(
      f"round {name}: mine_num_negatives={config.mine_num_negatives}, and there are "
      f"{documents} documents in all: mine fewer, or name a mine_corpus"
    )


def make_miner(
  config: config_lib.ConfigDict, tokens: TokenCache, corpus: TokenCache | None
) -> Miner | None:
  """Makes what mines hard negatives for a round, if it has any: see `check`."""
  if not config.mine_every:
    return None
  settings = Mining(
    config.mine_every, config.mine_num_negatives, config.mine_relative_margin
  )
  return Miner(settings, tokens, corpus)


def encoder_at(checkpoints: pathlib.Path, step: int) -> Any:
  """Returns a model's encoder after some steps; None if no checkpoint holds it.

  Several processes would have to find it together or not at all: they do not look.
  """
  if processes.are_several():
    return None
  try:
    return checkpoint.read_params(checkpoints, step)[0]["encoder"]
  except UserError:
    return None

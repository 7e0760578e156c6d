"""Makes a round's compiled step and its settings, which all its seeds share."""

from jax.sharding import Mesh
import numpy as np
import optax

from dcse_jax import config as config_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.model import packing
from dcse_jax.objective.inputs import Size
from dcse_jax.objective.mined import Miner
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import flops
from dcse_jax.train import optimizer
from dcse_jax.train import pruning
from dcse_jax.train import runs as runs_lib


def check_batch(config: config_lib.ConfigDict, name: str, mesh: Mesh) -> None:
  """Refuses a round's batch that the mesh does not divide.

  Raises:
    UserError: the batch does not divide; the error says which sizes would.
  """
  for field in ("microbatches", "row_blocks"):
    parts = mesh.size * config[field]
    if config.batch_size % parts:
      raise UserError(
        f"batch_size={config.batch_size} of round {name} does not divide among "
        f"{mesh.size} devices and {field}={config[field]}: use a multiple of {parts}"
      )


def make_optimizer(
  config: config_lib.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Makes a round's optimizer and its learning rate by step."""
  schedule = optimizer.make_schedule(
    learning_rate=config.learning_rate,
    schedule=config.schedule,
    warmup_steps=config.warmup_steps,
    num_steps=config.schedule_steps or config.num_train_steps,
  )
  tx = optimizer.make_optimizer(
    schedule, weight_decay=config.weight_decay, clip_norm=config.clip_norm
  )
  if config.sparsity:
    tx = optax.chain(tx, pruning.keep_zeros())
  return tx, schedule


def make_trainer(
  config: config_lib.ConfigDict,
  loss_fn: Objective,
  tokens: tokens_lib.TokenCache,
  *,
  frozen: dict,
  mesh: Mesh,
  num_models: int,
  miner: Miner | None = None,
) -> runs_lib.Trainer:
  """Compiles the step of a round, lazily, and puts what it reads on the devices.

  Args:
    config: the round's.
    loss_fn: the round's.
    tokens: those of the round's text.
    frozen: what is read and not trained: see `StepInputs.frozen`.
    mesh: the devices.
    num_models: how many models one call trains together.
    miner: finds hard negatives, if batches have any of these.
  """
  columns = len(tokens.tokens) + config_lib.mined_columns(config)
  tx, schedule = make_optimizer(config)
  return runs_lib.Trainer(
    step_fn=runs_lib.make_step(
      loss_fn,
      tx,
      schedule,
      mesh=mesh,
      num_models=num_models,
      num_steps=config.num_train_steps,
    ),
    tx=tx,
    mesh=mesh,
    frozen=mesh_lib.put_params(frozen, mesh),
    num_models=num_models,
    packings=_packings(config, tokens, miner, columns, mesh),
    batch_size=config.batch_size,
    num_steps=config.num_train_steps,
    log_every=config.log_every,
    eval_every=config.eval_every,
    patience=config.patience,
    max_skipped_steps=config.max_skipped_steps,
    work=_work(config, loss_fn, tokens, columns, num_models),
    profile_steps=config.profile_steps,
    loggers=tuple(config.logger),
  )


def _packings(
  config: config_lib.ConfigDict,
  tokens: tokens_lib.TokenCache,
  miner: Miner | None,
  columns: int,
  mesh: Mesh,
) -> tuple[packing.Packing, ...]:
  """Returns the shapes that the step is compiled for, as far as batches need them."""
  sizes = dict(
    batch_size=config.batch_size,
    num_steps=config.num_train_steps,
    groups=mesh.size * config.microbatches,
  )
  if config.bucket_batches:
    rows = np.arange(len(tokens))
    return packing.make_bucket_packings(
      tokens.num_tokens(rows),
      tokens.longest(rows),
      columns=columns,
      max_length=config.max_length,
      together=config.bucket_batches,
      **sizes,
    )
  padded = columns * config.max_length
  return packing.make_packings(_num_tokens(tokens, miner), padded=padded, **sizes)


def _num_tokens(tokens: tokens_lib.TokenCache, miner: Miner | None) -> np.ndarray:
  """Counts each row's tokens; its hard negatives may be any documents."""
  number = tokens.num_tokens(np.arange(len(tokens)))
  if miner:
    size = (len(number), miner.settings.num_negatives)
    number = number + np.random.default_rng(0).choice(miner.lengths, size).sum(axis=1)
  return number


def _work(
  config: config_lib.ConfigDict,
  loss_fn: Objective,
  tokens: tokens_lib.TokenCache,
  columns: int,
  num_models: int,
) -> flops.Work:
  """Estimates the average cost of a step."""
  lengths = np.concatenate([np.diff(offsets) for offsets in tokens.offsets])
  size = Size(
    batch=config.batch_size,
    columns=columns,
    length=lengths.mean(),
    squared_length=np.square(lengths, dtype=float).mean(),
    max_length=config.max_length,
  )
  return flops.Work(
    tokens=config.batch_size * columns * lengths.mean(),
    flops=num_models * loss_fn.flops(size),
    dtype=config.dtype,
  )

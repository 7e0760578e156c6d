"""A round's training step with shapes in place of arrays: no text, no weights.

The cost of a step depends on shapes alone. It is the step that the round trains with,
so what is compiled from it is what will run.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax.counting import static
from dcse_jax.data import text
from dcse_jax.hub import folder
from dcse_jax.hub import shape as shape_lib
from dcse_jax.hub.tokenizer import load_tokenizer
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.model import model as model_lib
from dcse_jax.model import packing as packing_lib
from dcse_jax.objective.inputs import Size
from dcse_jax.recipe import compose
from dcse_jax.recipe import start as start_lib
from dcse_jax.recipe import trainer as trainer_lib
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.teachers.embeddings import Embeddings
from dcse_jax.teachers.embeddings import is_embeddings
from dcse_jax.teachers.embeddings import open_embeddings
from dcse_jax.train import runs as runs_lib
from dcse_jax.train import step as step_lib


class _Tokenizer:
  """A tokenizer of any size: the cost does not depend on it, nor on what is special."""

  mask_token_id, all_special_ids = 4, (0, 1, 2, 3, 4)

  def __len__(self) -> int:
    return 100


@dataclasses.dataclass(frozen=True)
class AbstractStep:
  """A step and its arguments.

  Attributes:
    step_fn: see `runs.Trainer.step_fn`.
    arguments: the arguments of step_fn, as shapes with shardings.
    num_columns: how many columns the text has.
    flops: those of one call, on all devices together, of what the layout computes.
    stacks: the teachers.
    num_models: how many models one call trains together.
    packing: the last argument of step_fn.
  """

  step_fn: Any
  arguments: tuple[Any, ...]
  num_columns: int
  flops: float
  stacks: tuple[stacks_lib.TeacherStack | stacks_lib.CachedTeachers, ...]
  num_models: int
  packing: packing_lib.Packing | None


def make_abstract_step(
  config: config_lib.ConfigDict,
  name: str,
  mesh: Mesh,
  *,
  mean_length: float | None = None,
) -> AbstractStep:
  """Makes the step of a round.

  It reads only config.json and the like of models that exist. A teacher from elsewhere
  is taken to read the student's token ids if its vocabulary has the same size.

  Args:
    config: the recipe's, which has been checked.
    name: the round's.
    mesh: over any devices, also those of a topology.
    mean_length: tokens of a sentence in packed batches; None leaves the padding in.

  Raises:
    UserError: a model cannot be read, the batch does not divide, or sentences are to be
      longer than they may be.
  """
  round_config = config_lib.of_round(config, name)
  trainer_lib.check_batch(round_config, name, mesh)
  start = _start(config)
  members = _teachers(config, round_config, start)
  stacks, teacher_params, teacher_batch = (), (), {}
  total = sum(weight for _, weight in members)
  runs = lambda each: (
    isinstance(each, model_lib.Model) and not round_config.teacher_cache
  )
  online = [pair for pair in members if runs(pair[0])]
  read = [pair for pair in members if not runs(pair[0])]
  if online:
    stacks, teacher_params, teacher_batch = _online(round_config, online, total, start)
  if read:
    beside = _cached(round_config, read, total)
    stacks, teacher_params = stacks + beside[0], teacher_params + beside[1]
    teacher_batch |= beside[2]
  num_models = len(round_config.seeds) if round_config.parallel_seeds else 1

  loss_fn = compose.make_objective(round_config, start, stacks, groups=mesh.size)
  tx, schedule = trainer_lib.make_optimizer(round_config)
  rng = jax.random.key(0)
  params = jax.tree.map(_shape, loss_fn.init_params(start.params, rng))
  state = jax.eval_shape(
    lambda p: step_lib.init_state(p, tx, rng, loss_fn.init_carry()), params
  )
  columns = text.num_columns(round_config.text, round_config.columns)
  columns = max(columns, 2 * bool(round_config.switch_case or round_config.crop))
  columns += config_lib.mined_columns(round_config)
  ids = (round_config.batch_size, columns, round_config.max_length)
  batch = {
    "input_ids": jax.ShapeDtypeStruct(ids, jnp.int32),
    "attention_mask": jax.ShapeDtypeStruct(ids, bool),
    "example_id": jax.ShapeDtypeStruct(ids[:1], jnp.int32),
    **_mined(round_config),
    **teacher_batch,
    **loss_fn.abstract_batch(round_config.batch_size, columns, round_config.max_length),
  }
  length = mean_length or round_config.max_length
  size = Size(
    batch=round_config.batch_size,
    columns=columns,
    length=length,
    squared_length=length**2,
    max_length=round_config.max_length,
  )
  head = None
  if start.config.language_model:
    head = encoder_lib.abstract_params(start.config, heads.LanguageModelHead)
  frozen = {"teachers": teacher_params, **loss_fn.frozen_params(start.params, head)}
  if num_models > 1:
    state, batch = _with_axis((state, batch), num_models)
  over_batch = runs_lib.batch_sharding(mesh, num_models)
  return AbstractStep(
    step_fn=runs_lib.make_step(
      loss_fn,
      tx,
      schedule,
      mesh=mesh,
      num_models=num_models,
      num_steps=round_config.num_train_steps,
    ),
    arguments=(
      mesh_lib.abstract(state, mesh),
      jax.tree.map(lambda x: _shape(x, sharding=over_batch), batch),
      mesh_lib.abstract(frozen, mesh),
    ),
    num_columns=columns,
    flops=num_models * loss_fn.flops(size),
    stacks=stacks,
    num_models=num_models,
    packing=_packing(round_config, columns, mean_length, mesh),
  )


def _packing(config, columns: int, mean_length: float | None, mesh: Mesh):
  """Returns a packing whose groups are as full as they are in the mean, or None."""
  if mean_length is None:
    return None
  if mean_length > config.max_length:
    raise UserError(
      f"sentences of {mean_length:g} tokens in the mean, where they have "
      f"max_length={config.max_length} at most: give fewer"
    )
  groups = mesh.size * config.microbatches
  tokens = math.ceil(mean_length * columns * config.batch_size / groups)
  return packing_lib.Packing(packing_lib.rounded(tokens), groups)


def _shape(x: Any, **kwargs: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, **kwargs)


def _with_axis(tree: Any, size: int, dtype: Any = None) -> Any:
  """Adds a leading axis to a tree of shapes."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((size, *x.shape), dtype or x.dtype), tree
  )


def _model(
  shape: encoder_lib.EncoderConfig, pooling: str, **fields: Any
) -> model_lib.Model:
  return model_lib.Model(
    config=shape,
    params=encoder_lib.abstract_params(shape),
    tokenizer=_Tokenizer(),
    pooling=pooling,
    normalize=False,
    max_length=shape.max_tokens,
    **fields,
  )


def _mined(config: config_lib.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what a batch says of hard negatives that are mined."""
  shape = (config.batch_size, config_lib.mined_columns(config))
  return {"has_negative": jax.ShapeDtypeStruct(shape, bool)} if shape[1] else {}


def _start(config: config_lib.ConfigDict) -> model_lib.Model:
  if not config.model:
    vocab_size = config.encoder.vocab_size
    if config.tokenizer:
      vocab_size = len(load_tokenizer(folder.locate(config.tokenizer)))
    shape = start_lib.new_shape(config, vocab_size=vocab_size, pad_token_id=0)
    return _model(shape, config.pooling)
  loaded = shape_lib.load(config.model, default_pooling=config.pooling)
  shape = loaded.config
  if config.num_layers > shape.num_layers:
    raise UserError(
      f"num_layers={config.num_layers}, but {config.model} has {shape.num_layers}: "
      f"keep 1 to {shape.num_layers}"
    )
  num_layers = config.num_layers or shape.num_layers
  return _model(dataclasses.replace(shape, num_layers=num_layers), loaded.pooling)


def _teachers(
  config, round_config, start
) -> list[tuple[model_lib.Model | Embeddings, float]]:
  """Lists every teacher of a round with its weight."""
  earlier = {name: config_lib.of_round(config, name) for name in config.recipe}
  teachers = []
  names = round_config.teachers
  groups = [config_lib.members(earlier, teacher) for teacher in names]
  shares = round_config.teacher_weights or [len(group) or 1 for group in groups]
  for teacher, group, share in zip(names, groups, shares):
    if group:
      teachers += [(start, share / len(group))] * len(group)
      continue
    if is_embeddings(teacher):
      teachers.append((open_embeddings(teacher), share))
      continue
    if teacher in config.counted:
      shape = static.largest(**config_lib.counted(**config.counted[teacher]))
      teachers.append((_model(shape, "mean"), share))
      continue
    loaded = shape_lib.load(teacher, default_pooling=config.pooling)
    model = _model(
      loaded.config, loaded.pooling, head=loaded.head, truncate_dim=loaded.truncate_dim
    )
    teachers.append((model, share))
  return teachers


def _cached(config, members, total: float):
  """Returns what is read with each batch: caches of models, and files of embeddings."""
  widths, weights, dtypes = [], [], []
  for teacher, weight in members:
    is_model = isinstance(teacher, model_lib.Model)
    widths.append(teacher.embedding_size if is_model else teacher.width)
    dtypes.append(jnp.dtype(config.teacher_cache) if is_model else teacher.dtype)
    weights.append(weight / total)
  shape = (config.batch_size, sum(widths))
  embeddings = jax.ShapeDtypeStruct(shape, np.result_type(*dtypes))
  stack = stacks_lib.CachedTeachers(tuple(widths), tuple(weights))
  return (stack,), ((),), {"teacher_embeddings": embeddings}


def _online(config, members, total: float, start):
  # A vocabulary of another size belongs to another tokenizer.
  own = {
    model.config.vocab_size: None
    for model, _ in members
    if model.config.vocab_size != start.config.vocab_size
  }
  places = dict(zip(own, itertools.count()))
  stacks, heads_of_stacks = stacks_lib.stack_teachers(
    [dataclasses.replace(model, params={}) for model, _ in members],
    [weight for _, weight in members],
    [places.get(model.config.vocab_size) for model, _ in members],
    total=total,
    dtype=jnp.dtype(config.dtype),
  )
  params = tuple(
    {
      **_with_axis(
        encoder_lib.abstract_params(stack.config),
        len(stack.weights),
        jnp.dtype(config.dtype),
      ),
      **jax.tree.map(_shape, head),
    }
    for stack, head in zip(stacks, heads_of_stacks)
  )
  ids = (config.batch_size, 1, config.max_length)
  read = {
    "input_ids": jax.ShapeDtypeStruct(ids, jnp.int32),
    "attention_mask": jax.ShapeDtypeStruct(ids, bool),
  }
  batch = {"teacher_tokens": tuple(read for _ in own)} if own else {}
  return stacks, params, batch

"""What the loop is given: a step for one model or several, and the models to train."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
import numpy as np
import optax

from dcse_jax.model.packing import Packing
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.train import flops
from dcse_jax.train import step as step_lib
from dcse_jax.train.batches import Batches

# The trained parameters, from `mesh.gathered` -> metrics by name. A metric "score", if
# it is there, chooses the best parameters and is not written.
Evaluate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """A compiled step and its settings; one serves every seed of a round.

  Attributes:
    step_fn: jitted (state, batch, frozen, packing) -> (state, metrics);
      donates the state. With several models every leaf of state, batch and
      metrics has a leading axis of models.
    frozen: parameters that are read only, on the devices, from `mesh.put_params`.
    batch_size: that of the global batch; a multiple of the mesh's size.
    max_skipped_steps: how many steps of a model may be skipped because a loss or a
      gradient is not finite; at one more the run stops.
    work: the work of a step.
    patience: after this many evaluations without a better score a model's training
      ends; 0 never ends it.
    num_models: how many models one call trains together.
    packings: the packings to choose from, the tightest first; a batch that fits none
      keeps its padding. The step is compiled for each that occurs.
    profile_steps: the first step to trace, and the first not to; none if empty.
    loggers: where metrics go besides metrics.jsonl, names among `loggers.LOGGERS`.
  """

  step_fn: Callable[..., Any]
  tx: optax.GradientTransformation
  mesh: Mesh
  frozen: Any
  batch_size: int
  num_steps: int
  log_every: int
  eval_every: int
  max_skipped_steps: int
  work: flops.Work
  patience: int = 0
  num_models: int = 1
  packings: tuple[Packing, ...] = ()
  profile_steps: tuple[int, ...] = ()
  loggers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
  """A model to train: everything in which the models of a round differ.

  Attributes:
    name: what the terminal calls it.
    folder: where its metrics go.
    checkpoints: the folder of its checkpoints, from which it resumes.
    params: those to start from.
    carry: what the loss hands from step to step, at the start.
    batches: endless, each with `example_id` and `num_tokens`.
    rng: the run's key.
    evaluate: scores its parameters. Without a "score" the last are the best.
    sentences: returns the sentences of example ids, for people to read.
  """

  name: str
  folder: pathlib.Path
  checkpoints: epath.Path
  params: Any
  carry: Any
  batches: Batches
  rng: jax.Array
  evaluate: Evaluate
  sentences: Callable[[np.ndarray], list[str]]


def make_step(
  loss_fn: step_lib.LossFn,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  mesh: Mesh,
  num_models: int = 1,
  num_steps: int,
) -> Callable[..., Any]:
  """Makes `Trainer.step_fn`, jitted and sharded over the mesh."""
  one = step_lib.make_train_step(loss_fn, tx, schedule, num_steps)

  def step(state, batch, frozen, packing=None):
    fn = functools.partial(one, packing=packing)
    if num_models > 1:
      fn = jax.vmap(fn, in_axes=(0, 0, None))
    with mesh_lib.traced_over(mesh):
      state, metrics = fn(state, batch, frozen)
    return mesh_lib.constrain(state, mesh), metrics

  # State and frozen parameters arrive with shardings, and the state keeps its own.
  return jax.jit(
    step,
    in_shardings=(None, batch_sharding(mesh, num_models), None),
    out_shardings=(None, mesh_lib.replicated(mesh)),
    static_argnums=3,
    donate_argnums=0,
  )


def batch_sharding(mesh: Mesh, num_models: int) -> jax.sharding.Sharding:
  """Returns how batches lie on the devices, behind an axis of models if there are several."""
  return mesh_lib.over_batch(mesh, axis=0 if num_models == 1 else 1)


def stack(trees: Sequence[Any]) -> Any:
  """Stacks trees of host arrays for the step of several models; one stays as it is."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def of_model(tree: Any, i: int, num_models: int) -> Any:
  """Takes one model out of a tree of several; that of a single one has no axis of them."""
  return tree if num_models == 1 else jax.tree.map(lambda x: x[i], tree)

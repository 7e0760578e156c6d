"""The training loop: steps, logs, evaluations, checkpoints; for any objective."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import time
from typing import Any

import grain
import jax
from jax.sharding import Mesh
import numpy as np
import optax

from dcse_jax import checkpoint
from dcse_jax import sharding
from dcse_jax import train_step as step_lib
from dcse_jax.errors import UserError
from dcse_jax.metrics import Metrics
from dcse_jax.packing import Packing
from dcse_jax.packing import choose_packing

_log = logging.getLogger(__name__)

# The trained parameters, on every device -> metrics by name; of them "score", if
# it is there, chooses the best parameters and is not written.
Evaluate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """A compiled step and its settings; one serves every seed of a round.

  Attributes:
    step_fn: jitted (state, batch, teacher_params, packing) -> (state, metrics);
      donates the state. With several models every leaf of state, batch and
      metrics has a leading axis of models.
    packings: what a batch may be packed into, the tightest first; one that fits
      none keeps its padding. The step is compiled for each that is met.
    num_models: trained together by one call.
  """

  step_fn: Callable[..., Any]
  tx: optax.GradientTransformation
  mesh: Mesh
  teacher_params: Any
  num_models: int
  packings: tuple[Packing, ...]
  batch_size: int
  num_steps: int
  log_every: int
  eval_every: int


@dataclasses.dataclass(frozen=True)
class Run:
  """One model to train: all in which models of a round differ.

  Attributes:
    name: for the terminal.
    folder: of the run's checkpoints and metrics. A checkpoint there is gone on
      from.
    params: to start from.
    batches: endless.
    rng: of the run.
    evaluate: scores its parameters. Without a "score" the last are the best.
  """

  name: str
  folder: pathlib.Path
  params: Any
  batches: grain.DatasetIterator
  rng: jax.Array
  evaluate: Evaluate


def make_trainer(
  loss_fn: step_lib.LossFn,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  mesh: Mesh,
  teacher_params: Any = (),
  num_models: int = 1,
  packings: tuple[Packing, ...] = (),
  batch_size: int,
  num_steps: int,
  log_every: int,
  eval_every: int,
) -> Trainer:
  """Jits and shards the step over the mesh; batch_size divides among it."""
  step = step_lib.make_train_step(loss_fn, tx, schedule)
  if num_models > 1:
    one = step
    step = lambda state, batch, teacher_params, packing=None: jax.vmap(
      functools.partial(one, packing=packing), in_axes=(0, 0, None)
    )(state, batch, teacher_params)
  everywhere = sharding.replicated(mesh)
  step_fn = jax.jit(
    step,
    in_shardings=(everywhere, _batch_sharding(mesh, num_models), everywhere),
    out_shardings=(everywhere, everywhere),
    static_argnums=3,
    donate_argnums=0,
  )
  return Trainer(
    step_fn=step_fn,
    tx=tx,
    mesh=mesh,
    teacher_params=jax.device_put(teacher_params, everywhere),
    num_models=num_models,
    packings=packings,
    batch_size=batch_size,
    num_steps=num_steps,
    log_every=log_every,
    eval_every=eval_every,
  )


def _batch_sharding(mesh: Mesh, num_models: int):
  return sharding.over_batch(mesh, axis=0 if num_models == 1 else 1)


def _stack(trees: Sequence[Any]) -> Any:
  """One tree of host arrays for the step of several models, or the only one."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _of_model(tree: Any, i: int, num_models: int) -> Any:
  return tree if num_models == 1 else jax.tree.map(lambda x: x[i], tree)


def train(
  trainer: Trainer, runs: Sequence[Run], *, config: dict[str, Any]
) -> list[Any]:
  """Trains models, or goes on with them, and returns their best parameters.

  Args:
    trainer: the step and its settings, for len(runs) models.
    runs: trained together, each as it would be alone.
    config: of the round, JSON; every checkpoint carries it.

  Returns:
    For each run the parameters of the best evaluation, on every device.

  Raises:
    UserError: a loss or its gradient is not a number.
  """
  num_models = trainer.num_models
  keep = 1 if num_models == 1 else 2
  stores = [checkpoint.Checkpoints(r.folder / "checkpoints", keep=keep) for r in runs]
  with contextlib.ExitStack() as stack:
    for store in stores:
      # On the way out, by whatever way, saves under way are waited for.
      stack.enter_context(contextlib.closing(store))
    states = [step_lib.init_state(run.params, trainer.tx, run.rng) for run in runs]
    step, best = 0, [(-math.inf, 0)] * num_models
    # Models that train together go on together: from a step that all have saved.
    if common := set.intersection(*(set(store.steps()) for store in stores)):
      step = max(common)
      like = sharding.abstract(states[0], trainer.mesh)
      restored = [store.restore(step, like) for store in stores]
      states = [state for state, _ in restored]
      for i, (run, (_, progress)) in enumerate(zip(runs, restored)):
        run.batches.set_state(progress["data"])
        best[i] = (progress["best_score"], progress["best_step"])
        _log.info("%s: going on from step %d", run.name, step)
    for store in stores:
      store.forget_after(step)
    # A copy, since the first step donates it and runs share what they start from.
    state = sharding.put_everywhere(
      _stack([jax.device_get(state) for state in states]), trainer.mesh
    )
    metrics = [
      stack.enter_context(
        contextlib.closing(
          Metrics(
            run.folder,
            name=run.name,
            num_steps=trainer.num_steps,
            step=step,
            position=i,
          )
        )
      )
      for i, run in enumerate(runs)
    ]
    speed = _Speed(trainer.batch_size, step)
    while step < trainer.num_steps:
      batch = _stack([next(run.batches) for run in runs])
      packing = choose_packing(trainer.packings, batch.pop("num_tokens").max())
      batch = sharding.put_batch(batch, _batch_sharding(trainer.mesh, num_models))
      state, values = trainer.step_fn(state, batch, trainer.teacher_params, packing)
      step += 1
      last = step == trainer.num_steps
      logs = step % trainer.log_every == 0 or last
      evaluates = step % trainer.eval_every == 0 or last
      if not logs and not evaluates:
        continue
      values = jax.device_get(values)
      rate = speed.since_last(step)
      for i, run in enumerate(runs):
        of_run = _of_model(values, i, num_models)
        of_run = {f"train/{key}": float(v) for key, v in of_run.items()}
        _check_finite(run.name, step, of_run)
        if logs:
          of_run["train/sentences_per_second"] = rate
          metrics[i].write(step, of_run)
      if not evaluates:
        continue
      # So that no two models are ever more than one save apart.
      for store in stores:
        store.wait()
      for i, run in enumerate(runs):
        of_run = _of_model(state, i, num_models)
        scores = run.evaluate(of_run.params)
        score = scores.pop("score", float(step))
        if scores:
          metrics[i].write(step, scores)
        # Of equal scores the later, as Orbax keeps it.
        best[i] = max(best[i], (score, step))
        progress = dict(
          data=run.batches.get_state(),
          best_score=best[i][0],
          best_step=best[i][1],
          config=config,
        )
        stores[i].save(of_run, progress, score)
      speed.since_last(step)  # Evaluation is not training.
    result = []
    for i, (_, best_step) in enumerate(best):
      of_run = _of_model(state, i, num_models)
      if best_step != step:
        of_run, _ = stores[i].restore(
          best_step, sharding.abstract(of_run, trainer.mesh)
        )
      result.append(of_run.params)
  return result


def _check_finite(name: str, step: int, values: dict[str, float]) -> None:
  for key in ("train/loss", "train/gradient_norm"):
    if not math.isfinite(values[key]):
      raise UserError(
        f"{name}: {key} at step {step} is {values[key]}; lower the learning "
        "rate or raise the temperatures, in a new workdir"
      )


class _Speed:
  """Sentences a second between one call and the next."""

  def __init__(self, batch_size: int, step: int):
    self._batch_size = batch_size
    self._time, self._step = time.perf_counter(), step

  def since_last(self, step: int) -> float:
    now = time.perf_counter()
    rate = (step - self._step) * self._batch_size / (now - self._time)
    self._time, self._step = now, step
    return rate

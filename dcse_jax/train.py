"""The training loop: steps, logs, evaluations, checkpoints; for any objective."""

from collections.abc import Callable
import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from typing import Any

import grain
import jax
from jax.sharding import Mesh
import optax

from dcse_jax import checkpoint
from dcse_jax import sharding
from dcse_jax import train_step as step_lib
from dcse_jax.errors import UserError
from dcse_jax.metrics import Metrics

_log = logging.getLogger(__name__)

# The trained encoder, back on every device -> {"eval/NAME": score, "score": x}.
Evaluate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """A compiled step and its settings; one serves every seed of a round.

  Attributes:
    step_fn: jitted (state, batch, teacher_params) -> (state, metrics); donates
      the state.
  """

  step_fn: Callable[..., Any]
  tx: optax.GradientTransformation
  mesh: Mesh
  teacher_params: Any
  batch_size: int
  num_steps: int
  log_every: int
  eval_every: int


def make_trainer(
  loss_fn: step_lib.LossFn,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  mesh: Mesh,
  teacher_params: Any = (),
  batch_size: int,
  num_steps: int,
  log_every: int,
  eval_every: int,
) -> Trainer:
  """Jits and shards the step over the mesh; batch_size divides among it."""
  everywhere, over_batch = sharding.replicated(mesh), sharding.over_batch(mesh)
  step_fn = jax.jit(
    step_lib.make_train_step(loss_fn, tx, schedule),
    in_shardings=(everywhere, over_batch, everywhere),
    out_shardings=(everywhere, everywhere),
    donate_argnums=0,
  )
  return Trainer(
    step_fn=step_fn,
    tx=tx,
    mesh=mesh,
    teacher_params=jax.device_put(teacher_params, everywhere),
    batch_size=batch_size,
    num_steps=num_steps,
    log_every=log_every,
    eval_every=eval_every,
  )


def train(
  trainer: Trainer,
  params: Any,
  batches: grain.DatasetIterator,
  *,
  rng: jax.Array,
  evaluate: Evaluate | None,
  folder: pathlib.Path,
  name: str,
  config: dict[str, Any],
) -> Any:
  """Trains one model, or goes on with it, and returns its best parameters.

  Args:
    trainer: the step and its settings.
    params: to start from.
    batches: endless.
    rng: of the run.
    evaluate: scores the parameters; its "score" chooses the best. None keeps
      the last.
    folder: of the run's checkpoints and metrics. A checkpoint there is gone on
      from.
    name: of the run, for the terminal.
    config: of the round, JSON; every checkpoint carries it.

  Returns:
    The parameters of the best evaluation, on every device.

  Raises:
    UserError: the loss or its gradient is not a number.
  """
  state = step_lib.init_state(params, trainer.tx, rng)
  # A copy, since the first step donates it and seeds of a round share params.
  state = jax.tree.map(
    lambda x: jax.make_array_from_callback(
      x.shape, sharding.replicated(trainer.mesh), lambda i, x=x: x[i]
    ),
    jax.device_get(state),
  )
  checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
  # On the way out, by whatever way, saves under way are waited for.
  with contextlib.closing(checkpoints):
    step, best_step, best_score = 0, 0, -math.inf
    if (latest := checkpoints.latest_step()) is not None:
      state, progress = checkpoints.restore(latest, state)
      batches.set_state(progress["data"])
      step, best_step = latest, progress["best_step"]
      best_score = progress["best_score"]
      _log.info("%s: going on from step %d", name, step)
    metrics = Metrics(folder, name=name, num_steps=trainer.num_steps, step=step)
    with contextlib.closing(metrics):
      speed = _Speed(trainer.batch_size, step)
      while step < trainer.num_steps:
        batch = sharding.put_batch(next(batches), trainer.mesh)
        state, values = trainer.step_fn(state, batch, trainer.teacher_params)
        step += 1
        last = step == trainer.num_steps
        logs = step % trainer.log_every == 0 or last
        evaluates = step % trainer.eval_every == 0 or last
        if logs or evaluates:
          values = {f"train/{key}": float(v) for key, v in values.items()}
          _check_finite(name, step, values)
        if logs:
          values["train/sentences_per_second"] = speed.since_last(step)
          metrics.write(step, values)
        if evaluates:
          scores = evaluate(state.params) if evaluate else {"score": float(step)}
          score = scores.pop("score")
          if evaluate:
            metrics.write(step, scores)
          # Of equal scores the later, as Orbax keeps it.
          if score >= best_score:
            best_step, best_score = step, score
          progress = dict(
            data=batches.get_state(),
            best_step=best_step,
            best_score=best_score,
            config=config,
          )
          checkpoints.save(state, progress, score)
          speed.since_last(step)  # Evaluation is not training.
    if best_step != step:
      state, _ = checkpoints.restore(best_step, state)
  return state.params


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

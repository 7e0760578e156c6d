"""The training loop, for any objective: steps, logs, evaluations, checkpoints."""

from collections.abc import Callable, Sequence
import contextlib
import functools
import logging
import math
from typing import Any

import jax
import numpy as np

from dcse_jax.model.packing import fit
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import checkpoint
from dcse_jax.train import run_log
from dcse_jax.train import step as step_lib
from dcse_jax.train.loggers import Place
from dcse_jax.train.runs import Run
from dcse_jax.train.runs import Trainer
from dcse_jax.train.runs import batch_sharding
from dcse_jax.train.runs import of_model
from dcse_jax.train.runs import stack

_log = logging.getLogger(__name__)


def train(
  trainer: Trainer,
  runs: Sequence[Run],
  *,
  config: dict[str, Any],
  before_save: Callable[[], None] = lambda: None,
  time_left: Callable[[int, float], str] = lambda steps, seconds: "",
) -> list[Any]:
  """Trains models, or resumes them, and returns their best parameters.

  Args:
    trainer: the step and its settings, for len(runs) models.
    runs: the models, which train together, each as it would alone.
    config: the round's config, JSON; every checkpoint carries it.
    before_save: brings what the runs wrote to safety, so that no checkpoint is ahead
      of it.
    time_left: takes how many steps are left and the seconds of one, and says what to
      tell on the terminal.

  Returns:
    For each run the parameters of the best evaluation, as each process can read
    them by itself.

  Raises:
    UserError: too many losses or gradients are not finite; every checkpoint is
      damaged; or something cannot be written.
    Interrupted: a signal asked for it; what was trained is saved.
  """
  stores = [checkpoint.Checkpoints(run.checkpoints) for run in runs]
  first_step = _find_step(runs, stores)
  with contextlib.ExitStack() as closing:
    for store in stores:
      # However this block ends, it waits for saves under way.
      closing.enter_context(contextlib.closing(store))
    state, best, lines_before = _restore(trainer, runs, stores, first_step)
    logs = []
    for i, run in enumerate(runs):
      log = _open_log(trainer, run, first_step, config, position=i)
      logs.append(closing.enter_context(contextlib.closing(log)))
    for log, lines in zip(logs, lines_before):
      log.tell_lost(lines)
    # From here on a signal waits for the end of the step.
    closing.enter_context(signals.deferred())
    speed = run_log.Speed(
      trainer.work,
      batch_size=trainer.batch_size,
      devices=trainer.mesh.devices.flat,
      step=first_step,
    )
    profile = run_log.Profile(trainer.profile_steps, runs[0].folder / "profile")
    closing.callback(profile.stop)
    unread = []  # The metrics of steps, still on the devices.
    step = first_step
    while step < trainer.num_steps and not all(
      _gave_up(trainer, b, step) for b in best
    ):
      step += 1
      profile.before(step - 1)
      state, example_ids, values = _step(trainer, runs, state, step - 1)
      profile.after(step, values)
      unread.append((step, example_ids, values))
      last = step == trainer.num_steps
      writes = step % trainer.log_every == 0 or last
      evaluates = step % trainer.eval_every == 0 or last
      stops = not last and processes.asked_to_stop()
      if not (writes or evaluates or stops):
        continue
      for met, example_ids, values in jax.device_get(unread):
        for i, log in enumerate(logs):
          log.read(met, example_ids[i], of_model(values, i, trainer.num_models))
      unread.clear()
      speeds = speed.since_last(step)
      if writes:
        seconds = trainer.batch_size / speeds["train/sentences_per_second"]
        # The first steps include the time of compiling.
        is_first = step <= first_step + trainer.log_every
        note = "" if is_first or last else time_left(trainer.num_steps - step, seconds)
        for log in logs:
          log.write(speeds, note)
      if not (evaluates or stops):
        continue
      # No two models may ever be more than one save apart.
      for store in stores:
        store.wait()
      for i, (run, store, log) in enumerate(zip(runs, stores, logs)):
        of_run, score = of_model(state, i, trainer.num_models), -math.inf
        # A model that gave up waits for those that train with it.
        if evaluates and not _gave_up(trainer, best[i], step - 1):
          score = _evaluate(trainer, run, log, of_run, step)
          # The later of equal scores wins, as Orbax keeps it.
          best[i] = max(best[i], (score, step))
        progress = _progress(run, log, best[i], step, config)
        before_save()
        store.save(of_run, progress, score)
      if stops:
        raise signals.Interrupted
      speed.leave_out()  # Evaluation is not training.
    # A signal may have come in the last evaluation, to one process; all is saved.
    if any(processes.gather(signals.requested())):
      raise signals.Interrupted
    if step < trainer.num_steps:
      names = ", ".join(run.name for run in runs)
      _log.info("%s: ended at step %d by patience=%d", names, step, trainer.patience)
    return _best_params(trainer, stores, state, best, step)


def _gave_up(trainer: Trainer, best: tuple[float, int], step: int) -> bool:
  """Returns whether a model's last evaluations were all below its best."""
  score, best_step = best
  if not trainer.patience or score == -math.inf:
    return False
  return step - best_step >= trainer.patience * trainer.eval_every


def _find_step(runs: Sequence[Run], stores: Sequence[checkpoint.Checkpoints]) -> int:
  """Finds the step to resume from, 0 for none, and removes later checkpoints."""
  # Models that train together resume together: from a step that all have saved.
  step = max(set.intersection(*(set(store.steps) for store in stores)), default=0)
  for run, store in zip(runs, stores):
    _tell_damage(run, store, step)
  for store in stores:
    store.go_on_from(step)
  return step


def _restore(
  trainer: Trainer,
  runs: Sequence[Run],
  stores: Sequence[checkpoint.Checkpoints],
  step: int,
) -> tuple[Any, list[tuple[float, int]], list[dict[str, int]]]:
  """Puts the state on the devices, and the batches where they were.

  Returns:
    The state of all models; the best score and its step for each; and how many lines
    the files of each had.
  """
  states = [
    step_lib.init_state(run.params, trainer.tx, run.rng, run.carry) for run in runs
  ]
  best = [(-math.inf, 0)] * len(runs)
  lines = [{}] * len(runs)
  if step:
    like = mesh_lib.abstract(states[0], trainer.mesh)
    restored = [store.restore(step, like) for store in stores]
    states = [mesh_lib.gathered(state, trainer.mesh) for state, _ in restored]
    # Checkpoints of earlier versions do not have the number of lines.
    lines = [progress.get("lines", {}) for _, progress in restored]
    for i, (run, (_, progress)) in enumerate(zip(runs, restored)):
      run.batches.set_state(progress["data"])
      if progress["best_score"] > -math.inf:
        best[i] = (progress["best_score"], progress["best_step"])
      _log.info("%s: going on from step %d", run.name, step)
  # Copy the state: the first step donates it, and runs share what they start from.
  states = [jax.device_get(state) for state in states]
  return mesh_lib.put_params(stack(states), trainer.mesh), best, lines


def _open_log(
  trainer: Trainer, run: Run, step: int, config: dict[str, Any], *, position: int
) -> run_log.RunLog:
  return run_log.RunLog(
    Place(run.folder, step, config),
    name=run.name,
    sentences=run.sentences,
    loggers=trainer.loggers,
    num_steps=trainer.num_steps,
    max_skipped_steps=trainer.max_skipped_steps,
    position=position,
  )


def _step(
  trainer: Trainer, runs: Sequence[Run], state: Any, step: int
) -> tuple[Any, list[np.ndarray], Any]:
  """Takes one step; returns the state, each run's example ids and the metrics."""

  def params(i: int) -> Any:
    of_run = of_model(state.params, i, trainer.num_models)
    return mesh_lib.gathered(of_run, trainer.mesh)

  batches = [
    run.batches.next(step, functools.partial(params, i)) for i, run in enumerate(runs)
  ]
  batch = stack(batches)
  batch, packing = fit(trainer.packings, batch)
  example_ids = [each["example_id"] for each in batches]
  sharding = batch_sharding(trainer.mesh, trainer.num_models)
  batch = mesh_lib.put_batch(batch, sharding)
  state, values = trainer.step_fn(state, batch, trainer.frozen, packing)
  return state, example_ids, values


def _evaluate(
  trainer: Trainer, run: Run, log: run_log.RunLog, of_run: Any, step: int
) -> float:
  """Evaluates one run's state and writes its metrics; returns its score."""
  scores = run.evaluate(mesh_lib.gathered(of_run.params, trainer.mesh))
  # The score of process 0 is everybody's: rounding may differ between processes.
  score = processes.agree(scores.pop("score", float(step)))
  if scores:
    log.metrics.write(step, scores)
  return score


def _progress(
  run: Run,
  log: run_log.RunLog,
  best: tuple[float, int],
  step: int,
  config: dict[str, Any],
) -> dict[str, Any]:
  """Returns what a checkpoint holds besides the state, JSON."""
  best_score, best_step = best
  return dict(
    data=run.batches.get_state(),
    best_score=best_score,
    # Before any evaluation the best is this checkpoint.
    best_step=best_step or step,
    config=config,
    lines=log.to_disk(),
  )


def _best_params(
  trainer: Trainer,
  stores: Sequence[checkpoint.Checkpoints],
  state: Any,
  best: Sequence[tuple[float, int]],
  step: int,
) -> list[Any]:
  """Returns the parameters of each run's best evaluation, after the last step."""
  result = []
  for i, (store, (_, best_step)) in enumerate(zip(stores, best)):
    of_run = of_model(state, i, trainer.num_models)
    if best_step != step:
      of_run, _ = store.restore(best_step, mesh_lib.abstract(of_run, trainer.mesh))
    result.append(mesh_lib.gathered(of_run.params, trainer.mesh))
  return result


def _tell_damage(run: Run, store: checkpoint.Checkpoints, step: int) -> None:
  """Warns of damaged checkpoints; a UserError if there is none to resume from."""
  for damaged, reason in store.damage.items():
    if not step:
      raise UserError(
        f"checkpoint {run.checkpoints / str(damaged)} is damaged ({reason}) and there "
        f"is none to go on from: remove {run.checkpoints.parent} to train that model "
        "anew"
      )
    _log.warning(
      "%s: checkpoint %d is damaged (%s); going on from step %d",
      run.name,
      damaged,
      reason,
      step,
    )

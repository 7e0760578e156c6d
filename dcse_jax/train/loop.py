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

from etils import epath
import grain
import jax
from jax.sharding import Mesh
import numpy as np
import optax

from dcse_jax.model.packing import Packing
from dcse_jax.model.packing import choose_packing
from dcse_jax.objective import corpus as corpus_lib
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import checkpoint
from dcse_jax.train import flops
from dcse_jax.train import step as step_lib
from dcse_jax.train.metrics import JsonLines
from dcse_jax.train.metrics import Metrics

_log = logging.getLogger(__name__)

# The trained parameters, as `mesh.gathered` -> metrics by name; of them "score", if
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
    work: of a step.
    profile_steps: the first step to trace, and the first not to; none if empty.
    max_skipped_steps: so many steps of a model may have a loss or a gradient that
      is not finite, and change nothing; at one more the run stops.
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
  max_skipped_steps: int
  work: flops.Work
  profile_steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Run:
  """One model to train: all in which models of a round differ.

  Attributes:
    name: for the terminal.
    folder: of the run's metrics.
    checkpoints: of the run; a checkpoint there is gone on from.
    params: to start from.
    memory: of the loss, to start from.
    batches: endless.
    corpus: adds to them what the terms ask for of the whole text.
    rng: of the run.
    evaluate: scores its parameters. Without a "score" the last are the best.
    sentences: of example ids, for people.
  """

  name: str
  folder: pathlib.Path
  checkpoints: epath.Path
  params: Any
  memory: Any
  batches: grain.DatasetIterator
  corpus: corpus_lib.Corpus
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
  """`Trainer.step_fn`, jitted and sharded over the mesh."""
  one = step_lib.make_train_step(loss_fn, tx, schedule, num_steps)

  def step(state, batch, teacher_params, packing=None):
    fn = functools.partial(one, packing=packing)
    if num_models > 1:
      fn = jax.vmap(fn, in_axes=(0, 0, None))
    with mesh_lib.traced_over(mesh):
      state, metrics = fn(state, batch, teacher_params)
    return mesh_lib.constrain(state, mesh), metrics

  # State and teachers come where they belong, and the state stays there.
  return jax.jit(
    step,
    in_shardings=(None, _batch_sharding(mesh, num_models), None),
    out_shardings=(None, mesh_lib.replicated(mesh)),
    static_argnums=3,
    donate_argnums=0,
  )


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
  max_skipped_steps: int,
  work: flops.Work,
  profile_steps: tuple[int, ...] = (),
) -> Trainer:
  """Makes the step, and puts the teachers where it reads them.

  batch_size divides among the mesh.
  """
  return Trainer(
    step_fn=make_step(
      loss_fn, tx, schedule, mesh=mesh, num_models=num_models, num_steps=num_steps
    ),
    tx=tx,
    mesh=mesh,
    teacher_params=mesh_lib.put_params(teacher_params, mesh),
    num_models=num_models,
    packings=packings,
    batch_size=batch_size,
    num_steps=num_steps,
    log_every=log_every,
    eval_every=eval_every,
    max_skipped_steps=max_skipped_steps,
    work=work,
    profile_steps=profile_steps,
  )


def _batch_sharding(mesh: Mesh, num_models: int):
  return mesh_lib.over_batch(mesh, axis=0 if num_models == 1 else 1)


def _stack(trees: Sequence[Any]) -> Any:
  """One tree of host arrays for the step of several models, or the only one."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _of_model(tree: Any, i: int, num_models: int) -> Any:
  return tree if num_models == 1 else jax.tree.map(lambda x: x[i], tree)


def train(
  trainer: Trainer,
  runs: Sequence[Run],
  *,
  config: dict[str, Any],
  before_save: Callable[[], None] = lambda: None,
) -> list[Any]:
  """Trains models, or goes on with them, and returns their best parameters.

  Args:
    trainer: the step and its settings, for len(runs) models.
    runs: trained together, each as it would be alone.
    config: of the round, JSON; every checkpoint carries it.
    before_save: brings what the runs wrote to safety, so that no checkpoint is ahead
      of it.

  Returns:
    For each run the parameters of the best evaluation, as each process can read
    them by itself.

  Raises:
    UserError: too many losses or gradients are not finite; every checkpoint is
      damaged; or something cannot be written.
    Interrupted: by a signal; what was trained is saved.
  """
  num_models = trainer.num_models
  stores = [checkpoint.Checkpoints(run.checkpoints) for run in runs]
  # Models that train together go on together: from a step that all have saved.
  step = max(set.intersection(*(set(store.steps) for store in stores)), default=0)
  for run, store in zip(runs, stores):
    _tell_damage(run, store, step)
  for store in stores:
    store.go_on_from(step)
  with contextlib.ExitStack() as stack:
    for store in stores:
      # On the way out, by whatever way, saves under way are waited for.
      stack.enter_context(contextlib.closing(store))
    states = [
      step_lib.init_state(run.params, trainer.tx, run.rng, run.memory) for run in runs
    ]
    best = [(-math.inf, 0)] * num_models
    lines_before = [{}] * num_models
    if step:
      like = mesh_lib.abstract(states[0], trainer.mesh)
      restored = [store.restore(step, like) for store in stores]
      states = [state for state, _ in restored]
      # Those of earlier versions do not count them.
      lines_before = [progress.get("lines", {}) for _, progress in restored]
      for i, (run, (_, progress)) in enumerate(zip(runs, restored)):
        run.batches.set_state(progress["data"])
        if progress["best_score"] > -math.inf:
          best[i] = (progress["best_score"], progress["best_step"])
        _log.info("%s: going on from step %d", run.name, step)
    # A copy, since the first step donates it and runs share what they start from.
    if step:
      states = [mesh_lib.gathered(state, trainer.mesh) for state in states]
    state = mesh_lib.put_params(
      _stack([jax.device_get(state) for state in states]), trainer.mesh
    )
    logs = [
      stack.enter_context(contextlib.closing(_Log(run, trainer, step, position=i)))
      for i, run in enumerate(runs)
    ]
    for log, lines in zip(logs, lines_before):
      log.tell_lost(lines)
    # From here on a signal waits for the end of the step.
    stack.enter_context(signals.deferred())
    speed = _Speed(trainer, step)
    profile = _Profile(trainer.profile_steps, runs[0].folder / "profile")
    stack.callback(profile.stop)
    unread = []  # What steps gave, still on the devices.
    while step < trainer.num_steps:
      profile.before(step)
      batches = [
        run.corpus.join(
          next(run.batches),
          step,
          lambda i=i: mesh_lib.gathered(
            _of_model(state.params["encoder"], i, num_models), trainer.mesh
          ),
        )
        for i, run in enumerate(runs)
      ]
      batch = _stack(batches)
      packing = choose_packing(trainer.packings, batch.pop("num_tokens").max())
      batch = mesh_lib.put_batch(batch, _batch_sharding(trainer.mesh, num_models))
      state, values = trainer.step_fn(state, batch, trainer.teacher_params, packing)
      step += 1
      profile.after(step, values)
      unread.append((step, [b["example_id"] for b in batches], values))
      last = step == trainer.num_steps
      writes = step % trainer.log_every == 0 or last
      evaluates = step % trainer.eval_every == 0 or last
      stops = not last and processes.asked_to_stop()
      if not (writes or evaluates or stops):
        continue
      for met, example_ids, values in jax.device_get(unread):
        for i, log in enumerate(logs):
          log.read(met, example_ids[i], _of_model(values, i, num_models))
      unread.clear()
      speeds = speed.since_last(step)
      if writes:
        for log in logs:
          log.write(speeds)
      if not (evaluates or stops):
        continue
      # So that no two models are ever more than one save apart.
      for store in stores:
        store.wait()
      for i, run in enumerate(runs):
        of_run, score = _of_model(state, i, num_models), -math.inf
        if evaluates:
          scores = run.evaluate(mesh_lib.gathered(of_run.params, trainer.mesh))
          # The word of one: hosts may round otherwise.
          score = processes.agree(scores.pop("score", float(step)))
          if scores:
            logs[i].metrics.write(step, scores)
          # Of equal scores the later, as Orbax keeps it.
          best[i] = max(best[i], (score, step))
        progress = dict(
          data=run.batches.get_state(),
          best_score=best[i][0],
          # Before any evaluation no other is needed.
          best_step=best[i][1] or step,
          config=config,
          lines=logs[i].to_disk(),
        )
        before_save()
        stores[i].save(of_run, progress, score)
      if stops:
        raise signals.Interrupted
      speed.leave_out()  # Evaluation is not training.
    # In the last evaluation, too; all is saved. Each may have been told alone.
    if any(processes.gather(signals.requested())):
      raise signals.Interrupted
    result = []
    for i, (_, best_step) in enumerate(best):
      of_run = _of_model(state, i, num_models)
      if best_step != step:
        of_run, _ = stores[i].restore(
          best_step, mesh_lib.abstract(of_run, trainer.mesh)
        )
      result.append(mesh_lib.gathered(of_run.params, trainer.mesh))
  return result


def _tell_damage(run: Run, store: checkpoint.Checkpoints, step: int) -> None:
  """Says which checkpoints are damaged; UserError where none is left for it."""
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


class _Log:
  """What one run says of its steps, and which of them were skipped."""

  def __init__(self, run: Run, trainer: Trainer, step: int, *, position: int):
    self._run, self._max_skipped = run, trainer.max_skipped_steps
    self._step, self._values = step, {}
    self._skipped = JsonLines(run.folder / "skipped.jsonl", step)
    self.metrics = Metrics(
      run.folder,
      name=run.name,
      num_steps=trainer.num_steps,
      step=step,
      position=position,
    )

  def read(self, step: int, example_ids: np.ndarray, values: dict[str, Any]) -> None:
    """Takes what a step gave.

    Raises:
      UserError: more steps were skipped than may be.
    """
    self._step = step
    self._values = {key: float(value) for key, value in values.items()}
    if not self._values.pop("is_finite"):
      self._skip(example_ids)

  def write(self, speeds: dict[str, float]) -> None:
    """Writes what the last step gave, and how fast they go."""
    # JSON has no word for what is not a number.
    values = {f"train/{k}": v for k, v in self._values.items() if math.isfinite(v)}
    if len(self._skipped):
      values["train/skipped_steps"] = len(self._skipped)
    self.metrics.write(self._step, {**values, **speeds})

  def _skip(self, example_ids: np.ndarray) -> None:
    name, path = self._run.name, self._run.folder / "skipped.jsonl"
    # Each process has its own part of the batch.
    example_ids = np.concatenate(processes.gather(example_ids.tolist()))
    self._skipped.write(
      {
        "step": self._step,
        **{key: str(value) for key, value in self._values.items()},
        "example_ids": example_ids.tolist(),
        "sentences": self._run.sentences(example_ids),
      }
    )
    what = ", ".join(
      f"{key} is {self._values[key]}"
      for key in ("loss", "gradient_norm")
      if not math.isfinite(self._values[key])
    )
    if len(self._skipped) > self._max_skipped:
      raise UserError(
        f"{name}: at step {self._step} {what} (its batch is in {path}); lower the "
        "learning rate or raise the temperatures, in a new workdir, or allow more "
        f"than max_skipped_steps={self._max_skipped}"
      )
    _log.warning("%s: step %d skipped, %s: see %s", name, self._step, what, path)

  def to_disk(self) -> dict[str, int]:
    """Brings all lines so far to the disk; how many there are in each file."""
    files = {"metrics": self.metrics.lines, "skipped": self._skipped}
    for file in files.values():
      file.to_disk()
    return {name: len(file) for name, file in files.items()}

  def tell_lost(self, expected: dict[str, int]) -> None:
    """Says which of the lines that a checkpoint counted are not there."""
    self.metrics.lines.tell_lost(expected.get("metrics", 0))
    self._skipped.tell_lost(expected.get("skipped", 0))

  def close(self) -> None:
    self.metrics.close()
    self._skipped.close()


class _Speed:
  """How fast steps go between one call and the next."""

  def __init__(self, trainer: Trainer, step: int):
    self._trainer = trainer
    self._time, self._step = time.perf_counter(), step

  def since_last(self, step: int) -> dict[str, float]:
    now = time.perf_counter()
    seconds = (now - self._time) / (step - self._step)
    self._time, self._step = now, step
    return {
      "train/sentences_per_second": self._trainer.batch_size / seconds,
      **self._trainer.work.metrics(seconds, self._trainer.mesh.devices.flat),
    }

  def leave_out(self) -> None:
    """What came since the last call was not training."""
    self._time = time.perf_counter()


class _Profile:
  """Traces some steps with JAX's profiler, for xprof."""

  def __init__(self, steps: Sequence[int], folder: pathlib.Path):
    self._first, self._end = steps or (None, None)
    self._folder, self._is_tracing = folder, False

  def before(self, step: int) -> None:
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._is_tracing = True

  def after(self, step: int, values: Any) -> None:
    if step == self._end and self._is_tracing:
      jax.block_until_ready(values)
      self.stop()
      _log.info("steps %d to %d traced: see %s", self._first, self._end, self._folder)

  def stop(self) -> None:
    if self._is_tracing:
      self._is_tracing = False
      jax.profiler.stop_trace()

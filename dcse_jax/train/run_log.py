"""The loop's reports on a run: values, skipped steps, speed, traces."""

from collections.abc import Callable, Sequence
import logging
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import flops
from dcse_jax.train.loggers import Place
from dcse_jax.train.metrics import JsonLines
from dcse_jax.train.metrics import Metrics

_log = logging.getLogger(__name__)


class RunLog:
  """The log of one run's steps, and of those that were skipped.

  Args:
    place: the run's.
    name: the run's, for the terminal.
    sentences: returns the sentences of example ids, for people to read.
    loggers: as `Metrics` takes them.
    num_steps: how many the whole run has.
    max_skipped_steps: more skipped steps than this stop the run.
    position: the line of its bar on the terminal.
  """

  def __init__(
    self,
    place: Place,
    *,
    name: str,
    sentences: Callable[[np.ndarray], list[str]],
    loggers: Sequence[str],
    num_steps: int,
    max_skipped_steps: int,
    position: int,
  ):
    self._name, self._sentences = name, sentences
    self._max_skipped = max_skipped_steps
    self._step, self._values = place.step, {}
    self._path = place.folder / "skipped.jsonl"
    self._skipped = JsonLines(self._path, place.step)
    self.metrics = Metrics(
      place, name=name, num_steps=num_steps, loggers=loggers, position=position
    )

  def read(self, step: int, example_ids: np.ndarray, values: dict[str, Any]) -> None:
    """Takes the metrics of a step.

    Raises:
      UserError: more steps were skipped than are allowed.
    """
    self._step = step
    self._values = {key: float(value) for key, value in values.items()}
    if not self._values.pop("is_finite"):
      self._skip(example_ids)

  def write(self, speeds: dict[str, float], note: str = "") -> None:
    """Writes the last step's metrics, how fast steps are, and a note for people."""
    # JSON cannot spell NaN or infinity.
    values = {f"train/{k}": v for k, v in self._values.items() if math.isfinite(v)}
    if len(self._skipped):
      values["train/skipped_steps"] = len(self._skipped)
    self.metrics.write(self._step, {**values, **speeds}, note)

  def _skip(self, example_ids: np.ndarray) -> None:
    name, path = self._name, self._path
    # Each process has its own part of the batch.
    example_ids = np.concatenate(processes.gather(example_ids.tolist()))
    self._skipped.write(
      {
        "step": self._step,
        **{key: str(value) for key, value in self._values.items()},
        "example_ids": example_ids.tolist(),
        "sentences": self._sentences(example_ids),
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
    """Brings all lines so far to the disk; returns how many each file has."""
    files = {"metrics": self.metrics.lines, "skipped": self._skipped}
    for file in files.values():
      file.to_disk()
    return {name: len(file) for name, file in files.items()}

  def tell_lost(self, expected: dict[str, int]) -> None:
    """Warns if lines that a checkpoint counted are missing."""
    self.metrics.lines.tell_lost(expected.get("metrics", 0))
    self._skipped.tell_lost(expected.get("skipped", 0))

  def close(self) -> None:
    """Closes the files."""
    self.metrics.close()
    self._skipped.close()


class Speed:
  """A measure of how fast steps are between one call and the next.

  Args:
    work: the work of a step.
    batch_size: sentences in a step.
    devices: those that share a step.
    step: where the run starts or resumes.
  """

  def __init__(
    self,
    work: flops.Work,
    *,
    batch_size: int,
    devices: Sequence[jax.Device],
    step: int,
  ):
    self._work, self._batch_size, self._devices = work, batch_size, devices
    self._time, self._step = time.perf_counter(), step

  def since_last(self, step: int) -> dict[str, float]:
    """Returns the speed of the steps since the last call."""
    now = time.perf_counter()
    seconds = (now - self._time) / (step - self._step)
    self._time, self._step = now, step
    return {
      "train/sentences_per_second": self._batch_size / seconds,
      **self._work.metrics(seconds, self._devices),
    }

  def leave_out(self) -> None:
    """Leaves out the time since the last call, which was not training."""
    self._time = time.perf_counter()


class Profile:
  """A trace of some steps by JAX's profiler, for xprof."""

  def __init__(self, steps: Sequence[int], folder: pathlib.Path):
    self._first, self._end = steps or (None, None)
    self._folder, self._is_tracing = folder, False

  def before(self, step: int) -> None:
    """Starts the trace if this is its first step."""
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._is_tracing = True

  def after(self, step: int, values: Any) -> None:
    """Ends the trace if this was its last step; values are that step's metrics."""
    if step == self._end and self._is_tracing:
      jax.block_until_ready(values)
      self.stop()
      _log.info("steps %d to %d traced: see %s", self._first, self._end, self._folder)

  def stop(self) -> None:
    """Ends the trace if it is under way."""
    if self._is_tracing:
      self._is_tracing = False
      jax.profiler.stop_trace()

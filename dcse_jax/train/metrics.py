"""A run's metrics while it trains: JSONL, the terminal, and the loggers of its config."""

from collections.abc import Sequence
import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
from typing import Any

import tqdm

from dcse_jax.runtime import files
from dcse_jax.runtime import processes
from dcse_jax.train.loggers import LOGGERS
from dcse_jax.train.loggers import Place

_log = logging.getLogger(__name__)


class JsonLines:
  """A file of JSON objects with a "step", one a line, each written at once.

  All processes would write the same, so only the first one writes.

  Args:
    path: the file's, which is made when there is a line to write.
    step: where the run resumes; later lines, and one that was cut, are removed.

  Raises:
    UserError: it cannot be read or written.
  """

  def __init__(self, path: pathlib.Path, step: int):
    self._path, self._step = path, step
    self._file, self._num_rows = None, 0
    if not path.exists():
      return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(True):
      try:
        if json.loads(line)["step"] <= step and line.endswith("\n"):
          kept.append(line)
      except (ValueError, KeyError, TypeError):  # The line was cut.
        continue
    self._num_rows = len(kept)
    if processes.is_first():
      files.write_text(path, "".join(kept))

  def __len__(self) -> int:
    return self._num_rows

  def write(self, row: dict[str, Any]) -> None:
    self._num_rows += 1
    if not processes.is_first():
      return
    try:
      if self._file is None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
    except OSError as error:
      raise files.cannot_write(self._path, error) from error

  def to_disk(self) -> None:
    """Waits until what was written is on the disk, before a checkpoint relies on it."""
    if self._file is None:
      return
    try:
      os.fsync(self._file.fileno())
    except OSError as error:
      raise files.cannot_write(self._path, error) from error

  def tell_lost(self, expected: int) -> None:
    """Warns if lines that a checkpoint knew of are missing."""
    if len(self) < expected:
      _log.warning(
        "%s: %d of %d lines before step %d are lost, as after a power cut",
        self._path,
        expected - len(self),
        expected,
        self._step,
      )

  def close(self) -> None:
    if self._file is not None:
      with contextlib.suppress(OSError):  # `write` has raised it already.
        self._file.close()


class Metrics:
  """A writer of named scalars by step; only the first process writes.

  Args:
    place: the run's; its folder gets metrics.jsonl. Lines of later steps than the one
      where it starts, which an interrupted run left, are removed.
    name: the run's, shown on the terminal.
    num_steps: how many the whole run has.
    loggers: names among `LOGGERS`.
    position: the line of its bar on the terminal.
  """

  def __init__(
    self,
    place: Place,
    *,
    name: str,
    num_steps: int,
    loggers: Sequence[str],
    position: int = 0,
  ):
    self.lines = JsonLines(place.folder / "metrics.jsonl", place.step)
    self._place, self._names = place, loggers
    self._name, self._num_steps = name, num_steps
    self._bar = tqdm.tqdm(
      desc=name,
      total=num_steps,
      initial=place.step,
      unit="step",
      position=position,
      # A log file is easier to read without a bar.
      disable=not sys.stderr.isatty() or not processes.is_first(),
      leave=False,
    )

  @functools.cached_property
  def _loggers(self) -> list[Any]:
    """The loggers; what they import, the first step need not wait for."""
    return [LOGGERS[name](self._place) for name in self._names]

  def write(self, step: int, values: dict[str, float], note: str = "") -> None:
    """Writes the values of one step, such as {"train/loss": 0.1}.

    Args:
      step: their step.
      values: the scalars, by name.
      note: what the terminal shows beside them.
    """
    self.lines.write({"step": step, **values})
    if not processes.is_first():
      return
    for logger in self._loggers:
      logger.write(step, values)
    shown = "  ".join(f"{k.partition('/')[2]} {v:.4g}" for k, v in values.items())
    if self._bar.disable:
      line = f"{self._name}  {step}/{self._num_steps}  {shown}  {note}"
      print(line.rstrip(), flush=True)
    else:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix_str(f"{note}  {shown}".lstrip()[:120])

  def close(self) -> None:
    self._bar.close()
    for logger in self.__dict__.get("_loggers", ()):
      logger.close()
    self.lines.close()

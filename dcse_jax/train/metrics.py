"""A run's metrics while it trains: JSONL, TensorBoard and the terminal."""

from collections.abc import Iterator
import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
import time
from typing import Any

import tqdm

from dcse_jax.runtime import files
from dcse_jax.runtime import processes

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
    folder: gets metrics.jsonl and TensorBoard's event files.
    name: the run's, shown on the terminal.
    num_steps: how many the whole run has.
    step: where it starts; lines of later steps, which an interrupted run left, are
      removed.
    position: the line of its bar on the terminal.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    name: str,
    num_steps: int,
    step: int,
    position: int = 0,
  ):
    self.lines = JsonLines(folder / "metrics.jsonl", step)
    self._folder, self._first_step = folder, step
    self._name, self._num_steps = name, num_steps
    self._bar = tqdm.tqdm(
      desc=name,
      total=num_steps,
      initial=step,
      unit="step",
      position=position,
      # A log file is easier to read without a bar.
      disable=not sys.stderr.isatty() or not processes.is_first(),
      leave=False,
    )

  @functools.cached_property
  def _board(self) -> "_Events":
    return _Events(self._folder / "tensorboard", self._first_step)

  def write(self, step: int, values: dict[str, float], note: str = "") -> None:
    """Writes the values of one step, such as {"train/loss": 0.1}.

    Args:
      step: their step.
      values: numbers by name.
      note: what the terminal shows beside them.
    """
    self.lines.write({"step": step, **values})
    if not processes.is_first():
      return
    self._board.write(step, values)
    shown = "  ".join(f"{k.partition('/')[2]} {v:.4g}" for k, v in values.items())
    if self._bar.disable:
      line = f"{self._name}  {step}/{self._num_steps}  {shown}  {note}"
      print(line.rstrip(), flush=True)
    else:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix_str(f"{note}  {shown}".lstrip()[:120])

  def close(self) -> None:
    self._bar.close()
    if "_board" in self.__dict__:
      self._board.close()
    self.lines.close()


class _Events:
  """TensorBoard's event file, written in this thread.

  tensorboardX's own writer has a thread, which silently dies of a full disk and leaves
  the run waiting for it.
  """

  def __init__(self, folder: pathlib.Path, first_step: int):
    # tensorboardX is imported only when there is something to write: it imports torch
    # if that is installed, which the first step need not wait for.
    import tensorboardX.event_file_writer
    import tensorboardX.summary

    self._proto = tensorboardX.proto.event_pb2
    self._scalar = tensorboardX.summary.scalar
    self._folder = folder
    with self._errors():
      folder.mkdir(parents=True, exist_ok=True)
      self._writer = tensorboardX.event_file_writer.EventsWriter(str(folder / "events"))
      # Readers then drop what earlier files hold from this step on.
      start = self._proto.SessionLog(status=self._proto.SessionLog.START)
      self._add(first_step + 1, session_log=start)

  def write(self, step: int, values: dict[str, float]) -> None:
    with self._errors():
      for key, value in values.items():
        self._add(step, summary=self._scalar(key, value))
      self._writer.flush()

  def close(self) -> None:
    with contextlib.suppress(OSError):  # `write` has raised it already.
      self._writer.close()

  def _add(self, step: int, **content: Any) -> None:
    event = self._proto.Event(wall_time=time.time(), step=step, **content)
    self._writer.write_event(event)

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise files.cannot_write(self._folder, error) from error

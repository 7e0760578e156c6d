"""Where a run's metrics go besides metrics.jsonl: TensorBoard, wandb, trackio.

A logger is a class that takes a `Place` and writes values by step; `LOGGERS` names them
for `config.logger`. Other people's libraries are imported when there is something to
write, and what they raise ends no run: all values are in metrics.jsonl.
"""

from collections.abc import Iterator, Sequence
import contextlib
import contextvars
import dataclasses
import importlib.util
import json
import logging
import os
import pathlib
import secrets
import time
from typing import Any

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# What both trackers call a project that no variable of theirs names.
_PROJECT = "dcse_jax"


@dataclasses.dataclass(frozen=True)
class Place:
  """What a logger must know of a model's run.

  Attributes:
    folder: the model's, WORKDIR/ROUND/SEED.
    step: where the run starts or resumes.
    config: the round's fields, JSON.
  """

  folder: pathlib.Path
  step: int
  config: dict[str, Any]

  @property
  def group(self) -> str:
    """The name of the workdir."""
    return self.folder.absolute().parents[1].name

  @property
  def name(self) -> str:
    """WORKDIR/ROUND/SEED, for people."""
    return "/".join(self.folder.absolute().parts[-3:])


class TensorBoard:
  """TensorBoard's event file, written in this thread.

  tensorboardX's own writer has a thread, which silently dies of a full disk and leaves
  the run waiting for it.
  """

  library = "tensorboardX"

  def __init__(self, place: Place):
    # tensorboardX imports torch if that is installed.
    import tensorboardX.event_file_writer
    import tensorboardX.summary

    self._proto = tensorboardX.proto.event_pb2
    self._scalar = tensorboardX.summary.scalar
    self._folder = place.folder / "tensorboard"
    with self._errors():
      self._folder.mkdir(parents=True, exist_ok=True)
      path = str(self._folder / "events")
      self._writer = tensorboardX.event_file_writer.EventsWriter(path)
      # Readers then drop what earlier files hold from this step on.
      start = self._proto.SessionLog(status=self._proto.SessionLog.START)
      self._add(place.step + 1, session_log=start)

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


class _Tracker:
  """A run of another library's, which gets each value once and goes on when ours does.

  A resumed run takes some steps again, to the same bits. WORKDIR/ROUND/SEED/NAME.jsonl
  remembers the run's id and what it was given, whatever else a resume cuts.
  """

  library = ""

  def __init__(self, place: Place):
    self._path = place.folder / f"{self.library}.jsonl"
    rows = _read_rows(self._path)
    self._given = {(row["step"], key) for row in rows[1:] for key in row["keys"]}
    run_id = rows[0]["id"] if rows else secrets.token_hex(4)
    self._run = None
    with self._errors():
      self._run = self._start(place, run_id)
    if self._run is not None and not rows:
      self._remember({"id": run_id})

  def write(self, step: int, values: dict[str, float]) -> None:
    new = {k: v for k, v in values.items() if (step, k) not in self._given}
    if self._run is None or not new:
      return
    # A value that a crash keeps from the library is missing there; none comes twice.
    self._remember({"step": step, "keys": list(new)})
    with self._errors():
      self._send(step, new)

  def close(self) -> None:
    if self._run is not None:
      with self._errors():
        self._run.finish()

  def _start(self, place: Place, run_id: str) -> Any:
    """Returns the library's run of this id, begun or gone on with."""
    raise NotImplementedError

  def _send(self, step: int, values: dict[str, float]) -> None:
    raise NotImplementedError

  def _remember(self, row: dict[str, Any]) -> None:
    try:
      with self._path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    except OSError as error:
      raise files.cannot_write(self._path, error) from error

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    """Gives the library up after its first error."""
    try:
      yield
    except Exception as error:
      self._run = None
      reason = " ".join(str(error).split())[:300] or type(error).__name__
      _log.warning(
        "%s gets no more of this run (%s): metrics.jsonl has all", self.library, reason
      )


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the whole lines of a tracker's file; none if there is no file."""
  rows = []
  if path.exists():
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
      with contextlib.suppress(ValueError):  # The line was cut.
        rows.append(json.loads(line))
  return rows if rows and "id" in rows[0] else []


class Wandb(_Tracker):
  """A run of Weights & Biases; WANDB_MODE=offline writes it beside the metrics."""

  library = "wandb"

  def _start(self, place, run_id):
    import wandb

    run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", _PROJECT),
      group=place.group,
      name=place.name,
      id=run_id,
      resume="allow",
      reinit="create_new",  # Models may train together.
      config=place.config,
      dir=os.environ.get("WANDB_DIR", place.folder),
      settings=wandb.Settings(console="off"),  # The output is the terminal's.
    )
    # Its own count of steps takes none that is not the largest so far.
    run.define_metric("*", step_metric="step")
    return run

  def _send(self, step, values):
    self._run.log({"step": step, **values})


class Trackio(_Tracker):
  """A run of trackio, in its local database; `trackio show` has the page."""

  library = "trackio"

  def _start(self, place, run_id):
    import trackio

    # In a context of its own: in the same one it would end the run before.
    return contextvars.Context().run(
      trackio.init,
      project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
      group=place.group,
      name=f"{place.name}-{run_id}",  # It knows a run by its name alone.
      resume="allow",
      config=place.config,
    )

  def _send(self, step, values):
    self._run.log(values, step=step)


# The names are those of `config.logger`, and of the package's extras.
LOGGERS = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def check(names: Sequence[str]) -> None:
  """Refuses loggers whose library is missing.

  Raises:
    UserError: one is; the error says how to install it.
  """
  for name in names:
    if importlib.util.find_spec(LOGGERS[name].library) is None:
      raise UserError(
        f"config.logger={tuple(names)}: {name} is not installed: pip install "
        f"'dcse_jax[{name}]', or leave it out"
      )

"""Checkpoints by Orbax: the newest to resume from, the best to export.

Orbax renames a checkpoint when it is complete, or writes a last file where nothing
can be renamed, but silently reads one that was damaged later. So each carries digests
of its files (`digests`), and a run only resumes from one whose digests hold.
"""

from collections.abc import Iterator
import contextlib
import fnmatch
import functools
import os
import pathlib
import re
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import files
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError
from dcse_jax.train.step import TrainState

# The metric that decides which checkpoint is best; larger is better.
_SCORE = "score"
# How many of the newest are kept, and how many of the best: when the newest is damaged,
# or not all models that train together have it, the one before must be there, and so
# must the one that was best then.
_KEEP = 2
# Orbax writes these last, as it renames.
_COMMITTED = "commit_success.txt"
_WRITTEN_LAST = ("_CHECKPOINT_METADATA", _COMMITTED)


class _Path(type(epath.Path())):
  """A path that is never a pattern: epath takes `exp[1]` as one where Orbax globs."""

  def glob(self, pattern: str) -> Iterator[epath.Path]:
    first, _, rest = pattern.partition("/")
    for path in self.iterdir() if self.is_dir() else ():
      if fnmatch.fnmatchcase(path.name, first):
        yield from path.glob(rest) if rest else (path,)


# The names in checkpoints of fields that were renamed since.
_NAMES = {"carry": "memory"}


def _as_dict(state: TrainState) -> dict[str, Any]:
  fields = TrainState.__dataclass_fields__
  return {_NAMES.get(field, field): getattr(state, field) for field in fields}


class Checkpoints:
  """The checkpoints of one training run, in one folder.

  Each holds the training state, the position in the data and the score, so that
  a resumed run equals one that was never interrupted.

  Args:
    folder: an absolute path, or one in a bucket; it is made if need be.

  Attributes:
    steps: the steps that a run could resume from when this was made, ascending.
    damage: what is wrong with each checkpoint that is not as it was written, by
      step.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = _Path(folder)
    # The first process looks for all, before it changes anything.
    found = self._find() if processes.is_first() else None
    self.steps, damage = processes.agree(found)
    self.damage: dict[int, str] = dict(damage)

  def _find(self) -> tuple[list[int], list[tuple[int, str]]]:
    damage, best_steps = [], {}
    for step in _steps_in(self._folder):
      if reason := digests_lib.find_damage(self._folder / str(step)):
        damage.append((step, reason))
      else:
        best_steps[step] = _read_progress(self._folder, step)["best_step"]
    # A run must also find its best checkpoint until then, to end as it would have.
    return [s for s in best_steps if best_steps[s] in best_steps], damage

  def go_on_from(self, step: int) -> None:
    """Removes later and damaged checkpoints: the run reaches their steps again.

    Args:
      step: one of `steps`, or 0.
    """
    if processes.is_first():
      for path in self._folder.glob("deleted-*"):
        path.rmtree()
      kept = [s for s in _steps_in(self._folder) if s <= step and s not in self.damage]
      for path in _folders_in(self._folder):
        if int(path.name) not in kept:
          _remove(path)
    processes.wait()

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    get_score = lambda metrics: metrics[_SCORE]
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(_KEEP),
        checkpoint_managers.BestN(get_metric_fn=get_score, n=_KEEP),
      ]
    )
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=get_score,
        create=True,
        async_options=ocp.options.AsyncOptions(
          post_finalization_callback=self._write_digests,
          # In another thread, a folder that cannot be made would be awaited forever.
          create_directories_asynchronously=False,
        ),
        # Models that train together save at once, and their processes must not meet
        # those of another model.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix="/".join(self._folder.parts[-3:])
        ),
      ),
    )

  def _write_digests(self) -> None:
    """Writes digests when a checkpoint is complete, before Orbax marks it so."""
    # In a bucket it has its final name from the start; it is the newest.
    newest = max(_folders_in(self._folder), key=lambda p: int(p.name), default=None)
    paths = list(self._folder.glob("*.orbax-checkpoint-tmp*"))
    if newest is not None and not _is_complete(newest):
      paths.append(newest)
    for path in paths:
      if not files.is_in_bucket(path):
        # Orbax leaves this to the system; files must be on the disk before digests.
        files.finish(pathlib.Path(path))
      names = digests_lib.names_in(path)
      digests_lib.write(path, [name for name in names if name not in _WRITTEN_LAST])

  def save(self, state: TrainState, progress: dict[str, Any], score: float) -> None:
    """Saves in the background; the state may be donated as soon as it returns.

    Args:
      state: the training state.
      progress: everything else that a resumed run needs, JSON; with "best_step".
      score: larger is better; minus infinity if there is none.

    Raises:
      UserError: this checkpoint, or the one before, cannot be written.
    """
    with _write_errors(self._folder):
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_as_dict(state)),
          progress=ocp.args.JsonSave(progress),
        ),
        metrics={_SCORE: score},
      )

  def wait(self) -> None:
    """Waits for saves under way.

    Raises:
      UserError: one of them failed.
    """
    with _write_errors(self._folder):
      self._manager.wait_until_finished()
    if processes.is_first():
      for step in _steps_in(self._folder):
        path = self._folder / str(step)
        new = [n for n in _WRITTEN_LAST if (path / n).exists()]
        new = [n for n in new if n not in digests_lib.listed(path)]
        if new and not files.is_in_bucket(path):
          # The next save may remove the one before, so this one must be on the disk.
          for name in (*new, ".", ".."):
            files.to_disk(path / name)
        digests_lib.extend(path, new)

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
      step: which one.
      like: shapes with shardings; they say where the arrays go, so a run can resume
        on another number of devices.

    Returns:
      The state and the progress, as saved.

    Raises:
      UserError: it is damaged, or belongs to another model.
    """
    self.wait()
    if processes.is_first():
      _check(self._folder, step)
    target = _as_dict(like)
    with contextlib.closing(ocp.StandardCheckpointer()) as reader:
      saved = _saved_shapes(reader, self._folder / str(step))
    shapes = lambda tree: sorted(leaf.shape for leaf in jax.tree.leaves(tree))
    if shapes(saved) != shapes(target):
      raise UserError(
        f"checkpoint {self._folder / str(step)} is of a model of another shape: "
        f"restore the config, or remove {self._folder.parent} and train that model "
        "anew"
      )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(target),
        progress=ocp.args.JsonRestore(),
      ),
    )
    state = restored["state"]
    state |= {ours: state.pop(theirs) for ours, theirs in _NAMES.items()}
    return TrainState(**state), restored["progress"]

  def close(self) -> None:
    """Waits for saves under way, and ends."""
    if "_manager" in self.__dict__:
      try:
        self.wait()
      finally:
        with contextlib.suppress(Exception):  # `wait` has raised it already.
          self._manager.close()


def _folders_in(folder: pathlib.Path) -> list[pathlib.Path]:
  if not folder.is_dir():
    return []
  return [path for path in folder.iterdir() if path.name.isdigit()]


def _is_complete(path: pathlib.Path) -> bool:
  return not files.is_in_bucket(path) or (path / _COMMITTED).exists()


def _steps_in(folder: pathlib.Path) -> list[int]:
  return sorted(int(path.name) for path in _folders_in(folder) if _is_complete(path))


def _remove(path: epath.Path) -> None:
  """Removes a checkpoint so that what is left of it never seems damaged."""
  if files.is_in_bucket(path):
    (path / _COMMITTED).unlink(missing_ok=True)
  else:
    path = path.rename(path.with_name(f"deleted-{path.name}"))
  path.rmtree()


def _check(folder: pathlib.Path, step: int) -> None:
  if reason := digests_lib.find_damage(folder / str(step)):
    raise UserError(
      f"checkpoint {folder / str(step)} is damaged ({reason}): use another, or "
      f"remove {folder.parent} and train that model anew"
    )


@contextlib.contextmanager
def _write_errors(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # Orbax, TensorStore and the system have different ones.
    raise files.cannot_write(folder, _reason(error)) from error


def _reason(error: Exception) -> OSError | str:
  if isinstance(error, OSError):
    return error
  # TensorStore's messages are long, and end with the system's error number.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else " ".join(str(error).split())[:300]


def _read_progress(folder: pathlib.Path, step: int) -> dict[str, Any]:
  # A checkpointer would wait for other processes.
  return ocp.JsonCheckpointHandler().restore(
    epath.Path(folder / str(step) / "progress")
  )


def _saved_shapes(reader: ocp.StandardCheckpointer, path: pathlib.Path) -> Any:
  return reader.metadata(path / "state").item_metadata.tree


def read_params(
  folder: pathlib.Path, step: int | None = None
) -> tuple[Any, dict[str, Any]]:
  """Reads the parameters of a run's checkpoint, while it trains or after.

  Args:
    folder: the folder of the run's checkpoints; nothing in it is changed.
    step: which one; None takes the best so far.

  Returns:
    The trained parameters, numpy float32, and the progress, with "step".

  Raises:
    UserError: there is no such checkpoint, or it is damaged.
  """
  if not folder.is_dir():
    raise UserError(f"there is no folder {folder}: has the run saved anything yet?")
  folder = _Path(folder.absolute())
  steps = _steps_in(folder)
  if step is None and steps:
    _check(folder, max(steps))
    step = _read_progress(folder, max(steps))["best_step"]
  if step not in steps:
    there = f"those there are: {', '.join(map(str, steps))}" if steps else "none yet"
    raise UserError(f"{folder} has no checkpoint of step {step}; {there}")
  _check(folder, step)
  with contextlib.closing(ocp.StandardCheckpointer()) as reader:
    # Without a layout from us Orbax would ask for the devices that wrote it.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
      _saved_shapes(reader, folder / str(step)),
    )
    state = reader.restore(folder / str(step) / "state", like)
  progress = _read_progress(folder, step)
  return jax.device_get(state["params"]), {**progress, "step": step}

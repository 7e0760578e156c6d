"""Checkpoints: the newest to resume from, the best to export; by Orbax."""

import contextlib
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dcse_jax.errors import UserError
from dcse_jax.train_step import TrainState

# The metric that decides which checkpoint is best; larger is better.
_SCORE = "score"


def _as_dict(state: TrainState) -> dict[str, Any]:
  return {field: getattr(state, field) for field in TrainState.__dataclass_fields__}


class Checkpoints:
  """The checkpoints of one training run, in one folder.

  Each holds the training state, the position in the data and the score, so that
  a run that goes on from one is the run that was never interrupted.

  Args:
    folder: made if need be.
    keep: so many of the newest stay, and so many of the best. Models that train
      together need 2: they go back by one step when not all of them saved the
      newest, and what was the best then must still be there.
  """

  def __init__(self, folder: pathlib.Path, *, keep: int = 1):
    get_score = lambda metrics: metrics[_SCORE]
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(get_metric_fn=get_score, n=keep),
      ]
    )
    logging.getLogger("absl").setLevel(logging.WARNING)
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=get_score,
        create=True,
      ),
    )

  def save(self, state: TrainState, progress: dict[str, Any], score: float) -> None:
    """Saves in the background; the state may be donated as soon as it returns.

    Args:
      state: of the training.
      progress: all else that a run needs to go on, JSON.
      score: larger is better.
    """
    self._manager.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_as_dict(state)),
        progress=ocp.args.JsonSave(progress),
      ),
      metrics={_SCORE: score},
    )

  def wait(self) -> None:
    """Waits for saves under way."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """The steps of the checkpoints there are."""
    return self._manager.all_steps()

  def forget_after(self, step: int) -> None:
    """Deletes checkpoints of later steps: the run comes by them again."""
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
      step: which.
      like: shapes with shardings; it says where the arrays go, so a run can go
        on with another number of devices.

    Returns:
      The state and the progress, as saved.
    """
    target = _as_dict(like)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(target),
        progress=ocp.args.JsonRestore(),
      ),
    )
    return TrainState(**restored["state"]), restored["progress"]

  def close(self) -> None:
    """Waits for saves under way, and ends."""
    self._manager.close()


def read_params(
  folder: pathlib.Path, step: int | None = None
) -> tuple[Any, dict[str, Any]]:
  """Reads the parameters of a run's checkpoint, as it trains or after.

  Args:
    folder: of the run's checkpoints; nothing in it is changed.
    step: which; None the best so far.

  Returns:
    The trained parameters, numpy float32, and the progress, with "step".

  Raises:
    UserError: no such checkpoint.
  """
  with contextlib.closing(_reader(folder)) as manager:
    steps = manager.all_steps()
    if step is None and steps:
      newest = manager.restore(
        max(steps), args=ocp.args.Composite(progress=ocp.args.JsonRestore())
      )
      step = newest["progress"]["best_step"]
    if step not in steps:
      there = f"those there are: {', '.join(map(str, steps))}" if steps else "none yet"
      raise UserError(f"{folder} has no checkpoint of step {step}; {there}")
    # Without a layout of our own Orbax asks for the devices that wrote it.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
      manager.item_metadata(step)["state"].tree,
    )
    restored = manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
      ),
    )
  params = jax.device_get(restored["state"]["params"])
  return params, {**restored["progress"], "step": step}


def _reader(folder: pathlib.Path) -> ocp.CheckpointManager:
  if not folder.is_dir():
    raise UserError(f"there is no folder {folder}: has the run saved anything yet?")
  logging.getLogger("absl").setLevel(logging.WARNING)
  return ocp.CheckpointManager(
    folder.absolute(),
    options=ocp.CheckpointManagerOptions(read_only=True),
    item_handlers={
      "state": ocp.StandardCheckpointHandler(),
      "progress": ocp.JsonCheckpointHandler(),
    },
  )

"""Checkpoints: the newest to resume from, the best to export; by Orbax."""

import logging
import pathlib
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

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

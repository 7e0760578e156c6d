"""What a run says while it trains: JSONL, TensorBoard and the terminal."""

import functools
import json
import pathlib
import sys
from typing import Any

import tqdm


class Metrics:
  """Writes named scalars by step.

  Args:
    folder: gets metrics.jsonl and TensorBoard's event files.
    name: of the run, shown on the terminal.
    num_steps: of the whole run.
    step: where it starts; lines of later steps are left from an interrupted run
      that goes on from here, and are removed.
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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    if path.exists():
      _drop_later_lines(path, step)
    self._file = path.open("a")
    self._folder, self._first_step = folder, step
    self._name, self._num_steps = name, num_steps
    self._bar = tqdm.tqdm(
      desc=name,
      total=num_steps,
      initial=step,
      unit="step",
      position=position,
      # Lines are plainer than a bar in a log file.
      disable=not sys.stderr.isatty(),
      leave=False,
    )

  @functools.cached_property
  def _board(self) -> Any:
    # Imported when there is something to write: it imports torch where that is
    # installed, which the first step need not wait for.
    import tensorboardX

    return tensorboardX.SummaryWriter(
      str(self._folder / "tensorboard"),
      # Its readers drop what is at this step and later.
      purge_step=self._first_step + 1 if self._first_step else None,
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes values such as {"train/loss": 0.1} of one step."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()
    for key, value in values.items():
      self._board.add_scalar(key, value, step)
    shown = "  ".join(f"{k.partition('/')[2]} {v:.4g}" for k, v in values.items())
    if self._bar.disable:
      print(f"{self._name}  {step}/{self._num_steps}  {shown}", flush=True)
    else:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix_str(shown[:100])

  def close(self) -> None:
    self._bar.close()
    if "_board" in self.__dict__:
      self._board.close()
    self._file.close()


def _drop_later_lines(path: pathlib.Path, step: int) -> None:
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except (ValueError, KeyError):  # The line that the interruption cut.
      continue
  beside = path.with_suffix(".tmp")
  beside.write_text("".join(kept))
  beside.replace(path)

"""PyTorch on the same device, its steps in turns with ours."""

import pathlib
import statistics
import threading
import time
from typing import Any

from benchmarks.accelerator import steps as steps_lib
from benchmarks.contender import Contender

_ROUNDS = 5
# A contender of `benchmarks.worker` and its flags, by what the report calls it.
_CONTENDERS = {
  "tuned": ("tuned",),
  "tuned, compiled": ("tuned", "--compile"),
  "sentence-transformers": ("sentence-transformers",),
}


class Peers:
  """PyTorch's steps in processes of their own, which start meanwhile.

  Args:
    path: as `prepare.prepare` fills it.
    device: as PyTorch calls it.
    batches: sizes that will be measured.
  """

  def __init__(self, path: pathlib.Path, device: str, batches):
    flags = ["--device", device, "--bfloat16"]
    self._waiting: dict[tuple[int, str], threading.Thread] = {}
    self._unfit: dict[tuple[int, str], str] = {}
    self.labels = tuple(_CONTENDERS) if batches else ()
    name = "encode sentence-transformers"
    size = batches[0] if batches else 64
    self.encode = Contender(name, name, str(path), size, *flags[:2])
    self._all, self._steps = [self.encode], {}
    for batch in batches:
      for label, (name, *extra) in _CONTENDERS.items():
        peer = Contender(label, name, str(path), batch, *flags, *extra)
        if extra:
          # It compiles and gives back what memory it took, while we compile too.
          peer.send("steps", 0, 2)
          peer.send("free")
          thread = threading.Thread(target=self._wait, args=(batch, label), daemon=True)
          self._waiting[batch, label] = thread
        self._all.append(peer)
        self._steps[batch, label] = peer
    for thread in self._waiting.values():
      thread.start()

  def settle(self, limit: float) -> str:
    """Waits for those that compile, as many seconds at most for all together."""
    end = time.monotonic() + limit
    for thread in self._waiting.values():
      thread.join(max(0.0, end - time.monotonic()))
    late = [name for name, thread in self._waiting.items() if thread.is_alive()]
    return f"late: {late}" if late else "all ready"

  def _wait(self, batch: int, label: str) -> None:
    try:
      for _ in range(2):
        self._steps[batch, label].receive()
    except SystemExit as error:
      self._unfit[batch, label] = str(error)

  def measure(self, steps: steps_lib.Steps, program, label: str) -> dict[str, Any]:
    """Times one peer and one of our programs in turns.

    The utilisation counts our model FLOPs for both: what either computes beyond is
    its own affair.
    """
    batch = program.spec.batch
    peer, waiting = self._steps[batch, label], self._waiting.get((batch, label))
    if (batch, label) in self._unfit or (waiting and waiting.is_alive()):
      raise ValueError(self._unfit.get((batch, label), "still compiling"))
    count = steps.warm(program)
    peer.ask("steps", 0, 1)
    once = peer.ask("steps", 0, 3)["seconds"] / 3
    theirs = max(1, round(0.25 / once))
    ours, other, losses = [], [], []
    for i in range(_ROUNDS):
      ours.append(steps.run(program, count) / count)
      answer = peer.ask("steps", i * theirs, theirs)
      other.append(answer["seconds"] / theirs)
      losses += answer["value"]
    peak = peer.ask("peak")["value"]
    peer.ask("free")
    ratios = [b / a for a, b in zip(ours, other)]
    return {
      "ours": steps.rates(program, ours),
      "peer": {**steps.rates(program, other), "peak_bytes": peak, "loss": losses[-1]},
      "our_speed": statistics.median(ratios),
      "our_speed_range": [min(ratios), max(ratios)],
    }

  def close(self) -> None:
    """Ends them all, whatever they are at."""
    for peer in self._all:
      peer.kill()

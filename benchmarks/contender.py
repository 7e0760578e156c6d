"""One contender in a process of its own; see `worker.py` for the other end."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import Any


class Contender:
  """A worker process, which may be at work while this one does something else."""

  def __init__(self, label: str, name: str, folder: str, batch: int, *flags: str):
    self.label, self.seconds, self.losses, self.peak_bytes = label, [], [], 0
    command = [sys.executable, "-m", "benchmarks.worker", name]
    command += ["--folder", folder, "--batch", str(batch), *flags]
    self._errors = None
    if not os.environ.get("BENCHMARK_STDERR"):
      # A pipe that nobody empties would stop it.
      self._errors = tempfile.TemporaryFile("w+", errors="replace")
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env={**os.environ, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"},
    )

  def send(self, command: str, *arguments: Any) -> None:
    """Asks for something without waiting for it."""
    with contextlib.suppress(BrokenPipeError):  # Its answer, then, is empty.
      print(json.dumps([command, *arguments]), file=self._process.stdin, flush=True)

  def receive(self) -> dict[str, Any]:
    """Waits for the answer to what was asked first."""
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"{self.label} ended: {self._last_words()}")
    answer = json.loads(line)
    self.peak_bytes = answer["peak_bytes"]
    return answer

  def ask(self, command: str, *arguments: Any) -> dict[str, Any]:
    self.send(command, *arguments)
    return self.receive()

  def close(self) -> None:
    with contextlib.suppress(BrokenPipeError):  # It may have ended by itself.
      self._process.stdin.close()
    self._process.wait()

  def kill(self) -> None:
    self._process.kill()

  def _last_words(self) -> str:
    self._process.wait()
    if self._errors is None:
      return "see above"
    self._errors.seek(0)
    return self._errors.read()[-2000:]

"""What was measured so far, on the disk after every measurement."""

from collections.abc import Callable
import json
import os
import pathlib
import threading
import time
import traceback
from typing import Any


class Record:
  """Runs measurements one after the other within a time, and keeps what they give.

  A measurement that fails leaves the text of its error, and the next goes on.

  Args:
    folder: gets results.json.
    minutes: from now.

  Attributes:
    facts: facts about the machine and the run, JSON.
    measured: what each measurement gave, JSON, by name.
    errors: why measurements gave nothing, by name.
    seconds: what each took, by name.
  """

  def __init__(self, folder: pathlib.Path, minutes: float):
    self.folder = folder
    self._end = time.monotonic() + 60 * minutes
    self._lock = threading.Lock()
    self.facts: dict[str, Any] = {}
    self.measured: dict[str, Any] = {}
    self.errors: dict[str, str] = {}
    self.seconds: dict[str, float] = {}
    self._is_closed = False
    folder.mkdir(parents=True, exist_ok=True)

  def spend(self, seconds: float) -> None:
    """Takes off what was spent before there was a record."""
    self._end -= seconds

  def left(self) -> float:
    """Returns the seconds that are left."""
    return self._end - time.monotonic()

  def has_time(self, name: str, needs: float) -> bool:
    """Says whether as many seconds are left; if not, that is a measurement's error."""
    if self.left() >= needs:
      return True
    self.errors[name] = f"not begun: {self.left():.0f} s left, it may take {needs:.0f}"
    self._say(name, self.errors[name])
    return False

  def measure(self, name: str, fn: Callable[[], Any], *, needs: float = 0.0) -> Any:
    """Returns what a measurement gives, or None if it fails or has no time left.

    Args:
      name: the measurement's.
      fn: gives something JSON.
      needs: seconds that it may take; with fewer left it does not begin.
    """
    if not self.has_time(name, needs):
      return None
    start = time.monotonic()
    value = None
    try:
      value = fn()
      self.measured[name] = value
    # Whatever a library raises, the next measurements go ahead.
    except (Exception, SystemExit) as error:
      where = traceback.extract_tb(error.__traceback__)[-1]
      text = f"{type(error).__name__}: {str(error)[:1500]}"
      if not self._is_closed:  # Else it failed for what was taken from under it.
        file = pathlib.Path(where.filename).name
        self.errors[name] = f"{text} ({file}:{where.lineno})"
    self.seconds[name] = time.monotonic() - start
    self._say(name, self.errors.get(name) or _short(value))
    self.write()
    return value

  def close(self) -> None:
    """Takes no errors from here on."""
    self._is_closed = True

  def write(self) -> None:
    """Writes results.json, beside and renamed."""
    with self._lock:
      content = json.dumps(self.results(), indent=1, default=str)
      path = self.folder / "results.json"
      beside = path.with_suffix(".new")
      beside.write_text(content)
      os.replace(beside, path)

  def results(self) -> dict[str, Any]:
    return {
      "facts": self.facts,
      "measured": dict(self.measured),
      "errors": dict(self.errors),
      "seconds": dict(self.seconds),
    }

  def _say(self, name: str, what: str) -> None:
    took = self.seconds.get(name, 0.0)
    print(f"[{self.left():5.0f} s left] {name} ({took:.1f} s): {what}", flush=True)


def _short(value: Any) -> str:
  if not isinstance(value, dict):
    return str(value)[:300]
  number = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)[:60]
  return ", ".join(f"{key} {number(x)}" for key, x in value.items())[:600]

"""SIGTERM and SIGINT: a run saves what it did, says how to go on, and leaves."""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

# Of a run that was told to stop and can be gone on with: sysexits' EX_TEMPFAIL.
EXIT_STATUS = 75


class Interrupted(BaseException):
  """The process was told to stop; not an Exception, so that nothing swallows it."""


class _State:
  deferred = False
  requested = False


def _handle(number: int, frame: object) -> None:
  del frame
  if _State.requested:
    # Told twice: at once, whatever is half-written stands beside what is whole.
    os._exit(EXIT_STATUS)
  _State.requested = True
  print(
    f"{signal.Signals(number).name}: saving, then leaving; once more leaves at once",
    file=sys.stderr,
    flush=True,
  )
  if not _State.deferred:
    raise Interrupted


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Turns SIGTERM and SIGINT into `Interrupted` while it lasts."""
  if threading.current_thread() is not threading.main_thread():
    yield  # Python lets the main thread alone handle signals.
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(number, _handle) for number in numbers]
  _State.requested = False
  try:
    yield
  finally:
    for number, handler in zip(numbers, before):
      signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Leaves it to the caller to ask `requested`, and to end by `Interrupted`."""
  _State.deferred = True
  try:
    yield
  finally:
    _State.deferred = False


def requested() -> bool:
  """Whether the process was told to stop."""
  return _State.requested

"""SIGTERM, SIGINT, SIGHUP: a run saves what it did, says how to go on, and leaves."""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

# The status of a run that was told to stop and can be gone on with: sysexits' EX_TEMPFAIL.
EXIT_STATUS = 75
_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):
  """The process was told to stop; not an Exception, so that nothing swallows it."""


class _State:
  deferred = False
  requested = False


def _handle(number: int, frame: object) -> None:
  del number, frame
  _State.requested = True
  if not _State.deferred:
    raise Interrupted


def _listen(descriptor: int) -> None:
  """Hears of signals at once, even while the main thread compiles for minutes."""
  told = False
  while numbers := os.read(descriptor, 1):
    if numbers[0] not in _NUMBERS:
      continue
    if told:
      if numbers[0] == signal.SIGHUP:
        continue  # A terminal that closes may say so twice.
      # Whatever is half-written stands beside what is whole.
      os._exit(EXIT_STATUS)
    told = True
    name = signal.Signals(numbers[0]).name
    with contextlib.suppress(OSError, ValueError):  # The terminal may be gone.
      print(
        f"{name}: saving, then leaving; once more leaves at once",
        file=sys.stderr,
        flush=True,
      )
  os.close(descriptor)


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Turns SIGTERM, SIGINT and SIGHUP into `Interrupted` while it lasts.

  It comes at once, or where it is `deferred` not at all; a second signal ends the
  process.
  """
  _State.requested = False
  ours, theirs = os.pipe()
  os.set_blocking(theirs, False)  # As Python asks for.
  listener = threading.Thread(target=_listen, args=(ours,), daemon=True)
  listener.start()
  wakeup = signal.set_wakeup_fd(theirs)
  # What is ignored stays so: a shell does that for what it runs in the background,
  # and nohup.
  before = {n: signal.getsignal(n) for n in _NUMBERS}
  before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
  for number in before:
    signal.signal(number, _handle)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)
    os.close(theirs)
    listener.join()
    _State.requested = False


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Leaves it to the caller to ask `requested`; raises `Interrupted` after, if not."""
  check()
  _State.deferred = True
  try:
    yield
  finally:
    _State.deferred = False
  check()


def requested() -> bool:
  """Whether the process was told to stop."""
  return _State.requested


def check() -> None:
  """Raises `Interrupted` if the process was told to stop.

  Between things that take long: what a signal raises may have been swallowed by a
  callback of another library.
  """
  if _State.requested:
    raise Interrupted

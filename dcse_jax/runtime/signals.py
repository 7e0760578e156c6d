"""SIGTERM, SIGINT, SIGHUP: a run saves its work, says how to go on, and ends."""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

# The status of a run that was told to stop and can be resumed: sysexits' EX_TEMPFAIL.
EXIT_STATUS = 75
_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):
  """The process was told to stop; this is no Exception, so that nothing swallows it."""


class _State:
  deferred = False
  requested = False


def _handle(number: int, frame: object) -> None:
  del number, frame
  _State.requested = True
  if not _State.deferred:
    raise Interrupted


def _listen(descriptor: int) -> None:
  """Notices signals at once, even while the main thread compiles for minutes."""
  told = False
  while numbers := os.read(descriptor, 1):
    if numbers[0] not in _NUMBERS:
      continue
    if told:
      if numbers[0] == signal.SIGHUP:
        continue  # A terminal that closes may send it twice.
      # This is safe: what is half-written stands beside what is whole.
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
  """Turns SIGTERM, SIGINT and SIGHUP into `Interrupted` during the block.

  It is raised at once, or not at all where it is `deferred`; a second signal ends the
  process.
  """
  _State.requested = False
  ours, theirs = os.pipe()
  os.set_blocking(theirs, False)  # set_wakeup_fd asks for it.
  listener = threading.Thread(target=_listen, args=(ours,), daemon=True)
  listener.start()
  wakeup = signal.set_wakeup_fd(theirs)
  # A signal that is ignored stays so: a shell ignores some for what it runs in the
  # background, and so does nohup.
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
  """Lets the caller ask `requested`; raises `Interrupted` only before and after."""
  check()
  _State.deferred = True
  try:
    yield
  finally:
    _State.deferred = False
  check()


def requested() -> bool:
  """Returns whether the process was told to stop."""
  return _State.requested


def check() -> None:
  """Raises `Interrupted` if the process was told to stop.

  Call it between things that take long: a callback of another library may have
  swallowed what the signal raised.
  """
  if _State.requested:
    raise Interrupted

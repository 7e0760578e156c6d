"""Several processes of one machine that share out work, with results in order."""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import itertools
import multiprocessing
from multiprocessing import connection
import os
import signal
import threading
from typing import Any

from dcse_jax.runtime.errors import UserError

# Maps a function over items, in their order, without reading far ahead; the function and
# the items go by pickle.
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def num_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def mapping(workers: int) -> Iterator[Map]:
  """Yields a map that runs in as many processes, or in this one where one is enough.

  Args:
    workers: how many processes there are at most.
  """
  executor = None

  def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    nonlocal executor
    items = iter(items)
    first = list(itertools.islice(items, 2))
    items = itertools.chain(first, items)
    # A process takes a second or two to start.
    if workers == 1 or len(first) < 2:
      yield from map(function, items)
      return
    if executor is None:
      executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        # A fork would have the locks of threads that it does not have.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
      )
    waiting = collections.deque()
    for item in items:
      waiting.append(executor.submit(function, item))
      if len(waiting) > 2 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()

  try:
    yield run
  except concurrent.futures.BrokenExecutor as error:
    raise UserError(
      "a worker process was killed, perhaps for want of memory: run the same command "
      "again to go on, with fewer --workers"
    ) from error
  finally:
    if executor is not None:
      executor.shutdown(cancel_futures=True)


def _start() -> None:
  """Makes a worker leave with the process that started it, and no sooner."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)

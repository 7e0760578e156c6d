"""A function over many items by all cores of a cluster, with results in order."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import itertools
from typing import Any

from dcse_jax.cluster import engine as engine_lib
from dcse_jax.runtime import pool

# As many items are on their way at a time; the next ones go when the last of them is done.
_AT_ONCE = 64


class _Runner:
  """A worker that has nothing of its own."""

  def chunk(
    self, function: Callable[[Any], Any], number: int, item: Any
  ) -> tuple[int, Any]:
    return number, function(item)


@contextlib.contextmanager
def mapping(address: str | None, workers: int | None) -> Iterator[pool.Map]:
  """Yields a map that runs in actors of Ray, on a core each.

  Args:
    address: see `engine.opened`.
    workers: how many actors; None for as many as there are cores.
  """
  with engine_lib.opened(
    "ray", _Runner, address=address, workers=workers, devices=False
  ) as cluster:

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
      items = iter(items)
      while some := list(itertools.islice(items, _AT_ONCE)):
        calls = [("chunk", (function, i, item)) for i, item in enumerate(some)]
        found = dict(cluster.map(calls))
        yield from (found[i] for i in range(len(some)))

    yield run

"""The devices of this host that embed sentences together, and the host beside them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

from absl import flags
import jax
from jax.sharding import Mesh

from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError


def define_flag() -> None:
  """Defines --devices, which every command that embeds has."""
  flags.DEFINE_integer(
    "devices", None, "How many of this host's devices embed; all by default.", 1
  )


def ahead(fn: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
  """Yields a function of values, each computed by a thread while the last is used."""
  with futures.ThreadPoolExecutor(1) as pool:
    waiting = None
    for value in values:
      coming = pool.submit(fn, value)
      if waiting is not None:
        yield waiting.result()
      waiting = coming
    if waiting is not None:
      yield waiting.result()


def make_mesh(number: int | None = None) -> Mesh | None:
  """Makes a mesh of this host's devices, or None for a single one.

  Args:
    number: how many; None takes all accelerators. The devices that XLA makes of a CPU
      share its cores, so these are taken only if they are asked for.

  Raises:
    UserError: there are fewer.
  """
  devices = jax.local_devices()
  if number is None:
    number = 1 if devices[0].platform == "cpu" else len(devices)
  if number > len(devices):
    raise UserError(f"--devices={number}: this host has {len(devices)}; give no more")
  return None if number == 1 else mesh_lib.make_mesh(devices[:number])

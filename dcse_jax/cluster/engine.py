"""Who does the work: this process, or actors of Ray on the devices of a cluster.

Ray's actors are driven from here, one call at a time each. An actor that dies with its
machine is not waited for, as Ray's own restarts would: its part goes to another at once,
and one in its place joins when there is room.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import contextlib
import logging
import os
import signal
import socket
from typing import Any

from dcse_jax.runtime import memory
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

ENGINES = ("local", "ray")

# What was begun as many times killed whoever did it.
_TRIES = 4
# Seconds without a worker before that is said.
_PATIENCE = 60
_CONNECT_SECONDS = 10
# What Ray keeps for large objects; there are none.
_STORE_BYTES = 128 << 20

# What is asked of a worker: the name of a method, and its arguments.
Call = tuple[str, tuple[Any, ...]]


class Local:
  """This process.

  Args:
    make: makes the worker.
  """

  def __init__(self, make: Callable[[], Any]):
    self._worker = make()

  def map(self, calls: Iterable[Call]) -> Iterator[Any]:
    """Yields what a worker returns for each call, in any order."""
    for name, arguments in calls:
      yield getattr(self._worker, name)(*arguments)

  def summary(self) -> str:
    """Returns who did it, for the last line."""
    return "by this process"


class Cluster:
  """Actors of Ray, one for each device.

  Args:
    make: makes the worker, in each actor.
    ray: the library, connected.
    workers: how many actors; None for as many as there are devices.
    devices: whether an actor gets a device, or one core.
  """

  def __init__(
    self,
    make: Callable[[], Any],
    ray: Any,
    workers: int | None,
    devices: bool = True,
  ):
    self._ray = ray
    resources, room = _resources(ray, workers, devices)
    number = workers or room
    # A death is for `map` to see, not for Ray to hide.
    actor = ray.remote(max_restarts=0, max_task_retries=0, **resources)(_Actor)
    # Where there are accelerators, the host's threads are nobody's measure.
    threads = resources["num_cpus"] if set(resources) == {"num_cpus"} else None
    self._new = lambda: actor.remote(make, threads)
    self._joining: dict[Any, Any] = {}
    self._idle: list[Any] = []
    # Those that came and went; and deaths, one after another, before being ready.
    self._joined, self._deaths, self._again, self._failed = 0, 0, 0, 0
    for _ in range(number):
      self._join()
    _log.info("%d actors of %s", number, _spelled(resources))

  def _join(self) -> None:
    actor = self._new()
    self._joining[actor.ready.remote()] = actor

  def map(self, calls: Iterable[Call]) -> Iterator[Any]:
    """Yields what a worker returns for each call, in any order.

    A call whose actor dies is made again.

    Raises:
      UserError: a worker raised it, or dies of the same call again and again.
    """
    waiting = collections.deque((call, 1) for call in calls)
    running: dict[Any, tuple[Any, Call, int]] = {}
    idle_waits = 0
    while waiting or running:
      while waiting and self._idle:
        actor, (call, tries) = self._idle.pop(), waiting.popleft()
        running[actor.call.remote(*call)] = actor, call, tries
      # With a limit, so that signals are heard.
      done, _ = self._ray.wait([*running, *self._joining], timeout=1)
      idle_waits = 0 if done or running else idle_waits + 1
      if idle_waits == _PATIENCE:
        _log.warning(
          "no worker is ready yet: they load the model, or the cluster has no room for "
          "any"
        )
      for ref in done:
        if ref in self._joining:
          self._greet(ref)
          continue
        actor, call, tries = running.pop(ref)
        try:
          result = self._result(ref)
        except _Died as error:
          self._bury(actor, error, _spelled_call(call), tries)
          self._again += call[0] == "embed"
          waiting.appendleft((call, tries + 1))
          continue
        self._idle.append(actor)
        yield result

  def _greet(self, ref: Any) -> None:
    """Lets an actor work that has made its worker."""
    actor = self._joining.pop(ref)
    try:
      where = self._result(ref)
    except _Died as error:
      self._failed += 1
      self._bury(actor, error, "loading the model", self._failed)
      return
    self._joined, self._failed = self._joined + 1, 0
    self._idle.append(actor)
    _log.info("a worker is ready on %s", where)

  def _bury(self, actor: Any, error: Exception, what: str, tries: int) -> None:
    """Says over what an actor died, and asks for another in its place."""
    self._deaths += 1
    _log.warning("a worker died; begun again: %s (%s)", what, error)
    if tries >= _TRIES:
      raise UserError(
        f"{what} was begun {tries} times, and each time the worker died ({error}): see "
        "Ray's logs, or give each worker more memory"
      ) from error
    with contextlib.suppress(Exception):  # It may only seem dead, and must not go on.
      self._ray.kill(actor)
    self._join()

  def _result(self, ref: Any) -> Any:
    exceptions = self._ray.exceptions
    try:
      return self._ray.get(ref)
    except exceptions.RayTaskError as error:
      # What the worker raised is inside, with a page of Ray's own.
      raise (error.cause if isinstance(error.cause, UserError) else error) from None
    except exceptions.RayError as error:
      lines = str(error).strip().splitlines() or [type(error).__name__]
      raise _Died(lines[0][:200]) from error

  def summary(self) -> str:
    """Returns who did it, for the last line."""
    return (
      f"by {self._joined} actors; {self._deaths} died, {self._again} parts were done "
      "again"
    )


class _Died(Exception):
  """The end of an actor, or of its machine."""


class _Actor:
  """What Ray runs: a worker that is made in another process.

  Args:
    make: makes the worker.
    threads: how many it may use; None for any number.
  """

  def __init__(self, make: Callable[[], Any], threads: int | None):
    self._make, self._worker = make, None
    # XLA and tokenizers look here; Ray itself sets OMP_NUM_THREADS, for PyTorch.
    for name in ("NPROC", "RAYON_NUM_THREADS") if threads else ():
      os.environ[name] = str(threads)
    memory.keep_freed_memory()  # As commands do; an actor is none.

  def ready(self) -> str:
    """Makes the worker; returns where."""
    with self._named():
      self._worker = self._make()
    return f"{socket.gethostname()}, process {os.getpid()}"

  def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
    with self._named():
      return getattr(self._worker, name)(*arguments)

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    """Says in an error on which machine it was."""
    try:
      yield
    except UserError as error:
      raise UserError(f"on {socket.gethostname()}: {error}") from error


@contextlib.contextmanager
def opened(
  engine: str,
  make: Callable[[], Any],
  *,
  address: str | None = None,
  workers: int | None = None,
  devices: bool = True,
) -> Iterator[Local | Cluster]:
  """Yields who does the work.

  Args:
    engine: one of `ENGINES`.
    make: makes a worker; it travels by pickle.
    address: a cluster, as `ray.init` takes it; None starts Ray on this machine,
      unless the environment has RAY_ADDRESS.
    workers: how many actors; None for one a device.
    devices: whether there is something for devices to do; if not, an actor gets a core.

  Raises:
    UserError: Ray is missing, or there is no cluster at the address.
  """
  if engine == "local":
    yield Local(make)
    return
  ray = _connect(address)
  try:
    yield Cluster(make, ray, workers, devices)
  finally:
    ray.shutdown()


def _connect(address: str | None) -> Any:
  """Returns Ray, connected to a cluster."""
  # Nobody asked for reports to its makers.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  try:
    import ray
    import ray.exceptions
  except ImportError as error:
    raise UserError("--engine=ray needs Ray: pip install 'dcse_jax[ray]'") from error
  address = address or os.environ.get("RAY_ADDRESS")
  settings = {"log_to_driver": False, "logging_level": logging.CRITICAL}
  handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  if address:
    _check_address(address)
  else:
    settings |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
  try:
    # Without an address Ray would join whatever cluster was last begun on this machine.
    ray.init(address or "local", **settings)
  except Exception as error:  # It raises many kinds.
    reason = " ".join(str(error).split())[:200]
    if address and "RAY_AUTH_MODE" not in os.environ:
      # Ray says nothing of tokens here, which it asks for where it has made one before.
      reason += "; if it asks for a token, set RAY_AUTH_MODE=token"
    raise _no_cluster(address, reason) from error
  # Ray puts its own in their place.
  with contextlib.suppress(ValueError):  # Threads have none.
    for number, handler in handlers.items():
      signal.signal(number, handler)
  return ray


def _no_cluster(address: str | None, reason: object) -> UserError:
  if not address:
    return UserError(
      f"Ray cannot start on this machine ({reason}): see /tmp/ray/session_latest/logs, "
      "or name a cluster by --address"
    )
  return UserError(
    f"no Ray cluster at {address} ({reason}): start one by `ray start --head`, or mend "
    "--address"
  )


def _check_address(address: str | None) -> None:
  """Refuses an address where nobody answers; Ray itself would wait for a minute."""
  host, _, port = (address or "").removeprefix("ray://").rpartition(":")
  if not host:
    return
  try:
    socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
  except (OSError, ValueError) as error:
    raise _no_cluster(address, error) from error


def _resources(
  ray: Any, workers: int | None, devices: bool
) -> tuple[dict[str, Any], int]:
  """Returns what an actor gets, and how many actors there is room for.

  It is a core; or, of devices, a GPU; or all chips of a host with TPUs, which one process
  uses; or, where there are neither, a host's CPUs, or an equal share of all.
  """
  nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
  count = lambda name: [int(node[name]) for node in nodes if node.get(name, 0) >= 1]
  if not devices:
    return {"num_cpus": 1}, sum(count("CPU")) or 1
  if gpus := count("GPU"):
    return {"num_gpus": 1, "num_cpus": 1}, sum(gpus)
  if chips := count("TPU"):
    return {"resources": {"TPU": min(chips)}, "num_cpus": 1}, len(chips)
  cpus = count("CPU") or [1]
  share = max(1, sum(cpus) // workers) if workers else min(cpus)
  return {"num_cpus": min(share, *cpus)}, len(cpus)


def _spelled_call(call: Call) -> str:
  """Names what is asked for: a part, if it is one."""
  name, arguments = call
  return getattr(arguments[0], "name", name) if arguments else name


def _spelled(resources: dict[str, Any]) -> str:
  if "num_gpus" in resources:
    return "a GPU each"
  if "resources" in resources:
    return f"{resources['resources']['TPU']} TPU chips each"
  return f"{resources['num_cpus']} CPUs each"

"""Processes that train together, on one host or several, and how they talk.

They talk through JAX's coordination service, which the first of them runs: unlike a
collective of the devices it lets one work for hours while the others wait.
"""

import atexit
from collections.abc import Callable
import contextlib
import ctypes
import itertools
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any, NoReturn
import uuid

import jax

# Orbax takes the service's client from there too: there is no public way.
from jax._src import distributed

from dcse_jax.runtime import files
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError

# A process that is silent for this long is dead.
_HEARTBEAT_SECONDS = 100
# One process may tokenise or embed a large text while the others wait.
_WAIT_MS = 7 * 24 * 3600 * 1000
_LEAVE_MS = 10_000
_POLL_SECONDS = 0.5
AGAIN = "start all of them again with the same command to go on"


class _State:
  calls = itertools.count()  # Names a call: the number is the same in all processes.
  sharing: dict[pathlib.Path, list[int]] = {}
  is_watching = False
  ending = threading.Lock()  # Whoever ends this process never releases it.
  stopping = threading.Lock()  # Guards the two below.
  asked = 0  # How often `asked_to_stop` was called.
  stop_at: int | None = None


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Connects to the other processes; call it before anything asks for devices.

  Without arguments JAX finds them: on Cloud TPUs, under Slurm, Open MPI and Kubernetes.
  Where it finds none this process is alone.

  Args:
    coordinator: HOST:PORT of the first process, as the others reach it.
    num_processes: how many there are in all.
    process_id: this one's number, from 0.

  Raises:
    UserError: only some arguments are given, or the others cannot be reached.
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    _check(*given)
  # `asked_to_stop` takes care of signals, also of Ctrl-C.
  jax.config.update("jax_enable_preemption_service", False)
  _on_abort(_say_why)
  try:
    jax.distributed.initialize(
      *given,
      # No detection then: Slurm's would give each process one GPU.
      cluster_detection_method="deactivate" if coordinator else None,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except ValueError as error:
    # JAX says this when it finds no cluster, which is wrong if the user named one.
    if coordinator or "JAX_COORDINATOR_ADDRESS" in os.environ:
      raise _cannot_meet(error) from error
  except RuntimeError as error:
    raise _cannot_meet(error) from error
  if distributed.global_state.num_processes == 1:
    _on_abort(None)
    return
  _watch()
  if distributed.global_state.process_id:
    logging.getLogger("dcse_jax").setLevel(logging.WARNING)


def _check(coordinator, num_processes, process_id) -> None:
  if None in (coordinator, num_processes, process_id):
    raise UserError("give --coordinator, --num_processes and --process_id, or none")
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit():
    raise UserError(
      f"--coordinator={coordinator} is not HOST:PORT: give the first process's host "
      "and any free port there"
    )
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id={process_id}: processes are numbered from 0 to {num_processes - 1}"
    )


def _cannot_meet(error: Exception) -> UserError:
  reason = " ".join(str(error).split())[:300]
  return UserError(
    f"cannot meet the other processes ({reason}): start all of them within five "
    "minutes, or give each --coordinator, --num_processes and --process_id"
  )


def are_several() -> bool:
  """Returns whether `initialize` met other processes."""
  return _State.is_watching


def is_first() -> bool:
  """Returns whether this process is the one that writes."""
  return jax.process_index() == 0


def wait() -> None:
  """Waits until every process has called it."""
  gather(None)


def gather(value: Any) -> list[Any]:
  """Returns the values, JSON, of all processes in their order."""
  if jax.process_count() == 1:
    return [value]
  client, name = distributed.global_state.client, f"dcse_jax/{next(_State.calls)}"
  client.key_value_set(f"{name}/{jax.process_index():06}", json.dumps(value))
  client.wait_at_barrier(name, _WAIT_MS)
  return [json.loads(text) for _, text in sorted(client.key_value_dir_get(name))]


def agree(value: Any) -> Any:
  """Returns the first process's value, JSON: others may see a shared folder late."""
  return gather(value if is_first() else None)[0]


def sharing(folder: pathlib.Path) -> list[int]:
  """Returns the processes, with this one, that have the same folder at this path.

  Each writes a file there, once for each path; all processes must call it together.

  Raises:
    UserError: the folder cannot be made or written.
  """
  if jax.process_count() == 1:
    return [0]
  if folder not in _State.sharing:
    files.make_folder(folder)
    token = agree(uuid.uuid4().hex)
    marks = [folder / f".process-{token}-{i}" for i in range(jax.process_count())]
    mine = marks[jax.process_index()]
    files.write_text(mine, "")
    wait()
    seen = gather([mark.exists() for mark in marks])
    mine.unlink()
    group = {jax.process_index()}
    while True:
      more = {j for i in group for j, sees in enumerate(seen[i]) if sees}
      more |= {j for j, sees in enumerate(seen) if any(sees[i] for i in group)}
      if more <= group:
        break
      group |= more
    _State.sharing[folder] = sorted(group)
  return _State.sharing[folder]


def first_makes(folder: pathlib.Path, make: Callable[[], None]) -> None:
  """Makes something in a folder, once; all who share it wait for the first of them.

  Args:
    folder: where it is made; shared by all processes, some, or none.
    make: makes what is not there yet. If it fails, all processes end.
  """
  if sharing(folder)[0] == jax.process_index():
    make()
  wait()


def asked_to_stop() -> bool:
  """Returns whether all stop here, because a signal told one process to stop.

  All processes ask after every step, and get True at the same step.
  """
  if jax.process_count() == 1:
    return signals.requested()
  if signals.requested() and _State.stop_at is None:
    _tell("stop", jax.process_index())
  with _State.stopping:
    _State.asked += 1
    return _State.stop_at is not None and _State.asked >= _State.stop_at


def end_all(status: int, why: str) -> None:
  """Ends all processes, and others print `why`; returns if there are no others."""
  if not are_several():
    return
  if not _State.ending.acquire(blocking=False):
    threading.Event().wait()  # The other thread is ending the process.
  _tell("end", {"status": status, "process": jax.process_index(), "why": why})
  _leave(status)


def _tell(what: str, content: Any) -> None:
  """Tells all processes, with this one; if several tell the same, one is heard."""
  with contextlib.suppress(Exception):  # Another was first, or nobody is left.
    distributed.global_state.client.key_value_set(
      f"dcse_jax_told/{what}", json.dumps(content)
    )


def _leave(status: int) -> NoReturn:
  """Ends this process when all have heard, without the service's own shutdown."""
  with contextlib.suppress(Exception):
    distributed.global_state.client.wait_at_barrier("dcse_jax_leave", _LEAVE_MS)
  if distributed.global_state.process_id == 0:
    time.sleep(1)  # Without the service that it runs the others could not leave.
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(status)


def _watch() -> None:
  """Starts a thread that listens to the others while this process computes."""
  _State.is_watching = True
  done = threading.Event()
  thread = threading.Thread(target=_listen, args=(done,), daemon=True)
  thread.start()

  def stop():
    done.set()
    thread.join()

  # It must run before the service's own: the last registered is called first.
  atexit.register(stop)


def _listen(done: threading.Event) -> None:
  state = distributed.global_state
  client, count = state.client, state.num_processes
  while not done.wait(_POLL_SECONDS):
    try:
      told = {
        key.rpartition("/")[2]: json.loads(text)
        for key, text in client.key_value_dir_get("dcse_jax_told")
      }
      if "stop" in told and _State.stop_at is None:
        _agree_where_to_stop(client, told["stop"])
    except jax.errors.JaxRuntimeError:
      return  # The service is gone, which ends this process.
    if "end" in told and _State.ending.acquire(blocking=False):
      process, why = told["end"]["process"], told["end"]["why"]
      print(f"process {process} of {count}: {why}", file=sys.stderr, flush=True)
      _leave(told["end"]["status"])


def _agree_where_to_stop(client, process: int) -> None:
  """Makes all stop one step after the furthest one's last step."""
  state = distributed.global_state
  # While it waits here for the others, no process begins a step.
  with _State.stopping:
    client.key_value_set(f"dcse_jax_asked/{state.process_id}", str(_State.asked))
    client.wait_at_barrier("dcse_jax_stop", _WAIT_MS)
    asked = [int(text) for _, text in client.key_value_dir_get("dcse_jax_asked")]
    _State.stop_at = max(asked) + 1
  if process != state.process_id:
    print(
      f"process {process} of {state.num_processes} was told to stop: saving, then "
      "leaving",
      file=sys.stderr,
      flush=True,
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _say_why(number: int) -> None:
  del number
  what = "another process has died" if are_several() else "not all processes came"
  os.write(2, f"error: {what} (see above): {AGAIN}\n".encode())
  os._exit(1)


def _on_abort(handler: Any) -> None:
  """Sets what is called when the service aborts this process because of another.

  The service's own callback cannot be used: it throws std::bad_cast as of jaxlib 0.10.
  Python's handlers would run too late: the process is gone when a C handler returns.

  Args:
    handler: a C function; None restores the system's own.
  """
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)

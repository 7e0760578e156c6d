"""Commands as real processes that start in a moment.

Importing JAX and whatever else a command needs takes longer than most of what tests ask
of it. So one process imports it all, starts no thread and no device, and forks. A fork
has its own arguments, environment, files and exit status, as with `python -m`.
"""

import atexit
from collections.abc import Callable, Mapping
import contextlib
import functools
import gc
import importlib
from multiprocessing.connection import Connection
from multiprocessing.connection import Pipe
import os
import pathlib
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).parents[1]
# dcse_jax is not among them: a command's module must define its flags only once.
_PRELOAD = (
  "flax.nnx",
  "grain",
  "ml_collections.config_flags",
  "optax",
  "orbax.checkpoint",
  "safetensors.numpy",
  "scipy.stats",
  "tokenizers",
  "tqdm",
  "transformers.tokenization_utils_fast",
)


def print_to(path: str) -> None:
  """Makes a file, such as /dev/full, standard output; for `preexec`."""
  os.dup2(os.open(path, os.O_WRONLY), 1)


def print_to_nobody() -> None:
  """Makes a pipe that nobody reads standard output; for `preexec`."""
  ours, theirs = os.pipe()
  os.close(ours)
  os.dup2(theirs, 1)


def lose_terminal() -> None:
  """Makes a terminal that is gone all three streams, as under nohup; for `preexec`."""
  ours, theirs = os.openpty()
  os.close(ours)
  for number in range(3):
    os.dup2(theirs, number)
  signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Process:
  """A running process; the end of a `with` block kills it if it still runs.

  Attributes:
    pid: its process id.
    returncode: None until `wait` returned.
  """

  def __init__(self, link, files):
    self._link, self._files = link, files
    self._texts = None
    self.pid = link.recv()
    self.returncode = None

  def wait(self, timeout: float = 300) -> int:
    """Waits for its exit status, as the shell sees it; -N if signal N killed it.

    Args:
      timeout: seconds; after them it is killed.

    Raises:
      TimeoutError: it took longer.
    """
    if self.returncode is None:
      late = not self._link.poll(timeout)
      if late:
        self.send_signal(signal.SIGKILL)
      self.returncode = self._link.recv()
      self._texts = [self.stdout(), self.stderr()]
      for file in (self._link, *self._files):
        file.close()
      if late:
        raise TimeoutError(f"killed after {timeout} s: {self.stderr()}")
    return self.returncode

  def has_ended(self) -> bool:
    """Returns whether `wait` would return at once."""
    return self.returncode is not None or self._link.poll()

  def send_signal(self, number: int) -> None:
    """Sends a signal, unless the process is known to have ended."""
    if not self.has_ended():
      os.kill(self.pid, number)

  def stdout(self) -> str:
    """Reads what it has written so far."""
    return self._texts[0] if self._texts else _text(self._files[1])

  def stderr(self) -> str:
    """Reads what it has written so far."""
    return self._texts[1] if self._texts else _text(self._files[2])

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.send_signal(signal.SIGKILL)
    self.wait()


def start(
  module: str,
  *arguments: str,
  env: Mapping[str, str] | None = None,
  stdin: str = "",
  stdin_errors: str = "strict",
  preexec: Callable[[], object] | None = None,
  fresh: bool = False,
) -> Process:
  """Starts `python -m MODULE ARGUMENTS` at the root of the repository.

  It leads a session of its own, which ends with it and with pytest.
  Forks have the same seeds of `hash` and of `np.random`.

  Args:
    env: goes before this process's environment, in which there is one device.
      Any other value costs the imports once more, except for XLA_FLAGS.
    stdin: what it reads.
    stdin_errors: how to encode what is not text in stdin, as in `str.encode`.
    preexec: called in the process before the command. It goes there by pickle, so
      a lambda will not do, but `functools.partial(resource.setrlimit, ...)` will.
    fresh: a new Python that imports all by itself, not a fork.
  """
  # What is compiled for a test runs only a few times, so it need not be fast.
  flags = "--xla_backend_optimization_level=0"
  environment = {**os.environ, "XLA_FLAGS": flags, **(env or {})}
  # pytest's, which changes with every test.
  environment.pop("PYTEST_CURRENT_TEST", None)
  # XLA reads its flags when a device starts, everything else when it is imported.
  imported = {k: v for k, v in environment.items() if k != "XLA_FLAGS"}
  files = [tempfile.TemporaryFile() for _ in range(3)]
  files[0].write(stdin.encode(errors=stdin_errors))
  files[0].seek(0)
  link, theirs = Pipe()
  with theirs:
    descriptors = [file.fileno() for file in (theirs, *files)]
    socket.send_fds(_server(frozenset(imported.items())), [b"."], descriptors)
  link.send((module, list(map(str, arguments)), environment, preexec, fresh))
  return Process(link, files)


def run(module: str, *arguments: str, timeout: float = 300, **options):
  """Starts a process like `start`, waits, and returns what `subprocess.run` does."""
  with start(module, *arguments, **options) as process:
    code = process.wait(timeout)
  command = [sys.executable, "-m", module, *arguments]
  return subprocess.CompletedProcess(command, code, process.stdout(), process.stderr())


def _text(file) -> str:
  # The process writes at the file's position, which reading must not move.
  size = os.fstat(file.fileno()).st_size
  return os.pread(file.fileno(), size, 0).decode(errors="replace")


@functools.cache
def _server(environment):
  """Starts a process that forks; returns a socket to it."""
  control, theirs = socket.socketpair()
  with theirs:
    server = subprocess.Popen(
      [sys.executable, "-m", "tests.processes"],
      cwd=ROOT,
      env=dict(environment),
      stdin=theirs,
      stdout=subprocess.DEVNULL,
      start_new_session=True,
    )

  def stop():
    control.close()
    server.wait()

  atexit.register(stop)
  return control


# --- In the other process -----------------------------------------------------


def _serve():
  """Forks for each request until pytest ends; returns the request, in the fork."""
  for name in _PRELOAD:
    importlib.import_module(name)
  # A fork has the locks of all threads, but only one of the threads.
  assert threading.active_count() == 1, threading.enumerate()
  gc.freeze()
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)
  with socket.socket(fileno=os.dup(0)) as control:
    while True:
      _, descriptors, _, _ = socket.recv_fds(control, 1, 4)
      if not descriptors:
        sys.exit()
      if os.fork() == 0:
        break
      for descriptor in descriptors:
        os.close(descriptor)
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  with Connection(descriptors[0]) as link:
    request = link.recv_bytes()
    pid = os.fork()
    if pid:
      _watch(pid, link)
      os._exit(0)
  for number, descriptor in enumerate(descriptors[1:]):
    os.dup2(descriptor, number)
    os.close(descriptor)
  return request


def _watch(pid, link):
  """Reports how a process ends; kills it when nobody is left to listen."""
  link.send(pid)
  status = None
  while status is None:
    if link.poll(0.02):
      os.kill(pid, signal.SIGKILL)
    ended, found = os.waitpid(pid, os.WNOHANG)
    status = found if ended else None
  with contextlib.suppress(ProcessLookupError):
    os.killpg(pid, signal.SIGKILL)
  with contextlib.suppress(OSError):
    link.send(os.waitstatus_to_exitcode(status))


def _become(request):
  """Runs on as `python -m` would, to the end."""
  os.setsid()
  # Whoever ran pytest may have switched Ctrl-C off.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  module, arguments, environment, preexec, fresh = pickle.loads(request)
  os.environ.clear()
  os.environ.update(environment)
  if preexec:
    preexec()
  if fresh:
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)
  sys.argv[1:] = arguments
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  _become(_serve())

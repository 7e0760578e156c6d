"""How every command starts and how it ends: bad input with one line and status 2."""

import ast
from collections.abc import Callable
import contextlib
import errno
import functools
import io
import logging
import os
import pathlib
import signal
import sys
import threading
import traceback
from typing import NoReturn

from absl import app
from absl import flags
import absl.logging
from ml_collections import config_flags

from dcse_jax.runtime import memory
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError

# Nobody reads any more: a pipe whose other end closed, a terminal that is gone.
_UNREAD = (errno.EPIPE, errno.EIO)
_UNREAD_STATUS = 128 + signal.SIGPIPE


def printable(content: str) -> str:
  """Text as a terminal may show it: what would steer that is spelled out.

  Names and words from files of strangers come into errors and logs.
  """
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in content
  )


def _one_line(error: BaseException) -> str:
  return printable(" ".join(str(error).split())) or type(error).__name__


class _Output(io.FileIO):
  """Standard output or error; a failure to write is kept, and ends nothing.

  Args:
    number: of the descriptor.
    ends: whether the first failure is raised, once; may be changed.

  Attributes:
    failure: the first.
  """

  def __init__(self, number: int, *, ends: bool):
    super().__init__(number, "w", closefd=False)
    self.ends, self.failure = ends, None

  def write(self, content) -> int | None:
    try:
      return super().write(content)
    except OSError as error:
      if self.failure is None:
        self.failure = error
        if self.ends:
          raise
      return memoryview(content).nbytes


def _open_outputs(*, ends: bool) -> _Output:
  """Makes sys.stdout and sys.stderr such as never fail in the middle of something.

  Args:
    ends: whether a failure of stdout ends the command at once.

  Returns:
    What stdout writes to.

  Raises:
    UserError: stdout is closed, and the command has nothing else to give.
  """
  logging.raiseExceptions = False  # Of the handlers of others.
  is_closed = [_is_closed(number) for number in range(3)]
  for number in range(3):
    if is_closed[number]:
      # The next file that anything opens would get the number, and what is printed.
      os.dup2(os.open(os.devnull, os.O_RDWR), number)
  outputs = []
  for name, number in (("stdout", 1), ("stderr", 2)):
    old = getattr(sys, name)
    if old is not None:
      with contextlib.suppress(OSError, ValueError):
        old.flush()
    output = _Output(number, ends=ends and number == 1)
    new = io.TextIOWrapper(
      io.BufferedWriter(output),
      encoding=getattr(old, "encoding", None) or "utf-8",
      # What the terminal cannot show is spelled out.
      errors="backslashreplace",
      line_buffering=number == 2 or output.isatty(),
      write_through=getattr(old, "write_through", False),
    )
    setattr(sys, name, new)
    outputs.append(output)
  if ends and is_closed[1]:
    raise UserError("standard output is closed: there is nowhere to print to")
  return outputs[0]


def _is_closed(number: int) -> bool:
  try:
    os.fstat(number)
  except OSError:
    return True
  return False


def _without_repr(message: str) -> str:
  """A message in one line, though it may be what a KeyError prints: Python's repr."""
  with contextlib.suppress(SyntaxError, ValueError):
    message = str(ast.literal_eval(message))
  return " ".join(message.split())


def _parse(argv: list[str], *, max_arguments: int) -> list[str]:
  """Parses flags; whatever a config file or an override raises is bad input."""
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(f"{_one_line(error)}; --help lists the flags") from error
  except (AttributeError, KeyError) as error:
    message = _without_repr(str(error.args[0] if error.args else error))
    raise UserError(
      f"unknown config field: {message}; dcse_jax/config.py lists them"
    ) from error
  except Exception as error:
    raise UserError(_one_line(error)) from error
  if len(rest) > 1 + max_arguments:
    raise UserError(f"unexpected argument {rest[-1]!r}: flags begin with --")
  return rest


class _Formatter(logging.Formatter):
  """The bare message, printable."""

  def formatMessage(self, record: logging.LogRecord) -> str:
    return printable(super().formatMessage(record))


def _start_logging() -> None:
  # A run's own messages, bare, on stdout; of other libraries only warnings.
  absl.logging.set_verbosity(absl.logging.WARNING)
  handler = logging.StreamHandler(sys.stdout)
  handler.setFormatter(_Formatter("%(message)s"))
  logger = logging.getLogger("dcse_jax")
  logger.handlers[:] = [handler]
  logger.propagate = False
  logger.setLevel(logging.INFO)


def _hush_writers() -> None:
  """Keeps a page of tracebacks from standing before the one line of a failed save.

  What Orbax and gcsfs raise they log as well, Orbax's threads print it, and TensorStore's
  and futures say that nobody waits for them any more.
  """
  absl.logging.get_absl_logger().addFilter(lambda r: "orbax" not in r.pathname)
  for name in ("asyncio", "gcsfs"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  of_threads, of_others = threading.excepthook, sys.unraisablehook

  def thread_hook(args):
    if not type(args.thread).__module__.startswith("orbax"):
      of_threads(args)

  def other_hook(args):
    if str(args.exc_value) != "Event loop is closed":
      of_others(args)

  threading.excepthook, sys.unraisablehook = thread_hook, other_hook


def check_config_file() -> None:
  """Refuses a --config, by ml_collections, whose file is not there.

  Raises:
    UserError: naming it.
  """
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  if not pathlib.Path(path.partition(":")[0]).is_file():
    raise UserError(f"there is no config file {path}: see configs/")


def _end(status: int, why: str) -> NoReturn:
  print(why, file=sys.stderr)
  processes.end_all(status, why)
  sys.exit(status)


def run(
  main: Callable[..., None],
  define_flags: Callable[[], None] = lambda: None,
  *,
  max_arguments: int = 0,
  goes_on: bool = False,
  gives_lines: bool = False,
) -> None:
  """Runs a command: parses flags, calls main, turns UserError into one line.

  Args:
    main: takes the arguments that are not flags.
    define_flags: by absl, before they are parsed.
    max_arguments: how many of these there may be.
    goes_on: whether the command, run again, goes on where it was interrupted.
    gives_lines: whether what it prints is all that it gives: then it ends where that
      cannot be printed. Any other does its work first.
  """
  stdout = None

  def start(argv):
    _start_logging()
    _hush_writers()
    memory.keep_freed_memory()
    with signals.handled() if goes_on else contextlib.nullcontext():
      main(*argv[1:])
    sys.stdout.flush()
    if stdout.failure:
      raise stdout.failure

  try:
    stdout = _open_outputs(ends=gives_lines)
    define_flags()
    app.run(start, flags_parser=functools.partial(_parse, max_arguments=max_arguments))
  except UserError as error:
    _end(2, f"error: {_one_line(error)}")
  except signals.Interrupted:
    _end(signals.EXIT_STATUS, "interrupted: run the same command again to go on")
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  except Exception as error:
    if stdout and error is stdout.failure:
      if error.errno in _UNREAD:
        sys.exit(_UNREAD_STATUS if gives_lines else 0)
      done = "" if gives_lines else "; all else is done"
      _end(2, f"error: cannot print ({error.strerror}){done}")
    if processes.are_several():
      # An error of ours, or what a collective says when another process has died.
      traceback.print_exc()
      _end(1, f"error: ended by what is above; {processes.AGAIN}")
    raise
  finally:
    if stdout:
      stdout.ends = False  # What is left to print fails in silence.

"""How every command starts and ends; bad input ends it with one line and status 2."""

from collections.abc import Callable
import contextlib
import errno
import functools
import io
import logging
import os
import signal
import sys
import threading
import traceback
from typing import NoReturn

from absl import app
from absl import flags
import absl.logging

from dcse_jax.runtime import arguments
from dcse_jax.runtime import memory
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError

# Nobody reads any more: the other end of a pipe was closed, or a terminal is gone.
_UNREAD = (errno.EPIPE, errno.EIO)
_UNREAD_STATUS = 128 + signal.SIGPIPE

# What --help calls the command, if not `python -m MODULE`.
program = ""


def printable(content: str) -> str:
  """Spells out the characters of a text that would control a terminal.

  Errors and logs may hold names and words from files that strangers wrote.
  """
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in content
  )


def _one_line(error: BaseException) -> str:
  return printable(" ".join(str(error).split())) or type(error).__name__


class _Output(io.FileIO):
  """Standard output or error; it remembers a failure to write instead of raising it.

  Args:
    number: the descriptor's.
    ends: whether the first failure is raised, once; may be changed.

  Attributes:
    failure: the first failure.
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
  """Replaces sys.stdout and sys.stderr by streams that never fail halfway.

  Args:
    ends: whether a failure of stdout ends the command at once.

  Returns:
    The stream under sys.stdout.

  Raises:
    UserError: stdout is closed, and the command has nothing but its output to give.
  """
  logging.raiseExceptions = False  # Other libraries' handlers may fail too.
  is_closed = [_is_closed(number) for number in range(3)]
  for number in range(3):
    if is_closed[number]:
      # The next file to be opened would get this number, and all that is printed.
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
      # Characters that the terminal cannot show are spelled out.
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


def _parse(argv: list[str], *, max_arguments: int) -> list[str]:
  """Parses flags; whatever a config file or an override raises is bad input."""
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(f"{_one_line(error)}; --help lists the flags") from error
  except (AttributeError, KeyError) as error:
    raise arguments.unknown_field(error) from error
  except Exception as error:
    raise UserError(_one_line(error)) from error
  if len(rest) > 1 + max_arguments:
    raise UserError(f"unexpected argument {rest[-1]!r}: flags begin with --")
  return rest


class _Formatter(logging.Formatter):
  """A formatter that gives the bare message, printable."""

  def formatMessage(self, record: logging.LogRecord) -> str:
    return printable(super().formatMessage(record))


def _start_logging() -> None:
  # stdout shows a run's own messages, bare; other libraries may only warn.
  absl.logging.set_verbosity(absl.logging.WARNING)
  handler = logging.StreamHandler(sys.stdout)
  handler.setFormatter(_Formatter("%(message)s"))
  logger = logging.getLogger("dcse_jax")
  logger.handlers[:] = [handler]
  logger.propagate = False
  logger.setLevel(logging.INFO)


def _hush_writers() -> None:
  """Keeps a page of tracebacks from hiding the one line that a failed save prints.

  Orbax and gcsfs also log what they raise, Orbax's threads print it, and TensorStore's
  threads and futures complain that nobody waits for them any more.
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
    define_flags: defines absl flags, before they are parsed.
    max_arguments: how many arguments there may be that are not flags.
    goes_on: whether the command, run again, continues where it was interrupted.
    gives_lines: whether the command's only result is what it prints: then it ends when
      it cannot print. Any other command does its work first.
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
    sys.argv[1:] = arguments.normalize(sys.argv[1:])
    if {"--help", "--h"}.intersection(sys.argv[1:]):
      module = sys.modules["__main__"]
      called = program or f"python -m {module.__spec__.name}"
      print(arguments.help_text(module.__doc__, called), flush=True)
      return
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
      # It is our error, or what a collective says when another process has died.
      traceback.print_exc()
      _end(1, f"error: ended by what is above; {processes.AGAIN}")
    raise
  finally:
    if stdout:
      stdout.ends = False  # What is left to print may fail silently.

"""How every command starts and how it ends: bad input with one line and status 2."""

import ast
from collections.abc import Callable
import contextlib
import functools
import logging
import pathlib
import signal
import sys
import threading
import traceback
from typing import NoReturn

import absl.logging
from absl import app
from absl import flags
from ml_collections import config_flags

from dcse_jax import hosts
from dcse_jax import interruption
from dcse_jax import memory
from dcse_jax.errors import UserError


def _one_line(error: BaseException) -> str:
  return " ".join(str(error).split()) or type(error).__name__


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


def _start_logging() -> None:
  # A run's own messages, bare, on stdout; of other libraries only warnings.
  absl.logging.set_verbosity(absl.logging.WARNING)
  handler = logging.StreamHandler(sys.stdout)
  handler.setFormatter(logging.Formatter("%(message)s"))
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
  hosts.end_all(status, why)
  sys.exit(status)


def run(
  main: Callable[..., None],
  define_flags: Callable[[], None] = lambda: None,
  *,
  max_arguments: int = 0,
  goes_on: bool = False,
) -> None:
  """Runs a command: parses flags, calls main, turns UserError into one line.

  Args:
    main: takes the arguments that are not flags.
    define_flags: by absl, before they are parsed.
    max_arguments: how many of these there may be.
    goes_on: whether the command, run again, goes on where it was interrupted.
  """

  def start(argv):
    _start_logging()
    _hush_writers()
    memory.keep_freed_memory()
    with interruption.handled() if goes_on else contextlib.nullcontext():
      main(*argv[1:])

  define_flags()
  try:
    app.run(start, flags_parser=functools.partial(_parse, max_arguments=max_arguments))
  except UserError as error:
    _end(2, f"error: {_one_line(error)}")
  except interruption.Interrupted:
    _end(interruption.EXIT_STATUS, "interrupted: run the same command again to go on")
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  except Exception:
    if hosts.are_several():
      # An error of ours, or what a collective says when another process has died.
      traceback.print_exc()
      _end(1, f"error: ended by what is above; {hosts.AGAIN}")
    raise

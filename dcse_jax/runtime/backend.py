"""The backend that programs are traced for: this process's own, or another's ahead."""

from collections.abc import Iterator
import contextlib
import contextvars

import jax

_ahead = contextvars.ContextVar("backend", default="")


def current() -> str:
  """Returns what a program that is traced now will run on: "cpu", "gpu" or "tpu"."""
  return _ahead.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
  """Makes programs that are first traced in this block be for that backend.

  A function that was traced before is not traced again.
  """
  token = _ahead.set(name)
  try:
    yield
  finally:
    _ahead.reset(token)

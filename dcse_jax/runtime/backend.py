"""The backend that programs are traced for: this process's own or, ahead, another."""

from collections.abc import Iterator
import contextlib
import contextvars

import jax

_ahead = contextvars.ContextVar("backend", default="")


def current() -> str:
  """What a program that is traced now will run on: "cpu", "gpu" or "tpu"."""
  return _ahead.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
  """Programs first traced in this block are for that backend, wherever that is.

  A function that was traced before is not traced again.
  """
  token = _ahead.set(name)
  try:
    yield
  finally:
    _ahead.reset(token)

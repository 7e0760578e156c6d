"""How a process on a CPU keeps its memory between steps."""

import ctypes
import sys

# Numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Has the C library keep what is freed, for whatever is allocated next.

  XLA's CPU backend takes its temporaries anew at every step, and each page given
  back to the system must be faulted in and zeroed again: 8 to 10 % of a step.
  The process stays as large as it once was. Does nothing but on Linux with glibc.
  """
  if not sys.platform.startswith("linux"):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    mallopt(_M_ARENA_MAX, 1)

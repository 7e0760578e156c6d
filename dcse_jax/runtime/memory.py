"""Keeps a process's memory between steps on a CPU."""

import ctypes
import sys

# Numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Makes the C library keep freed memory for whatever is allocated next.

  XLA's CPU backend allocates its temporaries anew at every step, and each page given
  back to the system must be faulted in and zeroed again: 8 to 10 % of a step.
  The process never shrinks. This works only on Linux with glibc, and does nothing
  elsewhere.
  """
  if not sys.platform.startswith("linux"):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    mallopt(_M_ARENA_MAX, 1)

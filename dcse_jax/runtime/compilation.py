"""A cache of compiled programs, for this run and the next."""

import logging
import os
import pathlib

import jax

# No public function reads the cached programs.
from jax._src import compilation_cache

_log = logging.getLogger(__name__)


def use_cache(folder: pathlib.Path) -> None:
  """Keeps compiled programs in a folder, and reads them from there.

  A program's name says what it was compiled from, for what machine and by which
  versions. JAX_COMPILATION_CACHE_DIR in the environment takes precedence over the
  folder. Damaged programs in the folder are removed, and so compiled anew.
  """
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    # JAX never overwrites a program: it would fail to read a damaged one in every run.
    _remove_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
  # Small programs are kept too: a run starts dozens.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_damaged(folder: pathlib.Path) -> None:
  damaged = 0
  for path in folder.glob("*-cache"):
    try:
      compilation_cache.decompress_executable(path.read_bytes())  # Checks a checksum.
    except Exception:  # Either of two libraries may unpack it.
      path.unlink(missing_ok=True)
      damaged += 1
  if damaged:
    _log.warning("%s: %d damaged programs removed: compiling anew", folder, damaged)

"""What is compiled once is not compiled again, in this run or the next."""

import os
import pathlib

import jax


def use_cache(folder: pathlib.Path) -> None:
  """Keeps compiled programs in a folder, and takes them from there.

  A program's name says what it was compiled from, for what machine and by which
  versions. JAX_COMPILATION_CACHE_DIR in the environment goes before the folder.
  """
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(folder))
  # Small ones too: a run starts dozens.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

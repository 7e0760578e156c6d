"""What is compiled once is not compiled again, in this run or the next."""

import pathlib

import jax


def use_cache(folder: pathlib.Path) -> None:
  """Keeps compiled programs in a folder, and takes them from there.

  XLA's own settings, the machine and the versions are part of each one's name.
  """
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # Small ones too: a run starts dozens.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

"""One of two hosts that build a teacher cache: `python -m tests.cache_host`."""

import pathlib
import sys

import numpy as np

from dcse_jax.runtime import processes
from dcse_jax.teachers import cache as teacher_cache


def main():
  host, port, path = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
  processes.initialize(f"localhost:{port}", 2, host)
  # It makes models, so it is imported only now.
  from tests.teachers import test_teachers

  teacher_cache._BLOCK_ROWS = 16
  blocks = []
  original = teacher_cache.encode_tokens
  teacher_cache.encode_tokens = lambda *a, **k: blocks.append(1) or original(*a, **k)
  file = test_teachers.cache_of(path)
  np.save(path / f"seen-{host}.npy", file)
  print("blocks", len(blocks))


if __name__ == "__main__":
  main()

"""Group-P alone."""

import time

import jax
import numpy as np
import torch

from benchmarks import torch_peers
from dcse_jax import losses

# Timed together.
_CALLS = 5


def measure(size: int, rounds: int) -> dict[str, list[float]]:
  """Measures seconds of each way to shuffle a batch's similarities, interleaved."""
  rng = np.random.default_rng(0)
  unit = rng.standard_normal((size, 64)).astype(np.float32)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  similarity = unit @ unit.T
  without_diagonal = torch_peers.off_diagonal(torch.tensor(similarity))
  jitted = jax.jit(lambda x, key: losses.group_shuffle(x, key, probability=0.1))
  on_device, key = jax.device_put(similarity), jax.random.key(0)
  ways = {
    "row by row": lambda: torch_peers.group_shuffle_by_rows(without_diagonal),
    "PyTorch, all rows at once": lambda: torch_peers.group_shuffle(without_diagonal),
    "ours": lambda: jitted(on_device, key).block_until_ready(),
  }
  seconds = {label: [] for label in ways}
  for i in range(rounds + 2):
    for label, way in ways.items():
      way()  # The other library's threads spin for a while after its turn.
      start = time.perf_counter()
      for _ in range(_CALLS):
        way()
      if i >= 2:
        seconds[label].append((time.perf_counter() - start) / _CALLS)
  return seconds

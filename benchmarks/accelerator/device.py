"""The card itself: what it is called, and what it can do at best."""

import importlib.metadata
import platform
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp

from dcse_jax.train import flops

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")


def facts() -> dict[str, Any]:
  """Names the device, its driver and the libraries."""
  device = jax.devices()[0]
  known = flops.DEVICES.get(device.device_kind)
  memory = device.memory_stats() or {}
  return {
    "device_kind": device.device_kind,
    "platform": device.platform,
    "devices": jax.device_count(),
    "peak_bfloat16": known and known.bfloat16,
    "memory_rate": known and known.memory_rate,
    "bytes_limit": memory.get("bytes_limit"),
    "driver": _driver(),
    "python": platform.python_version(),
    "processor": platform.processor() or platform.machine(),
    "versions": {name: _version(name) for name in _VERSIONS},
  }


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _driver() -> str | None:
  query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm"
  try:
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    return subprocess.check_output(command, text=True, timeout=10).strip()
  except (OSError, subprocess.SubprocessError):
    return None


def seconds(fn, *arguments, rounds: int = 7, calls: int = 5) -> float:
  """Returns the median seconds of one call, of rounds of several."""
  jax.block_until_ready(fn(*arguments))
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(calls):
      result = fn(*arguments)
    jax.block_until_ready(result)
    times.append((time.perf_counter() - start) / calls)
  return statistics.median(times)


def matmul(size: int) -> dict[str, float]:
  """Multiplies bfloat16 matrices of random numbers, [size, size]."""
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
  took = seconds(jax.jit(lambda a, b: a @ b), a, b)
  return {"size": size, "ms": 1e3 * took, "tflops": 2 * size**3 / took / 1e12}


def copy(megabytes: int) -> dict[str, float]:
  """Reads and writes an array that no cache holds."""
  x = jnp.zeros((megabytes * 2**20 // 4,), jnp.float32)
  took = seconds(jax.jit(lambda x: x + 1), x)
  return {"megabytes": megabytes, "gb_per_second": 2 * x.nbytes / took / 1e9}

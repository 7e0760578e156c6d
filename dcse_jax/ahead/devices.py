"""Devices that are not there, as JAX compiles for them: TPUs by libtpu, NVIDIA's GPUs.

A GPU needs no more than a description of itself, below, and JAX's plugin for CUDA.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from dcse_jax.runtime.errors import UserError

_EXAMPLES = (
  "v5e:2x4, v6e:4x4, v4:2x2x2, v5p:2x2x2 or tpu7x:2x2x1; h100:8, h200:8, a100:8 or "
  "a100-40gb:8"
)
# These keep libtpu from looking for a TPU here, complaining or locking it.
_LIBTPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
# The same for CUDA, of which no driver need be here.
_CUDA = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
# XLA's GpuTargetConfig, in the text form of its protocol buffer; what differs between
# the cards is filled in.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin} core_count: {cores} fpus_per_core: {units}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {rate} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{kind}"
"""
_HOPPER = dict(
  shared=233472, optin=232448, cores=132, units=128, cache=52428800, clock=1.98, major=9
)
_AMPERE = dict(
  shared=167936, optin=166912, cores=108, units=64, cache=41943040, clock=1.41, major=8
)
# Each has the name that a topology begins with; kinds are those of `flops.DEVICES`.
_GPUS = {
  "h100": dict(
    _HOPPER, kind="NVIDIA H100 80GB HBM3", memory=84929347584, rate=3352320000000
  ),
  "h200": dict(_HOPPER, kind="NVIDIA H200", memory=150754820096, rate=4800000000000),
  "a100": dict(
    _AMPERE, kind="NVIDIA A100-SXM4-80GB", memory=84987740160, rate=2039000000000
  ),
  "a100-40gb": dict(
    _AMPERE, kind="NVIDIA A100-SXM4-40GB", memory=42298834944, rate=1555000000000
  ),
}


def is_gpu(topology: str) -> bool:
  """Says whether a topology such as "h100:8" is one of GPUs."""
  return topology.partition(":")[0] in _GPUS


def options(topology: str) -> dict[str, Any]:
  """Returns the compiler's options for a topology."""
  # Nothing can be tried out where there is no card: every product takes Triton's
  # default tiles, where a card would choose among these and its libraries'.
  return {"xla_gpu_autotune_level": 0} if is_gpu(topology) else {}


def find(topology: str) -> list[jax.Device]:
  """Returns the devices of a topology.

  Args:
    topology: a generation of TPUs and the shape of its chips, such as "v5e:2x4", or a
      GPU and how many of one host, such as "h100:8".

  Raises:
    UserError: there is none of that name, or what compiles for it is not installed.
  """
  if is_gpu(topology):
    return _find_gpus(topology)
  _check_installed("libtpu", "TPUs", "tpu")
  _set(_LIBTPU)
  # The two cores of a v4 chip are one device to JAX, as on later chips but TPU7x.
  options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
  with _as_user_error(topology):
    return topologies.get_topology_desc(topology, platform="tpu", **options).devices


def _find_gpus(topology: str) -> list[jax.Device]:
  name, _, number = topology.partition(":")
  if not number.isdecimal() or not 1 <= int(number) <= 8:
    raise UserError(
      f"--topology {topology}: give 1 to 8 GPUs of a host, as in {name}:8"
    )
  _check_installed("jax_cuda13_plugin", "GPUs", "cuda")
  _set(_CUDA)
  with _as_user_error(topology):
    found = topologies.get_topology_desc(
      platform="cuda",
      target_config=_TARGET.format(**_GPUS[name]),
      topology=f"1x1x{number}",
    )
  return found.devices


def traced(device: jax.Device) -> contextlib.AbstractContextManager:
  """Kernels that are traced in this block are for a device that is not there."""
  make = getattr(jax.sharding, "AbstractDevice", None)
  if device.platform != "gpu" or make is None:  # Older releases do not ask.
    return contextlib.nullcontext()
  kind = make(device_kind=device.device_kind, num_cores=1, platform="cuda")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
  return jax.sharding.use_abstract_mesh(mesh)


def _check_installed(module: str, what: str, extra: str) -> None:
  if importlib.util.find_spec(module) is None:
    raise UserError(
      f"compiling for {what} needs {module.replace('_', '-')}: pip install "
      f"'dcse_jax[{extra}]', on any machine"
    )


def _set(variables: dict[str, str]) -> None:
  for variable, value in variables.items():
    os.environ.setdefault(variable, value)


@contextlib.contextmanager
def _as_user_error(topology: str) -> Iterator[None]:
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    first_line = str(error).strip().splitlines()[0]
    raise UserError(
      f"--topology {topology}: {first_line}; name one such as {_EXAMPLES}"
    ) from error

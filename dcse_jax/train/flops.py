"""The peaks of devices, and how much of them a training step uses."""

from collections.abc import Sequence
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Device:
  """The most that one device, as JAX counts them, can do according to its maker.

  Attributes:
    bfloat16: dense FLOP/s of bfloat16 matrix products.
    float32: FLOP/s of float32 products at JAX's default precision, which is bfloat16
      on a TPU and TensorFloat-32 on a GPU.
    memory: its size in bytes.
    memory_rate: bytes/s.
    link_rate: bytes/s that it sends to other devices of its slice or host, over
      all links together.
  """

  bfloat16: float
  float32: float
  memory: float
  memory_rate: float
  link_rate: float

  def peak(self, dtype: str) -> float:
    """Returns the FLOP/s of matrix products in a config's `dtype`."""
    return getattr(self, dtype)


_GIB = 2**30

# The names are those of `jax.Device.device_kind`. Makers add both directions of links;
# the sums are halved here.
DEVICES = {
  # docs.cloud.google.com/tpu/docs/v4; six links of 50 GB/s: Jouppi et al., TPU v4,
  # 2023 (arXiv:2304.01433).
  "TPU v4": Device(275e12, 275e12, 32 * _GIB, 1200e9, 300e9),
  # docs.cloud.google.com/tpu/docs/v5e
  "TPU v5 lite": Device(197e12, 197e12, 16 * _GIB, 819e9, 200e9),
  # docs.cloud.google.com/tpu/docs/v5p
  "TPU v5": Device(459e12, 459e12, 95 * _GIB, 2765e9, 600e9),
  # docs.cloud.google.com/tpu/docs/v6e
  "TPU v6 lite": Device(918e12, 918e12, 32 * _GIB, 1638e9, 400e9),
  # docs.cloud.google.com/tpu/docs/tpu7x; each of a chip's two halves is a device.
  "TPU7x": Device(2307e12 / 2, 2307e12 / 2, 96 * _GIB, 7380e9 / 2, 600e9 / 2),
  # NVIDIA's data sheets for A100, H100 and H200 (SXM), without sparsity.
  "NVIDIA A100-SXM4-40GB": Device(312e12, 156e12, 40e9, 1555e9, 300e9),
  "NVIDIA A100-SXM4-80GB": Device(312e12, 156e12, 80e9, 2039e9, 300e9),
  "NVIDIA H100 80GB HBM3": Device(989e12, 494e12, 80e9, 3350e9, 450e9),
  "NVIDIA H200": Device(989e12, 494e12, 141e9, 4800e9, 450e9),
}


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of a training step.

  Attributes:
    tokens: how many the sentences of a batch have, for one model.
    flops: `Objective.flops` for all models that train together.
    dtype: that of the matrix products, "float32" or "bfloat16".
  """

  tokens: float
  flops: float
  dtype: str

  def metrics(
    self, step_seconds: float, devices: Sequence[jax.Device]
  ) -> dict[str, float]:
    """Turns the time of a step into metrics.

    Args:
      step_seconds: the mean time of a step.
      devices: those that share the step.

    Returns:
      By name: step_seconds, tokens_per_second, and model_flop_utilisation, the share
      of the devices' peak in [0, 1]; or, where the peak is not known,
      model_tflops_per_second of each device.
    """
    rate = self.flops / step_seconds / len(devices)
    metrics = {
      "train/step_seconds": step_seconds,
      "train/tokens_per_second": self.tokens / step_seconds,
    }
    kind = devices[0].device_kind
    if kind in DEVICES:
      peak = DEVICES[kind].peak(self.dtype)
      metrics["train/model_flop_utilisation"] = rate / peak
    else:
      metrics["train/model_tflops_per_second"] = rate / 1e12
    return metrics

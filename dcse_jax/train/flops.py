"""Model FLOPs of a training step, and how much of a device's peak it uses.

Counted are matrix products, a multiplication and an addition each, of the student
three times (forward, and the gradients of inputs and of weights) and of teachers
once. What a program does beyond is not counted: dropout, normalisation, padding
where the lengths are known, microbatches' second forward pass, and the small change of
some terms: products with a queue or with other layers, a predictor.
"""

from collections.abc import Sequence
import dataclasses

import jax

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.objective import objective
from dcse_jax.teachers import stacks as stacks_lib


@dataclasses.dataclass(frozen=True)
class Device:
  """The most that one device as JAX counts them can do, as its maker says.

  Attributes:
    bfloat16: dense FLOP/s of bfloat16 matrix products.
    float32: the same of float32 ones at JAX's default precision, which is
      bfloat16 on a TPU and TensorFloat-32 on a GPU.
    memory: bytes.
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
    """FLOP/s of matrix products of a config's `dtype`."""
    return getattr(self, dtype)


_GIB = 2**30
# What terms compare with every anchor.
_EMBEDDINGS = ("anchors", "positives", "negatives", "undropped", "retrieved")

# By `jax.Device.device_kind`. Links are given in both directions together: here halved.
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
  # NVIDIA's data sheets of A100, H100 and H200 (SXM), without sparsity.
  "NVIDIA A100-SXM4-40GB": Device(312e12, 156e12, 40e9, 1555e9, 300e9),
  "NVIDIA A100-SXM4-80GB": Device(312e12, 156e12, 80e9, 2039e9, 300e9),
  "NVIDIA H100 80GB HBM3": Device(989e12, 494e12, 80e9, 3350e9, 450e9),
  "NVIDIA H200": Device(989e12, 494e12, 141e9, 4800e9, 450e9),
}


def encoder_flops(
  config: encoder_lib.EncoderConfig,
  *,
  sentences: int,
  length: float,
  squared_length: float,
  positions: int = 0,
) -> float:
  """Of one forward pass over sentences of n tokens each.

  A layer has 8 H^2 + 4 H I a token for its linear layers (width H, intermediate
  size I) and 4 H n for its attention, scores and weighted values. Where only some
  positions of the last layer are read, it has for each token only the 4 H^2 of keys
  and values, and the rest for these positions alone.

  Args:
    config: of the encoder.
    sentences: how many.
    length: the mean of n.
    squared_length: the mean of n^2.
    positions: of each sentence that are read of the last layer; 0: all.
  """
  width, inner = config.hidden_size, config.intermediate_size
  linear = 8 * width**2 + 4 * width * inner
  layer = linear * length + 4 * width * squared_length
  last = layer
  if positions:
    key_value = 4 * width**2
    attention = 4 * width * length
    last = key_value * length + positions * (linear - key_value + attention)
  return sentences * ((config.num_layers - 1) * layer + last)


def step_flops(
  config: config_lib.ConfigDict,
  start: model_lib.Model,
  stacks: Sequence[stacks_lib.TeacherStack | stacks_lib.CachedTeachers] = (),
  *,
  columns: int = 1,
  length: float,
  squared_length: float,
) -> float:
  """Of one training step of one model, on all devices together.

  To the encoders come the projection, 2 D^2 a sentence; the products of [B, D]
  embeddings, 2 B^2 D each, one for each `all_...` embedding that a term takes, and one
  of all teachers' widths together; and of a language model the head, 2 D^2 + 2 D V a
  predicted token.

  Args:
    config: of the round.
    start: the model that it starts from; its shape and pooling.
    stacks: its teachers.
    columns: of the text; one is encoded twice.
    length: mean tokens of a sentence; of a padded one `config.max_length`.
    squared_length: the mean of their squares.
  """
  batch, width = config.batch_size, start.config.hidden_size
  lengths = dict(length=length, squared_length=squared_length)
  terms = config_lib.terms(config)
  takes = losses.taken(terms)
  trained = generated = 0.0

  def setting(name):
    return next(each.settings[name] for each in terms if name in each.settings)

  def encode(shape, pooling, sentences):
    # The poolings that read more than one token need all of them.
    positions = int(pooling_lib.get(pooling).first_token)
    return encoder_flops(shape, sentences=sentences, positions=positions, **lengths)

  if "masked_logits" in takes:
    slots = max(1, round(objective.PREDICTED * config.max_length))
    masked = batch * setting("masked_views")
    trained += encoder_flops(start.config, sentences=masked, positions=slots, **lengths)
    trained += masked * slots * 2 * width * (width + start.config.vocab_size)
  if "replaced_logits" in takes:
    edited, slots = batch, setting("mask_probability") * length
    positions = round(slots)
    if setting("edits") == "published":
      edited, slots, positions = 2 * batch, length, 0
    trained += encoder_flops(start.config, sentences=edited, **lengths)
    generated = encoder_flops(
      start.config, sentences=edited, positions=positions, **lengths
    )
    generated += edited * slots * 2 * width * (width + start.config.vocab_size)
  views = 0
  if "anchors" in takes or "replaced_logits" in takes:
    more = [name for name in ("undropped", "retrieved") if name in takes]
    views = max(2, columns) + len(more)
  trained += encode(start.config, start.pooling, batch * views)
  if pooling_lib.get(start.pooling).projected:
    trained += 2 * batch * views * width**2
  embeddings = {f"all_{name}" for name in _EMBEDDINGS}
  if columns < 3:
    embeddings.remove("all_negatives")
  similarities = sum(len(embeddings & set(each.term.takes)) for each in terms)
  trained += similarities * 2 * batch**2 * width
  taught = generated
  for stack in stacks:
    if isinstance(stack, stacks_lib.CachedTeachers):
      taught += 2 * batch**2 * sum(stack.widths)
      continue
    one = encode(stack.config, stack.pooling, batch)
    one += 2 * batch**2 * stack.config.hidden_size
    taught += len(stack.weights) * one
  return 3 * trained + taught


@dataclasses.dataclass(frozen=True)
class Work:
  """What a training step has to do.

  Attributes:
    tokens: of the sentences of a batch, of one model.
    flops: of all models that train together, as `step_flops` gives them.
    dtype: of the matrix products, "float32" or "bfloat16".
  """

  tokens: float
  flops: float
  dtype: str

  def metrics(
    self, step_seconds: float, devices: Sequence[jax.Device]
  ) -> dict[str, float]:
    """What the time of a step means.

    Args:
      step_seconds: of one step, in the mean.
      devices: that share it.

    Returns:
      By name: step_seconds, tokens_per_second, and model_flop_utilisation, in
      [0, 1], of the devices' peak; where the peak is not known in its place
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

"""The parts of encoders and heads: linear layers, LayerNorm, activations.

Modules have Flax's parameters, and the backward passes that `ops` defines.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import norm_kernel
from dcse_jax.model import ops
from dcse_jax.model.dropout import dropout
from dcse_jax.model.family import EncoderConfig
from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib


def _exact_gelu(x):
  # PyTorch's formula. jax.nn.gelu uses erfc, which is twice as slow on a CPU.
  gelu = lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))
  if backend.current() == "cpu":
    return gelu(x)
  # Elsewhere memory is scarce and arithmetic nearly free: the backward pass computes
  # this again from x, and need not read three of the widest float32 arrays.
  return jax.checkpoint(gelu, prevent_cse=False)(x).astype(x.dtype)


ACTIVATIONS = {
  "gelu": _exact_gelu,
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  # transformers' other names for these, and the rest of its smooth activations.
  "swish": jax.nn.silu,
  "gelu_python": _exact_gelu,
  "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_10": lambda x: jnp.clip(_exact_gelu(x), -10, 10),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
  "tanh": jnp.tanh,
}


def fused(linears: Sequence[nnx.Linear], x: jax.Array) -> jax.Array:
  """Applies several linear layers to one input as one product; outputs side by side."""
  dtype = linears[0].dtype
  kernel, bias = _joined(linears)
  if bias is None:
    bias = jnp.zeros(kernel.shape[-1])  # XLA leaves the addition out.
  return ops.linear(x.astype(dtype), kernel.astype(dtype), bias.astype(dtype))


def fused_product(
  linears: Sequence[nnx.Linear], x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns what `fused` does before it adds the biases, and these, side by side."""
  dtype = linears[0].dtype
  kernel, bias = _joined(linears)
  none = jnp.zeros(kernel.shape[-1], dtype)
  product = ops.linear(x.astype(dtype), kernel.astype(dtype), none)
  return product, none if bias is None else bias


def _joined(linears: Sequence[nnx.Linear]) -> tuple[jax.Array, jax.Array | None]:
  join = lambda xs: xs[0] if len(xs) == 1 else jnp.concatenate(xs, axis=-1)
  kernel = join([linear.kernel[...] for linear in linears])
  if not linears[0].use_bias:
    return kernel, None
  return kernel, join([linear.bias[...] for linear in linears])


class _LayerNorm(nnx.LayerNorm):
  """Flax's layer with our backward pass."""

  def __call__(self, x):
    scale = self.scale[...]
    bias = self.bias[...] if self.use_bias else jnp.zeros_like(scale)
    return ops.layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


class _RmsNorm(nnx.Module):
  """A norm by the root of the mean square; see `rms_norm`."""

  def __init__(self, size, epsilon, offset, dtype):
    self.epsilon, self.offset, self.dtype = epsilon, offset, dtype
    self.scale = nnx.Param(jnp.full(size, 1.0 - offset))

  def __call__(self, x):
    scale = self.scale[...] + self.offset if self.offset else self.scale[...]
    return ops.rms_norm(x.astype(self.dtype), scale, self.epsilon)


class _Linear(nnx.Linear):
  """Flax's layer with our backward pass."""

  def __call__(self, x):
    return fused((self,), x)


class _Embed(nnx.Embed):
  """Flax's layer, cast after the look-up.

  So the gradient is summed in float32: a frequent token has thousands of terms, and
  a GPU adds bfloat16 numbers to one place far more slowly.
  """

  def __call__(self, ids):
    return jnp.take(self.embedding[...], ids, axis=0).astype(self.dtype)


def add_and_norm(
  linear: nnx.Linear,
  norm: nnx.LayerNorm,
  x: jax.Array,
  branch: jax.Array,
  rate: float,
  key: jax.Array | None,
  rows: jax.Array,
  readers: int = 1,
) -> tuple[jax.Array, ...]:
  """Adds to states what a linear layer makes of a branch, and normalises the sum.

  Args:
    linear: from [..., I] to [..., D].
    norm: as `layer_norm` makes it.
    x: the states, [..., D].
    branch: [..., I].
    rate: the probability that dropout makes a zero of what the linear layer gives.
    key: dropout's, see `dropout`; None means none.
    rows: see `dropout`.
    readers: how many will use the result, see `norm_kernel.add_and_norm`.

  Returns:
    [..., D], once for each reader.
  """
  width = x.shape[-1]
  same = x.dtype == linear.dtype == norm.dtype
  if not (same and norm_kernel.is_for(x.size // width, width, x.dtype)):
    return (norm(x + dropout(linear(branch), rate, key, rows)),) * readers
  if key is None:
    key, rate = jnp.zeros(2, jnp.uint32), 0.0
  product, bias = fused_product((linear,), branch)
  flat = lambda y: y.reshape(-1, width)

  def run(x, product, rows, *vectors):
    *vectors, key = vectors
    return norm_kernel.add_and_norm(
      x, product, *vectors, rows, key, rate, norm.epsilon, readers, False
    )

  rows = jnp.broadcast_to(rows, x.shape[:-1]).reshape(-1)
  vectors = (bias.astype(jnp.float32), norm.scale[...], norm.bias[...])
  results = mesh_lib.over_rows(run, (flat(x), flat(product), rows), (*vectors, key))
  return tuple(result.reshape(x.shape) for result in results)


def linear(
  config: EncoderConfig,
  d_in: int,
  d_out: int,
  dtype: Any,
  rngs: nnx.Rngs,
  use_bias: bool = True,
) -> nnx.Linear:
  """Makes a linear layer, from [..., d_in] to [..., d_out], that computes in dtype."""
  init = nnx.initializers.normal(config.initializer_range)
  return _Linear(
    d_in, d_out, kernel_init=init, use_bias=use_bias, dtype=dtype, rngs=rngs
  )


def embed(config: EncoderConfig, rows: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Embed:
  """Makes a table of embeddings, [rows, D]."""
  init = nnx.initializers.normal(config.initializer_range)
  return _Embed(rows, config.hidden_size, embedding_init=init, dtype=dtype, rngs=rngs)


def layer_norm(
  config: EncoderConfig, dtype: Any, rngs: nnx.Rngs, use_bias: bool = True
) -> nnx.LayerNorm:
  """Makes a LayerNorm for states [..., D]."""
  return _LayerNorm(
    config.hidden_size,
    epsilon=config.layer_norm_eps,
    use_bias=use_bias,
    dtype=dtype,
    rngs=rngs,
  )


def rms_norm(
  config: EncoderConfig, dtype: Any, size: int | None = None, *, offset: float = 0.0
) -> nnx.Module:
  """Makes an RMSNorm, Zhang and Sennrich, 2019 (arXiv:1910.07467).

  Args:
    config: the encoder's.
    dtype: that of what it returns.
    size: how many numbers are normed together; by default the width of states.
    offset: is added to the weights, as in Gemma: 1 leaves them near 0.
  """
  return _RmsNorm(size or config.hidden_size, config.layer_norm_eps, offset, dtype)

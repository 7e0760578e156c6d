"""Linear layers, attention scores and norms with backward passes of their own.

They compute what autodiff would. What differs is what XLA's CPU backend makes of
it: an array that several products read is computed once and kept, where XLA
would compute it anew in each of them, dropout and all, at the stride of a
transposed copy. That took a sixth of a training step (benchmarks/README.md).
"""

import jax
from jax.experimental.xla_metadata import set_xla_metadata
import jax.numpy as jnp

from dcse_jax.runtime import backend


@jax.jit
def _identity(x):
  return x


def _keep(x):
  """Returns the same array, and keeps XLA from computing it more than once.

  XLA removes optimization barriers before it fuses; a call that it may not inline
  stays. Other backends fuse well without this.
  """
  if backend.current() != "cpu":
    return x
  with set_xla_metadata(inlineable="false"):
    return _identity(x)


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Multiplies x [..., I] by a kernel [I, O] and adds a bias [O]."""
  return x @ kernel + bias


def _linear_fwd(x, kernel, bias):
  x = _keep(x)
  return linear(x, kernel, bias), (x, kernel)


def _linear_bwd(residuals, g):
  x, kernel = residuals
  g = _keep(g)
  rows = tuple(range(g.ndim - 1))
  # The narrower operand is transposed, in a copy of its own: at the stride of a
  # wide one nearly every read would miss the cache.
  flat = lambda y: y.reshape(-1, y.shape[-1])
  product = lambda a, b: _keep(flat(a).T) @ flat(b)
  narrow = kernel.shape[0] <= kernel.shape[1]
  d_kernel = product(x, g) if narrow else _keep(product(g, x)).T
  return g @ kernel.T, d_kernel, g.sum(rows)


linear.defvjp(_linear_fwd, _linear_bwd)


@jax.custom_vjp
def attention_scores(query: jax.Array, key: jax.Array) -> jax.Array:
  """Multiplies queries [N, Q, h, d] by keys [N, K, h, d], to [N, h, Q, K]."""
  return jnp.einsum("nqhd,nkhd->nhqk", query, key)


def _attention_scores_fwd(query, key):
  return attention_scores(query, key), (query, key)


def _attention_scores_bwd(residuals, g):
  query, key = residuals
  d_query = jnp.einsum("nhqk,nkhd->nqhd", g, key)
  # g is transposed first: XLA's CPU backend has no fast product over rows.
  d_key = jnp.einsum("nhkq,nqhd->nkhd", _keep(g.swapaxes(2, 3)), query)
  return d_query, d_key


attention_scores.defvjp(_attention_scores_fwd, _attention_scores_bwd)


def _normalize(x, eps):
  mean = x.mean(axis=-1, keepdims=True)
  # E[x^2] - E[x]^2 cancels badly in float32; PyTorch makes two passes too.
  variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
  scale = jax.lax.rsqrt(variance + eps)
  return (x - mean) * scale, scale


@jax.custom_vjp
def layer_norm(x, weight, bias, eps):
  """Computes LayerNorm of x [..., D], in its dtype; the statistics are float32."""
  return _layer_norm_fwd(x, weight, bias, eps)[0]


def _layer_norm_fwd(x, weight, bias, eps):
  x = _keep(x)
  normal, scale = _normalize(x.astype(jnp.float32), eps)
  return (normal * weight + bias).astype(x.dtype), (x, weight, eps)


def _layer_norm_bwd(residuals, g):
  x, weight, eps = residuals
  dtype = x.dtype
  normal, scale = _keep(_normalize(x.astype(jnp.float32), eps))
  g = _keep(g).astype(jnp.float32)
  rows = tuple(range(g.ndim - 1))
  scaled = g * weight
  mean = lambda y: y.mean(axis=-1, keepdims=True)
  # The product is kept before it is summed: XLA's CPU backend takes ten times as long
  # where it does both at once.
  aligned = _keep(scaled * normal)
  d_x = scale * (scaled - mean(scaled) - normal * mean(aligned))
  return d_x.astype(dtype), (g * normal).sum(rows), g.sum(rows), None


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def _rms(x, eps):
  scale = jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps)
  return x * scale, scale


@jax.custom_vjp
def rms_norm(x, weight, eps):
  """Computes RMSNorm of x [..., D], in its dtype; the statistics are float32."""
  return _rms_norm_fwd(x, weight, eps)[0]


def _rms_norm_fwd(x, weight, eps):
  x = _keep(x)
  normal, _ = _rms(x.astype(jnp.float32), eps)
  return (normal * weight).astype(x.dtype), (x, weight, eps)


def _rms_norm_bwd(residuals, g):
  x, weight, eps = residuals
  normal, scale = _keep(_rms(x.astype(jnp.float32), eps))
  g = _keep(g).astype(jnp.float32)
  scaled = g * weight
  # The product is kept before it is summed, as in LayerNorm.
  aligned = _keep(scaled * normal).mean(axis=-1, keepdims=True)
  d_x = scale * (scaled - normal * aligned)
  return d_x.astype(x.dtype), (g * normal).sum(tuple(range(g.ndim - 1))), None


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns pairs of features by the angles of their places, after Su et al., RoPE, 2021.

  Args:
    x: queries or keys, [N, S, h, d]; feature i is paired with i + d / 2.
    cos: cosines of the angles, [N or 1, S, 1, d / 2] float32.
    sin: their sines, likewise.

  References:
    arXiv:2104.09864, Eq. 34, with the pairs as GPT-NeoX and transformers have them.
  """
  one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (one * cos - other * sin, other * cos + one * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)

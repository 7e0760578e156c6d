"""Attention of short sentences on a GPU, in one pass forward and one backward.

The plain form writes scores, weights and their transposes, and transposes queries, keys
and values for the matrix products: at 32 tokens a sixth of all that a step moves. Here
each sentence's head is read where it lies, and only the result is written; dropout's
mask is a function of the place, so the backward pass makes it again.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pl_triton
import jax.numpy as jnp
import numpy as np

from dcse_jax.model.dropout import keep_mask
from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib

# Scores of a head, [S, S], are held in registers, and a side must be a power of two.
_SIDES = (16, 32, 64, 128)


def is_for(sentences: int, length: int, width: int, dtype: Any) -> bool:
  """Returns whether sentences of a length and heads of a width have a kernel here."""
  fits = length in _SIDES and width in _SIDES and dtype == jnp.bfloat16
  return fits and backend.current() == "gpu" and mesh_lib.divides(sentences)


def self_attend(
  qkv: jax.Array,
  bias: jax.Array,
  mask: jax.Array,
  rows: jax.Array,
  *,
  heads: int,
  rate: float,
  key: jax.Array | None,
  interpret: bool = False,
) -> jax.Array:
  """Attends from every token of a sentence to every other.

  Args:
    qkv: queries, keys and values of all heads, side by side, [N, S, 3 D].
    bias: that they still lack, [3 D].
    mask: true for tokens, [N, S].
    rows: the number of each token, by which dropout draws, [N, S].
    heads: how many D is made of.
    rate: the dropout rate on the weights.
    key: the dropout key, [2] uint32; None means no dropout.
    interpret: runs on any backend, slowly.

  Returns:
    [N, S, D].
  """
  n, length, width = qkv.shape
  rows = rows[:, None] * heads + np.arange(heads)[:, None]
  if key is None:
    key, rate = jnp.zeros(2, jnp.uint32), 0.0
  qkv = qkv.reshape(n, length, 3, heads, -1)
  bias = bias.reshape(qkv.shape[2:])

  def run(qkv, mask, rows, bias, key):
    return attend(qkv, bias, mask, rows, key, rate, interpret)

  attended = mesh_lib.over_rows(run, (qkv, mask, rows), (bias, key))
  return attended.reshape(n, length, width // 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
  qkv: jax.Array,
  bias: jax.Array,
  mask: jax.Array,
  rows: jax.Array,
  key: jax.Array,
  rate: float,
  interpret: bool,
) -> jax.Array:
  """Computes softmax(Q K^T / sqrt(d)) V, with dropout of the weights.

  Args:
    qkv: queries, keys and values, [N, S, 3, heads, d] bfloat16.
    bias: is added to them, [3, heads, d].
    mask: true for tokens, [N, S].
    rows: the number of each token's head, for dropout, [N, heads, S] int32.
    key: a key of `make_keys`, [2] uint32.
    rate: the dropout rate; 0 means none.
    interpret: whether to run on any backend, slowly.

  Returns:
    [N, S, heads, d].
  """
  return _forward(qkv, bias, mask, rows, key, rate, interpret)


def _dot(a, b, of_a: int, of_b: int):
  """Multiplies matrices over one axis of each, in float32."""
  return jax.lax.dot_general(
    a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32
  )


def _weights(q, k, mask, rows, key, rate):
  """Computes weights before dropout, [S, S] float32, and the mask of those kept."""
  scores = _dot(q, k, 1, 1)
  scores = scores * (1.0 / q.shape[-1] ** 0.5)
  scores = jnp.where(mask[None, :], scores, -1e30)
  scores = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  weights = scores / jnp.sum(scores, axis=-1, keepdims=True)
  if rate == 0.0:
    return weights, None
  return weights, keep_mask(rows, key, rate, weights.shape[-1])


def _add(x, bias):
  return (x[...].astype(jnp.float32) + bias[...][None]).astype(x.dtype)


def _forward_kernel(q, k, v, q_bias, k_bias, v_bias, mask, rows, key, out, *, rate):
  key = (key[0], key[1])
  query, keys, values = _add(q, q_bias), _add(k, k_bias), _add(v, v_bias)
  weights, keep = _weights(query, keys, mask[...], rows[...], key, rate)
  if keep is not None:
    weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
  out[...] = _dot(weights.astype(v.dtype), values, 1, 0).astype(out.dtype)


def _backward_kernel(q, k, v, q_bias, k_bias, v_bias, mask, rows, key, g, out, *, rate):
  key = (key[0], key[1])
  query, keys, values = _add(q, q_bias), _add(k, k_bias), _add(v, v_bias)
  g = g[...]
  weights, keep = _weights(query, keys, mask[...], rows[...], key, rate)
  kept = weights
  if keep is not None:
    kept = jnp.where(keep, weights / (1.0 - rate), 0.0)
  out[:, 2, :] = _dot(kept.astype(g.dtype), g, 0, 0).astype(out.dtype)
  d_weights = _dot(g, values, 1, 1)
  if keep is not None:
    d_weights = jnp.where(keep, d_weights / (1.0 - rate), 0.0)
  aligned = jnp.sum(d_weights * weights, axis=-1, keepdims=True)
  d_scores = weights * (d_weights - aligned) * (1.0 / query.shape[-1] ** 0.5)
  d_scores = d_scores.astype(query.dtype)
  out[:, 0, :] = _dot(d_scores, keys, 1, 0).astype(out.dtype)
  out[:, 1, :] = _dot(d_scores, query, 0, 0).astype(out.dtype)


def _specs(qkv):
  _, length, _, _, width = qkv.shape
  part = lambda i: pl.BlockSpec(
    (None, length, None, None, width), lambda n, h: (n, 0, i, h, 0)
  )
  bias = lambda i: pl.BlockSpec((None, None, width), lambda n, h: (i, h, 0))
  return (
    *(part(i) for i in range(3)),
    *(bias(i) for i in range(3)),
    pl.BlockSpec((None, length), lambda n, h: (n, 0)),
    pl.BlockSpec((None, None, length), lambda n, h: (n, h, 0)),
    pl.BlockSpec((2,), lambda n, h: (0,)),
  )


def _call(kernel, qkv, out_shape, specs, out_spec, interpret):
  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct(out_shape, qkv.dtype),
    grid=(qkv.shape[0], qkv.shape[3]),
    in_specs=specs,
    out_specs=out_spec,
    compiler_params=None
    if interpret
    else pl_triton.CompilerParams(num_warps=2, num_stages=1),
    interpret=interpret,
  )


def _forward(qkv, bias, mask, rows, key, rate, interpret):
  n, length, _, heads, width = qkv.shape
  spec = pl.BlockSpec((None, length, None, width), lambda n, h: (n, 0, h, 0))
  kernel = functools.partial(_forward_kernel, rate=rate)
  shape = (n, length, heads, width)
  run = _call(kernel, qkv, shape, _specs(qkv), spec, interpret)
  bias = bias.astype(jnp.float32)
  return run(*[qkv] * 3, *[bias] * 3, mask, rows, key)


def _attend_fwd(qkv, bias, mask, rows, key, rate, interpret):
  out = _forward(qkv, bias, mask, rows, key, rate, interpret)
  return out, (qkv, bias, mask, rows, key)


def _attend_bwd(rate, interpret, residuals, g):
  qkv, bias, mask, rows, key = residuals
  _, length, _, _, width = qkv.shape
  g_spec = pl.BlockSpec((None, length, None, width), lambda n, h: (n, 0, h, 0))
  spec = pl.BlockSpec((None, length, 3, None, width), lambda n, h: (n, 0, 0, h, 0))
  kernel = functools.partial(_backward_kernel, rate=rate)
  specs = (*_specs(qkv), g_spec)
  run = _call(kernel, qkv, qkv.shape, specs, spec, interpret)
  wide = bias.astype(jnp.float32)
  d_qkv = run(*[qkv] * 3, *[wide] * 3, mask, rows, key, g)
  d_bias = d_qkv.astype(jnp.float32).sum(axis=(0, 1)).astype(bias.dtype)
  return d_qkv, d_bias, None, None, None


attend.defvjp(_attend_fwd, _attend_bwd)

"""Dropout, residual and LayerNorm on a GPU, in one pass forward and one backward.

Each row of states is read once and held while its statistics are computed; what XLA
makes of the same writes it between the statistics and their use. Dropout's mask is a
function of the place, so the backward pass makes it again.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pl_triton
import jax.numpy as jnp

from dcse_jax.model.dropout import keep_mask
from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib

# Rows that a program sees, and those it holds at a time.
_ROWS, _AT_ONCE = 32, 4


def is_for(rows: int, width: int, dtype: Any) -> bool:
  """Says whether there is a kernel here for as many rows of a width."""
  fits = _side(width) >= 64 and dtype == jnp.bfloat16
  return fits and backend.current() == "gpu" and _divides(rows)


def _divides(rows: int) -> bool:
  return rows % _ROWS == 0 and mesh_lib.divides(rows // _ROWS)


def _side(width: int) -> int:
  """Returns the largest power of two that divides a width: a part that is held."""
  return width & -width


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9, 10))
def add_and_norm(
  x: jax.Array,
  branch: jax.Array,
  branch_bias: jax.Array,
  weight: jax.Array,
  bias: jax.Array,
  rows: jax.Array,
  key: jax.Array,
  rate: float,
  eps: float,
  readers: int,
  interpret: bool,
) -> tuple[jax.Array, ...]:
  """Computes LayerNorm of x + dropout(branch + branch_bias).

  Args:
    x: [T, D] bfloat16.
    branch: [T, D] bfloat16.
    branch_bias: [D] float32.
    weight: [D] float32.
    bias: [D] float32.
    rows: each token's number in the whole batch, by which dropout draws, [T] int32.
    key: one that `make_keys` made, [2] uint32.
    rate: the probability of a zero; 0 means no dropout.
    eps: LayerNorm's.
    readers: how many will use the result. The backward pass adds up their gradients as
      it reads them, where XLA would first write the sum.
    interpret: runs on any backend, slowly.

  Returns:
    [T, D] bfloat16, once for each reader.
  """
  arrays = (x, branch, _vectors(branch_bias, weight, bias), rows, key)
  return _run_forward(arrays, rate, eps, interpret, number=1) * readers


def _vectors(branch_bias, weight, bias):
  """Puts vectors into one array, [3, D]: XLA copies each from its stack of layers."""
  return jnp.stack((branch_bias, weight, bias))


def _parts(width: int):
  side = _side(width)
  return [pl.ds(start, side) for start in range(0, width, side)]


def _keep(rows, key, rate, part):
  return keep_mask(rows, key, rate, part.size, jnp.uint32(part.start))


def _mean(parts, width):
  return sum(jnp.sum(p, axis=-1, keepdims=True) for p in parts) / width


def _normalize(parts, eps, width):
  mean = _mean(parts, width)
  parts = [p - mean for p in parts]
  scale = jax.lax.rsqrt(_mean([p * p for p in parts], width) + eps)
  return [p * scale for p in parts], scale


def _forward_kernel(x, branch, vectors, rows, key, out, *totals, rate, eps):
  width = x.shape[-1]
  key = (key[0], key[1])

  def turn(i, _):
    at = pl.ds(i * _AT_ONCE, _AT_ONCE)
    sums = []
    for part in _parts(width):
      # Rounded wherever the plain form is, for the backward pass sees it so.
      added = branch[at, part].astype(jnp.float32) + vectors[0, part][None]
      added = added.astype(x.dtype).astype(jnp.float32)
      if rate:
        kept = _keep(rows[at], key, rate, part)
        added = jnp.where(kept, added / (1.0 - rate), 0.0)
      added = added.astype(x.dtype).astype(jnp.float32)
      summed = (x[at, part].astype(jnp.float32) + added).astype(x.dtype)
      for total in totals:  # Where there is a backward pass.
        total[at, part] = summed
      sums.append(summed.astype(jnp.float32))
    normal, _ = _normalize(sums, eps, width)
    for part, values in zip(_parts(width), normal):
      values = values * vectors[1, part][None] + vectors[2, part][None]
      out[at, part] = values.astype(out.dtype)
    return 0

  jax.lax.fori_loop(0, x.shape[0] // _AT_ONCE, turn, 0)


def _backward_kernel(total, vectors, rows, key, *others, rate, eps):
  *cotangents, d_x, d_branch, d_vectors = others
  width = total.shape[-1]
  key = (key[0], key[1])
  parts = _parts(width)

  def turn(i, sums):
    at = pl.ds(i * _AT_ONCE, _AT_ONCE)
    values = [total[at, part].astype(jnp.float32) for part in parts]
    normal, scale = _normalize(values, eps, width)
    gs = [sum(g[at, part].astype(jnp.float32) for g in cotangents) for part in parts]
    scaled = [each * vectors[1, part][None] for part, each in zip(parts, gs)]
    mean = _mean(scaled, width)
    aligned = _mean([s * n for s, n in zip(scaled, normal)], width)
    sums = list(sums)
    for j, part in enumerate(parts):
      d = scale * (scaled[j] - mean - normal[j] * aligned)
      d = d.astype(d_x.dtype)
      d_x[at, part] = d
      if rate:
        kept = _keep(rows[at], key, rate, part)
        d = jnp.where(kept, d.astype(jnp.float32) / (1.0 - rate), 0.0)
      d = d.astype(d_branch.dtype)
      d_branch[at, part] = d
      for i, terms in enumerate((d.astype(jnp.float32), gs[j] * normal[j], gs[j])):
        sums[3 * j + i] += jnp.sum(terms, axis=0)
    return tuple(sums)

  zeros = tuple(jnp.zeros(part.size, jnp.float32) for part in parts for _ in range(3))
  sums = jax.lax.fori_loop(0, total.shape[0] // _AT_ONCE, turn, zeros)
  for j, part in enumerate(parts):
    for i in range(3):
      d_vectors[i, part] = sums[3 * j + i]


def _call(kernel, num_rows, in_specs, out_shape, out_specs, interpret):
  return pl.pallas_call(
    kernel,
    out_shape=out_shape,
    grid=(num_rows // _ROWS,),
    in_specs=in_specs,
    out_specs=out_specs,
    compiler_params=None
    if interpret
    else pl_triton.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
  )


def _specs(width):
  states = pl.BlockSpec((_ROWS, width), lambda i: (i, 0))
  vectors = pl.BlockSpec((3, width), lambda i: (0, 0))
  row = pl.BlockSpec((_ROWS,), lambda i: (i,))
  key = pl.BlockSpec((2,), lambda i: (0,))
  partial = pl.BlockSpec((None, 3, width), lambda i: (i, 0, 0))
  return states, vectors, row, key, partial


def _run_forward(arrays, rate, eps, interpret, number):
  x = arrays[0]
  states, vectors, row, key_spec, _ = _specs(x.shape[1])
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  return _call(
    functools.partial(_forward_kernel, rate=rate, eps=eps),
    x.shape[0],
    (states, states, vectors, row, key_spec),
    (shape,) * number,
    (states,) * number,
    interpret,
  )(*arrays)


def _fwd(
  x, branch, branch_bias, weight, bias, rows, key, rate, eps, readers, interpret
):
  vectors = _vectors(branch_bias, weight, bias)
  arrays = (x, branch, vectors, rows, key)
  out, total = _run_forward(arrays, rate, eps, interpret, number=2)
  return (out,) * readers, (total, vectors, rows, key)


def _bwd(rate, eps, readers, interpret, residuals, cotangents):
  total, vectors, rows, key = residuals
  num_rows, width = total.shape
  states, vectors_spec, row, key_spec, partial = _specs(width)
  shape = jax.ShapeDtypeStruct(total.shape, total.dtype)
  sums = jax.ShapeDtypeStruct((num_rows // _ROWS, 3, width), jnp.float32)
  run = _call(
    functools.partial(_backward_kernel, rate=rate, eps=eps),
    num_rows,
    (states, vectors_spec, row, key_spec, *[states] * readers),
    (shape, shape, sums),
    (states, states, partial),
    interpret,
  )
  d_x, d_branch, sums = run(total, vectors, rows, key, *cotangents)
  d_branch_bias, d_weight, d_bias = sums.sum(axis=0)
  return d_x, d_branch, d_branch_bias, d_weight, d_bias, None, None


add_and_norm.defvjp(_fwd, _bwd)

"""Attention of short sentences on a GPU, in one pass forward and one backward.

The plain form writes scores, weights and their transposes, and transposes queries, keys
and values for the matrix products: at 32 tokens a sixth of all that a step moves. Here
each sentence's head is read where it lies, among packed tokens too, and only the result
is written; dropout's mask is a function of the place, so the backward pass makes it again.
"""

import dataclasses
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
  places: jax.Array | None = None,
  heads: int,
  rate: float,
  key: jax.Array | None,
  interpret: bool = False,
) -> jax.Array:
  """Attends from every token of a sentence to every other.

  Args:
    qkv: queries, keys and values of all heads, side by side, [N, S, 3 D]; packed tokens
      are [groups, tokens, 3 D].
    bias: that they still lack, [3 D].
    mask: true for tokens, which stand before all padding, [N, S].
    rows: the number of each token, by which dropout draws, [N, S].
    places: see `Layout.places`; None where tokens are not packed.
    heads: how many D is made of.
    rate: the dropout rate on the weights.
    key: the dropout key, [2] uint32; None means no dropout.
    interpret: runs on any backend, slowly.

  Returns:
    [N, S, D], or [groups, tokens, D] with zeros beyond the last token.
  """
  *shape, width = qkv.shape
  rows = rows[:, None] * heads + np.arange(heads)[:, None]
  if key is None:
    key, rate = jnp.zeros(2, jnp.uint32), 0.0
  if places is None:
    places = jnp.zeros((len(mask), 2), jnp.int32)
  qkv = qkv.reshape(*shape, 3, heads, -1)
  bias = bias.reshape(qkv.shape[2:])

  def run(qkv, mask, rows, places, bias, key):
    return attend(qkv, bias, mask, rows, places, key, rate, interpret)

  attended = mesh_lib.over_rows(run, (qkv, mask, rows, places), (bias, key))
  return attended.reshape(*shape, width // 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def attend(
  qkv: jax.Array,
  bias: jax.Array,
  mask: jax.Array,
  rows: jax.Array,
  places: jax.Array,
  key: jax.Array,
  rate: float,
  interpret: bool,
) -> jax.Array:
  """Computes softmax(Q K^T / sqrt(d)) V, with dropout of the weights.

  Args:
    qkv: queries, keys and values, [N, S, 3, heads, d] bfloat16; packed tokens are
      [groups, tokens, 3, heads, d].
    bias: is added to them, [3, heads, d].
    mask: true for tokens, [N, S].
    rows: the number of each token's head, for dropout, [N, heads, S] int32.
    places: see `Layout.places`, [N, 2] int32; of no meaning without packing.
    key: a key of `make_keys`, [2] uint32.
    rate: the dropout rate; 0 means none.
    interpret: whether to run on any backend, slowly.

  Returns:
    [N, S, heads, d], or [groups, tokens, heads, d].
  """
  return _forward(qkv, bias, mask, rows, places, key, rate, interpret)


@dataclasses.dataclass(frozen=True)
class _Sentence:
  """Which rows a program reads and writes of the array of its group, [rows, ...].

  Attributes:
    length: S, the most that a sentence has.
    start: where its rows begin.
    own: which of the S rows from there are its own, [S]; None: all.
    spare: where S rows begin of which it clears those that are no sentence's.
    is_spare: which of these there are, [S].
  """

  length: int
  start: Any = 0
  own: jax.Array | None = None
  spare: Any = 0
  is_spare: jax.Array | None = None

  def read(self, ref, *part) -> jax.Array:
    """Reads [S, d], or a part of [S, parts, d]; rows that are not its own are 0."""
    at = ref.at[pl.ds(self.start, self.length), *part, :]
    if self.own is None:
      return at[...]
    return pl_triton.load(at, mask=_across(self.own, ref), other=0.0)

  def write(self, ref, values: jax.Array, *part: int) -> None:
    """Writes what `read` would read, and clears the rows that it is to clear."""
    part = tuple(map(np.int32, part))  # A mask takes no plain number beside it.
    at = ref.at[pl.ds(self.start, self.length), *part, :]
    values = values.astype(ref.dtype)
    if self.own is None:
      at[...] = values
      return
    pl_triton.store(at, values, mask=_across(self.own, ref))
    at = ref.at[pl.ds(self.spare, self.length), *part, :]
    pl_triton.store(at, jnp.zeros_like(values), mask=_across(self.is_spare, ref))


def _across(mask, ref):
  return jnp.broadcast_to(mask[:, None], (len(mask), ref.shape[-1]))


def _sentence(mask, places, rows: int, is_packed: bool) -> _Sentence:
  """Describes a program's sentence in a group of as many rows."""
  (length,) = mask.shape
  if not is_packed:
    return _Sentence(length)
  start, spare = places[0], places[1]
  number = jax.lax.broadcasted_iota(jnp.int32, (length,), 0)
  # Tokens for which a group has no place are lost.
  own = mask & (start + number < rows)
  return _Sentence(length, start, own, spare, spare + number < rows)


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
  return (x.astype(jnp.float32) + bias[...][None]).astype(x.dtype)


def _forward_kernel(
  q, k, v, q_bias, k_bias, v_bias, mask, rows, places, key, out, *, rate, is_packed
):
  mask, key = mask[...], (key[0], key[1])
  sentence = _sentence(mask, places, q.shape[0], is_packed)
  query = _add(sentence.read(q), q_bias)
  keys = _add(sentence.read(k), k_bias)
  values = _add(sentence.read(v), v_bias)
  weights, keep = _weights(query, keys, mask, rows[...], key, rate)
  if keep is not None:
    weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
  sentence.write(out, _dot(weights.astype(v.dtype), values, 1, 0))


def _backward_kernel(
  q,
  k,
  v,
  q_bias,
  k_bias,
  v_bias,
  mask,
  rows,
  places,
  key,
  g,
  out,
  sums,
  *,
  rate,
  is_packed,
):
  mask, key = mask[...], (key[0], key[1])
  sentence = _sentence(mask, places, q.shape[0], is_packed)
  query = _add(sentence.read(q), q_bias)
  keys = _add(sentence.read(k), k_bias)
  values = _add(sentence.read(v), v_bias)
  g = sentence.read(g)
  weights, keep = _weights(query, keys, mask, rows[...], key, rate)
  kept = weights
  if keep is not None:
    kept = jnp.where(keep, weights / (1.0 - rate), 0.0)

  def write(part, values):
    sentence.write(out, values, part)
    # The sum over all tokens, of a bias's gradient, need not read them again.
    sums[part, :] = jnp.sum(values, axis=0)

  write(2, _dot(kept.astype(g.dtype), g, 0, 0))
  d_weights = _dot(g, values, 1, 1)
  if keep is not None:
    d_weights = jnp.where(keep, d_weights / (1.0 - rate), 0.0)
  aligned = jnp.sum(d_weights * weights, axis=-1, keepdims=True)
  d_scores = weights * (d_weights - aligned) * (1.0 / query.shape[-1] ** 0.5)
  d_scores = d_scores.astype(query.dtype)
  write(0, _dot(d_scores, keys, 1, 0))
  write(1, _dot(d_scores, query, 0, 0))


def _specs(qkv, mask):
  """Describes the parts of arrays that the program of sentence n and head h sees."""
  groups, tokens, _, _, width = qkv.shape
  sentences, length = mask.shape
  group = lambda n: n // (sentences // groups)
  part = lambda i: pl.BlockSpec(
    (None, tokens, None, None, width), lambda n, h: (group(n), 0, i, h, 0)
  )
  bias = lambda i: pl.BlockSpec((None, None, width), lambda n, h: (i, h, 0))
  arguments = (
    *(part(i) for i in range(3)),
    *(bias(i) for i in range(3)),
    pl.BlockSpec((None, length), lambda n, h: (n, 0)),
    pl.BlockSpec((None, None, length), lambda n, h: (n, h, 0)),
    pl.BlockSpec((None, 2), lambda n, h: (n, 0)),
    pl.BlockSpec((2,), lambda n, h: (0,)),
  )
  out = pl.BlockSpec((None, tokens, None, width), lambda n, h: (group(n), 0, h, 0))
  d_qkv = pl.BlockSpec(
    (None, tokens, 3, None, width), lambda n, h: (group(n), 0, 0, h, 0)
  )
  sums = pl.BlockSpec((None, 3, None, width), lambda n, h: (n, 0, h, 0))
  return arguments, out, (d_qkv, sums)


def _call(kernel, qkv, mask, out_shape, in_specs, out_specs, rate, interpret):
  return pl.pallas_call(
    functools.partial(kernel, rate=rate, is_packed=qkv.shape[:2] != mask.shape),
    out_shape=out_shape,
    grid=(len(mask), qkv.shape[3]),
    in_specs=in_specs,
    out_specs=out_specs,
    compiler_params=None
    if interpret
    else pl_triton.CompilerParams(num_warps=2, num_stages=1),
    interpret=interpret,
  )


def _forward(qkv, bias, mask, rows, places, key, rate, interpret):
  groups, tokens, _, heads, width = qkv.shape
  specs, out_spec, _ = _specs(qkv, mask)
  shape = jax.ShapeDtypeStruct((groups, tokens, heads, width), qkv.dtype)
  run = _call(_forward_kernel, qkv, mask, shape, specs, out_spec, rate, interpret)
  return run(*[qkv] * 3, *[bias.astype(jnp.float32)] * 3, mask, rows, places, key)


def _attend_fwd(qkv, bias, mask, rows, places, key, rate, interpret):
  out = _forward(qkv, bias, mask, rows, places, key, rate, interpret)
  return out, (qkv, bias, mask, rows, places, key)


def _attend_bwd(rate, interpret, residuals, g):
  qkv, bias, *rest = residuals
  mask = rest[0]
  specs, g_spec, out_specs = _specs(qkv, mask)
  shapes = (
    jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
    jax.ShapeDtypeStruct((len(mask), *bias.shape), jnp.float32),
  )
  specs = (*specs, g_spec)
  run = _call(_backward_kernel, qkv, mask, shapes, specs, out_specs, rate, interpret)
  d_qkv, sums = run(*[qkv] * 3, *[bias.astype(jnp.float32)] * 3, *rest, g)
  return d_qkv, sums.sum(axis=0).astype(bias.dtype), None, None, None, None


attend.defvjp(_attend_fwd, _attend_bwd)

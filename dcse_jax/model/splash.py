"""Attention of long sentences on a TPU, by the splash kernel that comes with JAX.

Scores of a block at a time stay in the chip's own memory; what is kept for the backward
pass grows with the length, and nothing is computed twice but the scores.
"""

from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
import jax.numpy as jnp

from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib

# The shortest sentences that it takes, and the tokens of a block.
_FROM, _BLOCK = 1024, 512
_WIDTHS = (64, 128, 256)


def is_for(sentences: int, length: int, width: int, dtype: Any) -> bool:
  """Returns whether sentences of a length and heads of a width have the kernel here."""
  fits = length >= _FROM and width in _WIDTHS and dtype == jnp.bfloat16
  return fits and backend.current() == "tpu" and mesh_lib.divides(sentences)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array,
  *,
  is_causal: bool,
  divisor: float,
  block: int = _BLOCK,
  interpret: bool = False,
) -> jax.Array:
  """Attends from every token of a sentence to every other, or to those before it.

  Args:
    query: [N, S, h, d].
    key: [N, S, g, d]; heads share keys and values where g divides h.
    value: like key.
    mask: true for tokens, [N, S].
    is_causal: whether a token sees none after it.
    divisor: scores are divided by its root.
    block: tokens of a block.
    interpret: runs on any backend, slowly.

  Returns:
    [N, S, h, d]; padding has anything finite.
  """
  length, heads = query.shape[1:3]
  padded = -(-length // block) * block
  shape = padded, padded
  make = (
    splash_attention_mask.CausalMask if is_causal else splash_attention_mask.FullMask
  )
  kernel = splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([make(shape)] * heads),
    block_sizes=splash_attention_kernel.BlockSizes(*[block] * 8),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )

  def run(query, key, value, mask):
    # Tokens see those of their own segment alone, and so does padding.
    segment = mask.astype(jnp.int32)
    segments = splash_attention_kernel.SegmentIds(segment, segment)
    return jax.vmap(kernel)(query, key, value, segments)

  pad = lambda x: jnp.pad(x, [(0, 0), (0, padded - length)] + [(0, 0)] * (x.ndim - 2))
  by_head = lambda x: pad(x).swapaxes(1, 2)
  query = query * jnp.asarray(divisor**-0.5, query.dtype)
  arrays = *map(by_head, (query, key, value)), pad(mask)
  attended = mesh_lib.over_rows(run, arrays, ())
  return attended.swapaxes(1, 2)[:, :length]

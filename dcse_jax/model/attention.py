"""Attention: which keys a token sees, and what that costs.

Short rows are computed at once. In long rows a token that sees only its neighbours
meets only their blocks, so that time and memory grow with the length; where every
token sees every other, some queries are computed at a time, so that memory does. A
GPU's fused kernel takes the place of both where it can, and a TPU's that of the latter.
No kernel takes a bias of the scores, which MPNet alone has: its rows are at most 512 long,
and the plain form computes them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import ops
from dcse_jax.model import splash
from dcse_jax.model.dropout import dropout
from dcse_jax.runtime import backend

# Queries in a turn. Longer rows are as fast in turns as at once, forward and backward.
_TURN = 512
# Blocks pay if a row is this many times as long as all keys that a block meets: on two
# CPU cores from 256 tokens in training and from 400 in evaluation, for ModernBERT's
# window.
_BLOCKS_WORTH = 2
# The fused kernel pays from this length: on an H100, 1.3 times as fast as XLA at 64 tokens,
# 2.2 at 128, 7 at 2,048, and slower below.
_FUSED_FROM = 64


@dataclasses.dataclass(frozen=True)
class Reach:
  """The keys that a token sees, besides itself.

  Attributes:
    before: how many before it; None for all.
    after: how many after it; None for all.
  """

  before: int | None = None
  after: int | None = None

  def sees(self, offset: jax.Array) -> jax.Array | bool:
    """Returns whether a token sees the key `offset` places after it."""
    seen = True
    if self.before is not None:
      seen = offset >= -self.before
    if self.after is not None:
      seen = seen & (offset <= self.after)
    return seen

  def pairs(self, length: float, squared_length: float) -> float:
    """Counts the pairs of a query and a key in sentences.

    Args:
      length: the mean of their tokens, n.
      squared_length: the mean of n^2.
    """
    if self.before is not None and self.after is not None:
      # Sentences shorter than the window have fewer pairs than it would allow.
      return min(squared_length, length * (self.before + self.after + 1))
    if self.before is None and self.after is None:
      return squared_length
    return (squared_length + length) / 2


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Dropout of attention probabilities.

  Attributes:
    rate: the probability of a zero, in [0, 1).
    key: a key of `make_keys`; None means no dropout.
    rows: the queries' numbers in the whole batch, [N, Q].
  """

  rate: float
  key: jax.Array | None
  rows: jax.Array

  @property
  def is_on(self) -> bool:
    return self.key is not None and self.rate > 0


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array,
  dropped: Dropout,
  *,
  reach: Reach = Reach(),
  bias: jax.Array | None = None,
  positions: jax.Array | None = None,
  divisor: float | None = None,
) -> jax.Array:
  """Computes scaled dot-product attention, Vaswani et al., 2017 (arXiv:1706.03762).

  Args:
    query: [N, Q, h, d].
    key: [N, S, g, d]; heads share keys and values where g divides h.
    value: like key.
    mask: true for tokens, which stand before all padding, [N, S].
    dropped: the dropout of probabilities.
    reach: which keys a query sees; all with a bias.
    bias: is added to scores, [h, S, S] float32.
    positions: the queries' places in their sentences, [N, Q]; None: Q is S, in order.
    divisor: scores are divided by its root; by default d.

  Returns:
    [N, Q, h, d]. The probabilities are float32.
  """
  divisor, length = divisor or query.shape[-1], key.shape[1]
  if positions is None and bias is None and _is_fused(query, key, dropped, reach):
    return _attend_fused(query, key, value, mask, reach, divisor)
  if positions is None and bias is None and _is_splash(query, dropped, reach):
    return splash.attend(
      query, key, value, mask, is_causal=reach.after == 0, divisor=divisor
    )
  if groups := query.shape[2] // key.shape[2] - 1:
    key, value = (jnp.repeat(x, groups + 1, axis=2) for x in (key, value))
  run = functools.partial(_attend, reach=reach, divisor=divisor)
  if positions is not None:
    places = positions[:, :, None], np.arange(length)
    if bias is not None:
      bias = bias[:, positions].swapaxes(0, 1)
    return run(query, key, value, mask, dropped, places, bias=bias)
  if None not in (reach.before, reach.after):
    blocks = 1 + (reach.before > 0) + (reach.after > 0)
    size = max(reach.before, reach.after, 1)
    if length > _BLOCKS_WORTH * blocks * size:
      return _attend_blocks(run, query, key, value, mask, dropped, reach, size)
  places = np.arange(length)[:, None], np.arange(length)
  if length > _TURN:
    return _attend_in_turns(run, query, key, value, mask, dropped, bias)
  return run(query, key, value, mask, dropped, places, bias=bias)


def _attend(
  query, key, value, mask, dropped, places, first_key=None, *, reach, divisor, bias=None
):
  """Attends from some queries to some keys, all at once.

  Args:
    query: [N, Q, h, d].
    key: [N, K, h, d].
    value: [N, K, h, d].
    mask: [N, K].
    dropped: the queries' dropout.
    places: the queries' places, [N or 1, Q, 1] or [Q, 1], and the keys', [K], from one
      origin.
    first_key: the place of the first key in its sentence, [N]; None stands for 0.
    reach: which keys a query sees.
    divisor: scores are divided by its root.
    bias: is added to scores, [h, Q, K] or [N, h, Q, K]; or None.
  """
  scores = ops.attention_scores(query, key).astype(jnp.float32)
  scores = scores / jnp.sqrt(jnp.float32(divisor))
  scores = scores if bias is None else scores + bias
  seen = reach.sees(places[1] - places[0])
  if seen is True:
    seen = mask[:, None, None]
  else:
    seen = mask[:, None, None] & (seen[:, None] if seen.ndim == 3 else seen)
  # A finite mask: a row of padding alone must not become NaN.
  weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
  weights = weights.astype(value.dtype)
  if dropped.is_on:
    heads = query.shape[2]
    rows = dropped.rows[:, None] * heads + np.arange(heads)[:, None]
    first = None if first_key is None else first_key[:, None, None]
    weights = dropout(weights, dropped.rate, dropped.key, rows, first)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def _attend_blocks(run, query, key, value, mask, dropped, reach, size):
  """Attends from blocks of `size` queries to their own and the next blocks of keys."""
  batch, length = mask.shape
  number = -(-length // size)
  before, after = int(reach.before > 0), int(reach.after > 0)

  def split(x):
    end = number * size - length
    x = jnp.pad(x, [(0, 0), (0, end)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, number, size, *x.shape[2:])

  def join(x):
    """Turns [N, blocks, size, ...] into rows of a block each."""
    return x.reshape(batch * number, *x.shape[2:])

  def with_neighbours(x):
    x = jnp.pad(split(x), [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 1))
    shifted = [x[:, i : i + number] for i in range(before + 1 + after)]
    return join(jnp.concatenate(shifted, axis=2))

  rows = jnp.broadcast_to(dropped.rows, mask.shape)
  places = (before * size + np.arange(size)[:, None], None)
  places = (places[0], np.arange((before + 1 + after) * size))
  attended = run(
    join(split(query)),
    *map(with_neighbours, (key, value, mask)),
    dataclasses.replace(dropped, rows=join(split(rows))),
    places,
    jnp.tile((np.arange(number, dtype=np.int32) - before) * size, batch),
  )
  return attended.reshape(batch, number * size, *attended.shape[2:])[:, :length]


def _attend_in_turns(run, query, key, value, mask, dropped, bias):
  """Attends some queries at a time, which the backward pass computes again."""
  batch, length = mask.shape
  number = -(-length // _TURN)

  def split(x):
    end = number * _TURN - length
    x = jnp.pad(x, [(0, 0), (0, end)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, number, _TURN, *x.shape[2:]).swapaxes(0, 1)

  def turn(part):
    query, rows, place = part
    places = place[:, None], np.arange(length)
    some = None if bias is None else bias.at[:, place].get(mode="clip")
    here = dataclasses.replace(dropped, rows=rows)
    return run(query, key, value, mask, here, places, bias=some)

  rows = jnp.broadcast_to(dropped.rows, mask.shape)
  places = jnp.arange(number * _TURN).reshape(number, _TURN)
  # The loop already keeps the two computations apart: XLA need not prevent CSE.
  once_more = jax.checkpoint(turn, prevent_cse=False)
  attended = jax.lax.map(once_more, (split(query), split(rows), places))
  attended = attended.swapaxes(0, 1)
  return attended.reshape(batch, number * _TURN, *attended.shape[3:])[:, :length]


def _is_fused(query, key, dropped: Dropout, reach: Reach) -> bool:
  """Returns whether cuDNN's kernel can do it; its dropout and windows are its own."""
  if backend.current() != "gpu" or jax.default_backend() != "gpu":
    return False
  capability = float(getattr(jax.devices()[0], "compute_capability", 0))
  width = query.shape[-1]
  return (
    capability >= 8.0
    and query.dtype in (jnp.bfloat16, jnp.float16)
    and width % 8 == 0
    and width <= (256 if capability >= 9.0 else 128)
    and key.shape[1] >= _FUSED_FROM
    and not dropped.is_on
    and reach.after in (None, 0)
    and (reach.before is None or reach.after == 0)
  )


def _is_splash(query, dropped: Dropout, reach: Reach) -> bool:
  """Returns whether a TPU's kernel can do it; it has no dropout, and blocks do windows."""
  sentences, length, _, width = query.shape
  sees_all = reach.before is None and reach.after in (None, 0)
  is_plain = sees_all and not dropped.is_on
  return is_plain and splash.is_for(sentences, length, width, query.dtype)


def _attend_fused(query, key, value, mask, reach, divisor):
  """Attends by a kernel that never writes scores to memory."""
  # A row of padding alone gets one key, so that nothing is divided by 0.
  lengths = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    scale=float(divisor) ** -0.5,
    is_causal=reach.after == 0,
    query_seq_lengths=jnp.full_like(lengths, query.shape[1]),
    key_value_seq_lengths=lengths,
    local_window_size=None if reach.before is None else (reach.before, 0),
    implementation="cudnn",
  )

"""Dropout whose masks are a function of a key and of where an element stands.

Each element's bits are a hash of its token, its feature and a key, computed
where they are used: no generator state, nothing to store between passes, and
the same mask however the batch is padded, packed or divided among devices.
"""

import jax
import jax.numpy as jnp


def make_keys(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws independent dropout keys from a jax key, [*shape, 2] uint32."""
  return jax.random.bits(rng, (*shape, 2), jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  # A bijection of 32 bits in which each output bit depends on each input bit;
  # shifts and constants are Wellons's (lowbias32), the best of those he searched.
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def keep_mask(
  rows: jax.Array,
  key: jax.Array,
  rate: float,
  width: int,
  first: jax.Array | None = None,
) -> jax.Array:
  """Returns which elements dropout keeps, [..., width] bool.

  Args:
    rows: see `dropout`, [...].
    key: two uint32 numbers.
    rate: the probability of a zero, in [0, 1).
    width: how many features there are.
    first: see `dropout`.
  """
  rows = _mix(rows.astype(jnp.uint32) ^ key[0])[..., None]
  features = jax.lax.broadcasted_iota(
    jnp.uint32, (*(1,) * (rows.ndim - 1), width), rows.ndim - 1
  )
  if first is not None:
    features = first.astype(jnp.uint32)[..., None] + features
  bits = _mix((rows + features) ^ key[1])
  return bits >= jnp.uint32(round(rate * 2**32))


def dropout(
  x: jax.Array,
  rate: float,
  key: jax.Array | None,
  rows: jax.Array,
  first: jax.Array | None = None,
) -> jax.Array:
  """Zeroes elements with a probability and scales up the rest.

  Args:
    x: [..., D].
    rate: the probability of a zero, in [0, 1).
    key: [2] uint32, from `make_keys`; None means no dropout.
    rows: which row of the whole batch each x[..., :] is, an integer array that
      broadcasts to x.shape[:-1]. Rows with the same number get the same mask.
    first: where x[..., 0] stands in a longer row that x is a part of, shaped as rows;
      None means 0.

  Returns:
    An array like x, with the same mean.
  """
  if key is None or rate == 0.0:
    return x
  keep = keep_mask(rows, key, rate, x.shape[-1], first)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))

"""Group-P shuffling: a teacher's similarities, permuted among those that are alike."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import check_rows
from dcse_jax.losses.similarity import mask_own
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.similarity import row_keys

# The fewest random bits for a value: with 15, two values of a group tie, and keep the
# order of their columns, once in 32,768 times.
_LEAST_NOISE_BITS = 15


def group_shuffle(
  teacher_similarity: jax.Array,
  rng: jax.Array,
  labels: jax.Array | None = None,
  *,
  probability: float | None = None,
  size: int | None = None,
  top: int | tuple[int, int] | None = None,
) -> jax.Array:
  """Permutes each row's similarities at random within groups of like ones.

  The off-diagonal values of a row are ranked from most to least similar and cut
  into groups by exactly one of three rules:

  * `probability` (the paper's Group-P): with c_k the cumulative softmax, without
    temperature, of the k most similar, rank k is in group floor(c_k / p); equal
    values share the last one's. Groups hold about B p values: some six at B = 64
    and p = 0.1. Nothing is shuffled when B p < 1.
  * `size`: a group holds this many ranks.
  * `top`: ranks start to end - 1 are one group, all others stay; a number k
    means (0, k).

  The published code permutes the student's logits against the teacher's sorted
  ones; permuting the teacher's is the same in distribution and keeps the gather
  out of the gradient.

  Args:
    teacher_similarity: raw cosines of b sentences of a batch with all of it,
      [b, B].
    rng: a key; every row draws its own permutation from it, by its number.
    labels: which of the B columns is each row's own, [b]; by default the first b.
    probability: the share of probability in a group, in (0, 1].
    size: values in a group, at least 1.
    top: how many of the first ranks to shuffle, or (start, end).

  Returns:
    [b, B] float32: each row holds the same values as before in another order;
    that of a sentence with itself is untouched.

  Raises:
    ValueError: not exactly one rule given, or one out of range.

  References:
    Xu et al., DistillCSE, 2023, Eq. 5-6 (arXiv:2310.13499).
  """
  check_rows("teacher_similarity", teacher_similarity)
  if sum(rule is not None for rule in (probability, size, top)) != 1:
    raise ValueError("give exactly one of probability=, size= and top=")
  columns = teacher_similarity.shape[1]
  values = teacher_similarity.astype(jnp.float32)
  # A row's own value is masked, so it sorts to the last rank, and its column gets a
  # last group of its own: it cannot mix with the others.
  labels, is_own = own_columns(values, labels)
  masked = mask_own(values, is_own)
  ranked = _sort_descending(masked)
  if probability is not None:
    group, num_groups = _group_by_probability(masked, ranked, probability)
  else:
    group, num_groups = _group_by_rank(masked, size, top), columns
  group = jnp.where(is_own, jnp.uint32(num_groups), group)
  # Columns in the order of their groups, at random within each, take the values
  # from the highest down: a group has as many columns as values.
  take = _random_order(row_keys(rng, labels), group, num_groups.bit_length())
  of_own = jnp.take_along_axis(values, labels[:, None], axis=1)
  ranked = jnp.where(jnp.arange(columns) == columns - 1, of_own, ranked)
  row = jnp.arange(len(values))[:, None]
  return jnp.zeros_like(values).at[row, take].set(ranked, unique_indices=True)


# XLA sorts an array of integers several times faster than floats or two arrays.


def _sort_descending(values: jax.Array) -> jax.Array:
  """Sorts float32 rows, the largest first, as integers that have the same order."""
  sign = jnp.uint32(1 << 31)
  bits = jax.lax.bitcast_convert_type(-values, jnp.uint32)
  keys = jax.lax.sort(jnp.where(bits >= sign, ~bits, bits | sign))
  bits = jnp.where(keys >= sign, keys ^ sign, ~keys)
  return -jax.lax.bitcast_convert_type(bits, jnp.float32)


def _random_order(keys: jax.Array, group: jax.Array, group_bits: int) -> jax.Array:
  """Returns columns [b, B] sorted by group, at random within each row's groups."""
  columns = group.shape[1]
  column_bits = (columns - 1).bit_length()
  noise_bits = 32 - group_bits - column_bits
  column = jax.lax.broadcasted_iota(jnp.uint32, group.shape, 1)
  noise = jax.vmap(lambda key: jax.random.bits(key, (columns,), jnp.uint32))(keys)
  if noise_bits < _LEAST_NOISE_BITS:
    order = group << (32 - group_bits) | noise >> group_bits
    return jax.lax.sort((order, column.astype(jnp.int32)), num_keys=1)[1]
  order = (group << noise_bits | noise >> (32 - noise_bits)) << column_bits | column
  return (jax.lax.sort(order) & jnp.uint32((1 << column_bits) - 1)).astype(jnp.int32)


def _group_by_rank(masked, size, top):
  """Finds each column's group from its rank, below B: [b, B] uint32."""
  columns = masked.shape[1]
  others = columns - 1
  if size is not None and size < 1:
    raise ValueError(f"size={size}: a group holds 1 value or more")
  order = jnp.argsort(-masked, axis=1)
  row, every = jnp.arange(len(masked))[:, None], jnp.arange(columns, dtype=jnp.uint32)
  rank = jnp.zeros(masked.shape, jnp.uint32).at[row, order].set(every)
  if size is not None:
    return rank // size
  start, end = (0, top) if isinstance(top, int) else top
  if not 0 <= start < end <= others:
    raise ValueError(
      f"top={top}: needs 0 <= start < end <= {others}, the batch less one"
    )
  return jnp.where((rank >= start) & (rank < end), jnp.uint32(start), rank)


def _group_by_probability(masked, ranked, probability):
  """Finds each column's group from its value, [b, B] uint32; and counts the groups."""
  if not 0.0 < probability <= 1.0:
    raise ValueError(f"probability={probability}: must be in (0, 1]")
  groups = int(1 / probability)
  if groups * probability < 1:
    groups += 1
  # Thresholds are rounded to float32 before comparing, as published, or a value
  # on a boundary changes group.
  thresholds = jnp.asarray([k * probability for k in range(1, groups)], jnp.float32)
  cumulative = jnp.cumsum(jax.nn.softmax(ranked, axis=1), axis=1)
  # There are few thresholds: comparing with all at once beats a binary search's loop.
  reached = cumulative[:, None] >= thresholds[None, :, None]
  first = jnp.sum(~reached, axis=-1, dtype=jnp.int32)
  # The highest value of each group after the first; none reaches a threshold that
  # rounding keeps the sum below.
  highest = jnp.take_along_axis(
    jnp.pad(ranked, ((0, 0), (0, 1)), constant_values=-jnp.inf), first, axis=1
  )
  group = jnp.sum(masked[:, :, None] <= highest[:, None], axis=-1, dtype=jnp.uint32)
  return group, groups

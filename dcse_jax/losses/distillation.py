"""Distillation of similarities, and the two cures for its variance.

A teacher says how alike the sentences of a batch are; the student learns the
distribution over the other sentences that these similarities give each row.
Group-P shuffling and averaging over teachers keep the student from learning
what is accident in one teacher.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import normalize

# Stands in for minus infinity: its softmax is exactly 0 in float32, and unlike
# infinity it does not turn 0 * log 0 and log-add-exp gradients into NaN.
_MASKED = -1e9

# So many random bits a value, at least: two values of a group tie, and then keep to
# the order of their columns, once in 32,768 times.
_LEAST_NOISE_BITS = 15


def _mask_diagonal(similarity: jax.Array) -> jax.Array:
  own = jnp.eye(similarity.shape[0], dtype=bool)
  return jnp.where(own, _MASKED, similarity.astype(jnp.float32))


def _check_square(name: str, similarity: jax.Array) -> None:
  if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
    raise ValueError(f"{name} must be [B, B], not {similarity.shape}")
  if similarity.shape[0] < 2:
    raise ValueError(f"{name} needs a batch of 2 or more: no other sentence")


def average_similarity(
  teacher_embeddings: Sequence[jax.Array],
  weights: Sequence[float] | None = None,
) -> jax.Array:
  """Mean over teachers of the cosine of every two sentences.

  Args:
    teacher_embeddings: one [B, D_t] a teacher; widths may differ.
    weights: one a teacher, divided by their sum; all equal if None. Several
      base teachers and several large ones with the published alpha = 0.33 are
      weights of 0.33 / n_base and 0.67 / n_large.

  Returns:
    [B, B] float32 raw cosines in [-1, 1], diagonal included; averaged before
    any temperature.

  References:
    Xu et al., DistillCSE, 2023, Eq. 7 (arXiv:2310.13499).
  """
  if weights is None:
    weights = [1.0] * len(teacher_embeddings)
  if len(weights) != len(teacher_embeddings) or not teacher_embeddings:
    raise ValueError(
      f"{len(teacher_embeddings)} teachers with {len(weights)} weights: "
      "give at least one teacher and one weight for each"
    )
  # The mean of T Gram matrices is one Gram matrix of the embeddings laid side
  # by side: one matrix product instead of T and T - 1 additions of [B, B].
  units = [normalize(e) for e in teacher_embeddings]
  total = sum(weights)
  scaled = [unit * (w / total) for unit, w in zip(units, weights)]
  return jnp.matmul(
    jnp.concatenate(scaled, axis=1),
    jnp.concatenate(units, axis=1).T,
    precision=jax.lax.Precision.HIGHEST,
  )


def distillation(
  student_similarity: jax.Array,
  teacher_similarity: jax.Array,
  *,
  student_temperature: float,
  teacher_temperature: float,
  divergence: str = "cross_entropy",
) -> jax.Array:
  """Divergence of the student's softmax over the other sentences from the teacher's.

  With q = softmax over j != i of teacher_ij / teacher_temperature and p the same
  of the student: `cross_entropy` is -sum q log p, `kl` is sum q log(q / p), and
  `js` is half of KL(q || m) plus half of KL(p || m), m = (p + q) / 2. The first
  two differ by the teacher's entropy, so their gradients for the student agree.

  Args:
    student_similarity: raw cosines, [B, B]; the diagonal is ignored.
    teacher_similarity: raw cosines, [B, B]; the diagonal is ignored. Its
      gradient is not stopped here.
    student_temperature: divides the student's cosines.
    teacher_temperature: divides the teacher's cosines.
    divergence: "cross_entropy", "kl" or "js".

  Returns:
    The loss of each row, [B], in nats.

  Raises:
    ValueError: an unknown divergence, or shapes that are not one [B, B], B > 1.

  References:
    Xu et al., DistillCSE, 2023, Eq. 2 (arXiv:2310.13499). Only the cross
    entropy works in the published code.
  """
  _check_square("student_similarity", student_similarity)
  if student_similarity.shape != teacher_similarity.shape:
    raise ValueError(
      f"student_similarity is {student_similarity.shape} and "
      f"teacher_similarity is {teacher_similarity.shape}: they must agree"
    )
  log_p = jax.nn.log_softmax(_mask_diagonal(student_similarity / student_temperature))
  log_q = jax.nn.log_softmax(_mask_diagonal(teacher_similarity / teacher_temperature))
  q = jnp.exp(log_q)
  if divergence == "cross_entropy":
    return -jnp.sum(q * log_p, axis=1)
  if divergence == "kl":
    return jnp.sum(q * (log_q - log_p), axis=1)
  if divergence == "js":
    p = jnp.exp(log_p)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return 0.5 * jnp.sum(q * (log_q - log_m) + p * (log_p - log_m), axis=1)
  raise ValueError(f"unknown divergence {divergence!r}: use cross_entropy, kl or js")


def group_shuffle(
  teacher_similarity: jax.Array,
  rng: jax.Array,
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
    values share the last one's. Groups hold about B p values: at B = 64 and
    p = 0.1 some six, and none is shuffled when B p < 1.
  * `size`: this many ranks to a group.
  * `top`: ranks start to end - 1 are one group, all others stay; a number k
    means (0, k).

  The published code permutes the student's logits against the teacher's sorted
  ones; permuting the teacher's is the same in distribution and keeps the gather
  out of the gradient.

  Args:
    teacher_similarity: raw cosines, [B, B].
    rng: a key; every row draws its own permutation from it.
    probability: the share of probability in a group, in (0, 1].
    size: values in a group, at least 1.
    top: how many of the first ranks to shuffle, or (start, end).

  Returns:
    [B, B] float32: each row holds the same values as before in another order;
    the diagonal is untouched.

  Raises:
    ValueError: not exactly one rule given, or one out of range.

  References:
    Xu et al., DistillCSE, 2023, Eq. 5-6 (arXiv:2310.13499).
  """
  _check_square("teacher_similarity", teacher_similarity)
  if sum(rule is not None for rule in (probability, size, top)) != 1:
    raise ValueError("give exactly one of probability=, size= and top=")
  columns = teacher_similarity.shape[1]
  values = teacher_similarity.astype(jnp.float32)
  # The diagonal is masked, so it sorts to the last rank, and its column is given a
  # last group of its own: it cannot mix with the others.
  own = jnp.eye(columns, dtype=bool)
  masked = jnp.where(own, _MASKED, values)
  ranked = _sort_descending(masked)
  if probability is not None:
    group, num_groups = _group_by_probability(masked, ranked, probability)
  else:
    group, num_groups = _group_by_rank(masked, size, top), columns
  group = jnp.where(own, jnp.uint32(num_groups), group)
  # Columns in the order of their groups, at random within each, take the values
  # from the highest down: a group has as many columns as values.
  take = _random_order(rng, group, num_groups.bit_length())
  diagonal = jnp.diagonal(values)[:, None]
  ranked = jnp.where(jnp.arange(columns) == columns - 1, diagonal, ranked)
  row = jnp.arange(columns)[:, None]
  return jnp.zeros_like(values).at[row, take].set(ranked, unique_indices=True)


# XLA sorts one array of integers several times faster than one of floats or two.


def _sort_descending(values: jax.Array) -> jax.Array:
  """Sorts float32 rows by integers of the same order."""
  sign = jnp.uint32(1 << 31)
  bits = jax.lax.bitcast_convert_type(-values, jnp.uint32)
  keys = jax.lax.sort(jnp.where(bits >= sign, ~bits, bits | sign))
  bits = jnp.where(keys >= sign, keys ^ sign, ~keys)
  return -jax.lax.bitcast_convert_type(bits, jnp.float32)


def _random_order(rng: jax.Array, group: jax.Array, group_bits: int) -> jax.Array:
  """Columns [B, B] sorted by group, in each row and group at random."""
  columns = group.shape[1]
  column_bits = (columns - 1).bit_length()
  noise_bits = 32 - group_bits - column_bits
  column = jax.lax.broadcasted_iota(jnp.uint32, group.shape, 1)
  if noise_bits < _LEAST_NOISE_BITS:
    noise = jax.random.bits(rng, group.shape, jnp.uint32) >> group_bits
    keys = group << (32 - group_bits) | noise
    return jax.lax.sort((keys, column.astype(jnp.int32)), num_keys=1)[1]
  noise = jax.random.bits(rng, group.shape, jnp.uint32) >> (32 - noise_bits)
  keys = (group << noise_bits | noise) << column_bits | column
  return (jax.lax.sort(keys) & jnp.uint32((1 << column_bits) - 1)).astype(jnp.int32)


def _group_by_rank(masked, size, top):
  """Each column's group by its rank, below B: [B, B] uint32."""
  columns = masked.shape[1]
  others = columns - 1
  if size is not None and size < 1:
    raise ValueError(f"size={size}: a group holds 1 value or more")
  order = jnp.argsort(-masked, axis=1)
  row, every = jnp.arange(columns)[:, None], jnp.arange(columns, dtype=jnp.uint32)
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
  """Each column's group by its value, [B, B] uint32, and how many there may be."""
  if not 0.0 < probability <= 1.0:
    raise ValueError(f"probability={probability}: must be in (0, 1]")
  groups = int(1 / probability)
  if groups * probability < 1:
    groups += 1
  # Thresholds are rounded to float32 before comparing, as published, or a value
  # on a boundary changes group.
  thresholds = jnp.asarray([k * probability for k in range(1, groups)], jnp.float32)
  cumulative = jnp.cumsum(jax.nn.softmax(ranked, axis=1), axis=1)
  # So few thresholds are compared with all at once: a binary search is a loop.
  reached = cumulative[:, None] >= thresholds[:, None]
  first = jnp.sum(~reached, axis=-1, dtype=jnp.int32)
  # The highest value of each group after the first; none reaches a threshold that
  # rounding keeps the sum below.
  highest = jnp.take_along_axis(
    jnp.pad(ranked, ((0, 0), (0, 1)), constant_values=-jnp.inf), first, axis=1
  )
  group = jnp.sum(masked[:, :, None] <= highest[:, None], axis=-1, dtype=jnp.uint32)
  return group, groups

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

# So many random bits a value, at least: two values of a group tie, and keep their
# order, once in 32,768 times.
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
    temperature, of the k most similar, rank k is in group floor(c_k / p). Groups
    hold about B p values: at B = 64 and p = 0.1 some six, and none is shuffled
    when B p < 1.
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
  rows, columns = teacher_similarity.shape
  values = teacher_similarity.astype(jnp.float32)
  # The diagonal is masked, so it sorts to the last rank, and the last rank is
  # given a group of its own: it cannot mix with the others.
  keys = _ascending_bits(-_mask_diagonal(values))
  column = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
  _, order = jax.lax.sort((keys, column), num_keys=1)
  ranked = jnp.take_along_axis(values, order, axis=1)
  group = _group_of_rank(ranked, probability=probability, size=size, top=top)
  # Numbered densely, so that the number fits few bits whatever the rule.
  is_first = group[:, 1:] != group[:, :-1]
  group = jnp.cumsum(is_first.at[:, -1].set(True), axis=1, dtype=jnp.uint32)
  group = jnp.pad(group, ((0, 0), (1, 0)))
  # Group and noise share one 32-bit key, and where there is room for it the rank
  # too: sorting one array is several times faster than sorting two.
  num_groups = columns if probability is None else int(1 / probability) + 3
  group_bits, rank_bits = num_groups.bit_length(), columns.bit_length()
  noise_bits = 32 - group_bits - rank_bits
  if noise_bits >= _LEAST_NOISE_BITS:
    noise = jax.random.bits(rng, values.shape, jnp.uint32) >> (32 - noise_bits)
    keys = (group << noise_bits | noise) << rank_bits | column.astype(jnp.uint32)
    rank = jax.lax.sort(keys) & jnp.uint32((1 << rank_bits) - 1)
    shuffled = jnp.take_along_axis(ranked, rank.astype(jnp.int32), axis=1)
  else:
    noise = jax.random.bits(rng, values.shape, jnp.uint32) >> group_bits
    keys = (group << (32 - group_bits)) | noise
    _, shuffled = jax.lax.sort((keys, ranked), num_keys=1)
  row = jnp.arange(rows)[:, None]
  return jnp.zeros_like(values).at[row, order].set(shuffled)


def _ascending_bits(values: jax.Array) -> jax.Array:
  """Maps float32 to uint32 of the same order, which XLA sorts much faster."""
  bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _group_of_rank(ranked, *, probability, size, top):
  """The group of each rank of descending similarities: [B, B], never falling.

  The last column stands for the diagonal and does not count.
  """
  columns = ranked.shape[1]
  others = columns - 1
  rank = jnp.broadcast_to(jnp.arange(columns, dtype=jnp.int32), ranked.shape)
  if size is not None:
    if size < 1:
      raise ValueError(f"size={size}: a group holds 1 value or more")
    return rank // size
  if top is not None:
    start, end = (0, top) if isinstance(top, int) else top
    if not 0 <= start < end <= others:
      raise ValueError(
        f"top={top}: needs 0 <= start < end <= {others}, the batch less one"
      )
    return jnp.where((rank >= start) & (rank < end), start, rank)
  if not 0.0 < probability <= 1.0:
    raise ValueError(f"probability={probability}: must be in (0, 1]")
  groups = int(1 / probability)
  if groups * probability < 1:
    groups += 1
  # Thresholds are rounded to float32 before comparing, as published, or a value
  # on a boundary changes group.
  thresholds = jnp.asarray([k * probability for k in range(1, groups)], jnp.float32)
  is_other = rank < others
  share = jax.nn.softmax(jnp.where(is_other, ranked, _MASKED), axis=1)
  cumulative = jnp.cumsum(share, axis=1)
  # So few thresholds are compared with all at once: a binary search is a loop.
  return jnp.sum(cumulative[..., None] >= thresholds, axis=-1, dtype=jnp.int32)

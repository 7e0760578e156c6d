"""Distillation of similarities, and two ways to reduce its variance.

A teacher says how alike the sentences of a batch are; the student learns the
distribution over the other sentences that these similarities give each row.
Group-P shuffling and averaging over teachers keep the student from learning
what is accidental in one teacher.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp

from dcse_jax.losses.group_shuffle import group_shuffle
from dcse_jax.losses.similarity import check_rows
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import mask_own
from dcse_jax.losses.similarity import normalize
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import SHARE
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term

DIVERGENCES = ("cross_entropy", "kl", "js")


def join_teachers(
  teacher_embeddings: Sequence[jax.Array],
  weights: Sequence[float] | None = None,
) -> jax.Array:
  """Makes embeddings whose cosines are the mean of all teachers' cosines.

  It puts their unit embeddings side by side, each times the root of its weight: the
  mean of T products is then one product, in place of T products and T - 1 additions
  of [B, B].

  Args:
    teacher_embeddings: [B, D_t] for each teacher; widths may differ.
    weights: one for each teacher, divided by their sum; all equal if None. Several
      base teachers and several large ones with the published alpha = 0.33 are
      weights of 0.33 / n_base and 0.67 / n_large.

  Returns:
    [B, sum of D_t] float32 of unit length. Its `cosine_similarity` with itself is the
    mean of the raw cosines, before any temperature.

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
  total = sum(weights)
  parts = [
    normalize(each) * math.sqrt(weight / total)
    for each, weight in zip(teacher_embeddings, weights)
  ]
  return jnp.concatenate(parts, axis=1)


def _check_groups(settings, batch_size: int) -> str:
  shuffles = {
    name: settings[name]
    for name in ("group_probability", "group_size", "group_top")
    if settings[name]
  }
  if len(shuffles) > 1:
    return (
      f"{list(shuffles)[0]}: group_probability, group_size and group_top exclude each "
      "other; set one"
    )
  if settings["group_top"] >= batch_size:
    return f"group_top={settings['group_top']}: must be below batch_size={batch_size}"
  return ""


def _held_out(
  anchors: jax.Array,
  all_anchors: jax.Array,
  teacher: jax.Array,
  all_teacher: jax.Array,
  *,
  student_temperature: float,
  teacher_temperature: float,
  divergence: str,
) -> jax.Array:
  """Computes the term without shuffling."""
  return similarity_divergence(
    cosine_similarity(anchors, all_anchors),
    cosine_similarity(teacher, all_teacher),
    student_temperature=student_temperature,
    teacher_temperature=teacher_temperature,
    divergence=divergence,
  )


def share_one_hot(teacher_similarity: jax.Array, temperature: float) -> jax.Array:
  """Returns the share of rows where the teachers' softmax leaves one sentence only.

  Args:
    teacher_similarity: raw cosines within each of n batches of sentences, [n, B, B].
    temperature: divides them.

  Returns:
    The share, in [0, 1], of rows whose largest probability is 1 in float32: all others
    together are below 6e-8, and teach nothing.
  """
  logits = teacher_similarity.astype(jnp.float32) / temperature
  logits = jnp.where(jnp.eye(logits.shape[-1], dtype=bool), -jnp.inf, logits)
  # The largest, 1, is left out of the sum: the others would be rounded away beside it.
  ranked = jnp.sort(logits, axis=-1)
  others = jnp.exp(ranked[..., :-1] - ranked[..., -1:]).sum(axis=-1)
  return jnp.mean(1.0 / (1.0 + others) == 1.0)


def _warnings(
  teacher: jax.Array, *, teacher_temperature: float, group_probability: float
) -> list[str]:
  """Warns where the teachers' softmax, or a group, holds a single sentence."""
  found, batch_size = [], teacher.shape[1]
  similarity = jnp.stack([cosine_similarity(batch, batch) for batch in teacher])
  share = float(share_one_hot(similarity, teacher_temperature))
  if share > 0.5:
    found.append(
      f"at distillation.teacher_temperature={teacher_temperature:g} one sentence has "
      f"all the probability in {100 * share:.0f} % of rows, and the others teach "
      "nothing: raise it"
    )
  if 0 < (batch_size - 1) * group_probability < 2:
    found.append(
      f"distillation.group_probability={group_probability:g} of "
      f"batch_size={batch_size}: groups hold fewer than two sentences, so next to "
      "nothing is shuffled"
    )
  return found


@term(
  check=_check_groups,
  held_out=_held_out,
  warnings=_warnings,
  divergence=Choice(DIVERGENCES),
  group_probability=SHARE,
  group_size=Range(0, whole=True),
  group_top=Range(0, whole=True),
)
def distillation(
  anchors: jax.Array,
  all_anchors: jax.Array,
  teacher: jax.Array,
  all_teacher: jax.Array,
  rng: jax.Array,
  labels: jax.Array | None = None,
  *,
  student_temperature: float = 0.025,
  teacher_temperature: float = 0.0125,
  divergence: str = "cross_entropy",
  group_probability: float = 0.0,
  group_size: int = 0,
  group_top: int = 0,
) -> jax.Array:
  """DistillCSE's term: the student's similarities follow its teachers'.

  The student's similarities are those of the first view with itself, after the
  projection and under dropout, as published.

  Args:
    anchors: the student's embeddings, [b, D].
    all_anchors: those of the whole batch, [B, D].
    teacher: the teachers' of the same sentences, [b, E], joined by `join_teachers`.
    all_teacher: those of the whole batch, [B, E].
    rng: a key, for the shuffling.
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    student_temperature: divides the student's cosines.
    teacher_temperature: divides the teachers' averaged cosines.
    divergence: see `similarity_divergence`.
    group_probability: the `probability` of `group_shuffle`, which then shuffles the
      teachers' similarities; 0 does not. Set at most one of it, group_size, group_top.
    group_size: the `size` of `group_shuffle`, likewise.
    group_top: the `top` of `group_shuffle`, likewise.

  Returns:
    The loss of each anchor, [b], in nats. The teachers get no gradient.

  References:
    Xu et al., DistillCSE, 2023, Eq. 2 to 7 (arXiv:2310.13499).

  Examples:
    The teacher finds the first two of three sentences alike, and the third like
    neither; a student that finds none alike gives each of the two others a half.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> teacher = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> student = jnp.eye(3)
    >>> key = jax.random.key(0)  # For the shuffling, which is off by default.
    >>> loss = distillation(student, student, teacher, teacher, key)
    >>> print(loss.round(4))  # The logarithm of 2.
    [0.6931 0.6931 0.6931]
  """
  target = jax.lax.stop_gradient(cosine_similarity(teacher, all_teacher))
  rules = dict(probability=group_probability, size=group_size, top=group_top)
  rules = {name: value for name, value in rules.items() if value}
  if rules:
    target = group_shuffle(target, rng, labels, **rules)
  return similarity_divergence(
    cosine_similarity(anchors, all_anchors),
    target,
    labels,
    student_temperature=student_temperature,
    teacher_temperature=teacher_temperature,
    divergence=divergence,
  )


def similarity_divergence(
  student_similarity: jax.Array,
  teacher_similarity: jax.Array,
  labels: jax.Array | None = None,
  *,
  student_temperature: float,
  teacher_temperature: float,
  divergence: str = "cross_entropy",
) -> jax.Array:
  """Compares the student's softmax over the other sentences with the teacher's.

  With q = softmax over j != i of teacher_ij / teacher_temperature and p the same
  of the student: `cross_entropy` is -sum q log p, `kl` is sum q log(q / p), and
  `js` is half of KL(q || m) plus half of KL(p || m), m = (p + q) / 2. The first
  two differ by the teacher's entropy, so their gradients for the student agree.

  Args:
    student_similarity: raw cosines of b sentences of a batch with all of it,
      [b, B]; those with themselves are ignored.
    teacher_similarity: those of the teacher. Its gradient is not stopped here.
    labels: which of the B columns is each row's own, [b]; by default the first b.
    student_temperature: divides the student's cosines.
    teacher_temperature: divides the teacher's cosines.
    divergence: "cross_entropy", "kl" or "js".

  Returns:
    The loss of each row, [b], in nats.

  Raises:
    ValueError: an unknown divergence, or shapes that are not one [b, B], B > 1.

  References:
    Xu et al., DistillCSE, 2023, Eq. 2 (arXiv:2310.13499). Only the cross
    entropy works in the published code.
  """
  check_rows("student_similarity", student_similarity)
  if student_similarity.shape != teacher_similarity.shape:
    raise ValueError(
      f"student_similarity is {student_similarity.shape} and "
      f"teacher_similarity is {teacher_similarity.shape}: they must agree"
    )
  _, is_own = own_columns(student_similarity, labels)
  log_p = jax.nn.log_softmax(mask_own(student_similarity / student_temperature, is_own))
  log_q = jax.nn.log_softmax(mask_own(teacher_similarity / teacher_temperature, is_own))
  q = jnp.exp(log_q)
  if divergence == "cross_entropy":
    return -jnp.sum(q * log_p, axis=1)
  if divergence == "kl":
    return jnp.sum(q * (log_q - log_p), axis=1)
  if divergence == "js":
    return jensen_shannon(log_p, log_q)
  raise ValueError(
    f"unknown divergence {divergence!r}: use one of {', '.join(DIVERGENCES)}"
  )


def jensen_shannon(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """Computes the Jensen-Shannon divergence of rows, (KL(p || m) + KL(q || m)) / 2.

  The distribution m is the mean of p and q.

  Args:
    log_p: logarithms of probabilities, [b, B].
    log_q: those of the other distributions, [b, B].

  Returns:
    [b], in nats, from 0 to log 2.
  """
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
  return 0.5 * jnp.sum(q * (log_q - log_m) + p * (log_p - log_m), axis=1)

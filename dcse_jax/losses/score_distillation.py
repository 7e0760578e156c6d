"""Distillation of scores: how well an anchor and each of its candidates match."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import normalize
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import term

_MEASURES = Choice(("kl", "margin_mse"))
_SIMILARITIES = Choice(("cosine", "dot"))


@term(measure=_MEASURES, similarity=_SIMILARITIES)
def score_distillation(
  anchors: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  scores: jax.Array,
  has_negative: jax.Array | None = None,
  *,
  measure: str = "kl",
  similarity: str = "cosine",
  student_temperature: float = 0.05,
  teacher_temperature: float = 1.0,
) -> jax.Array:
  """Score distillation: a teacher's scores of a row's candidates, such as a reranker's.

  With s the student's similarities of an anchor with its positive and its hard
  negatives, over `student_temperature`, and t the teacher's scores of the same, over
  `teacher_temperature`: `kl` is KL(softmax t || softmax s). `margin_mse` is the mean over
  the negatives k of ((s_0 - s_k) - (t_0 - t_k))^2, with the positive's s_0 and t_0; it
  was made for dot products, both temperatures 1.

  Args:
    anchors: the student's embeddings, [b, D].
    positives: those of positives, [b, D].
    negatives: those of hard negatives, [b, D] or [b, K, D].
    scores: the teacher's, of any scale, [b, 1 + K]: the positive's first.
    has_negative: which hard negatives there are, [b, K]; None if all.
    measure: "kl" or "margin_mse".
    similarity: "cosine", or "dot" for products of embeddings of any length.
    student_temperature: divides the student's similarities.
    teacher_temperature: divides the teacher's scores.

  Returns:
    The loss of each row, [b]; `kl` is in nats. The scores get no gradient.

  References:
    Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture
    Knowledge Distillation, 2020 (arXiv:2010.02666), for `margin_mse`.

  Examples:
    The teacher finds the positive better than the negative by 2, the student by 0.

    >>> import jax.numpy as jnp
    >>> student = jnp.ones((1, 3))
    >>> scores = jnp.asarray([[5.0, 3.0]])
    >>> print(
    ...   score_distillation(student, student, student, scores, measure="margin_mse")
    ... )
    [4.]
  """
  student = _similarity(anchors, positives, negatives, similarity)
  student = student / student_temperature
  teacher = jax.lax.stop_gradient(scores.astype(jnp.float32)) / teacher_temperature
  is_there = jnp.ones(student.shape, bool)
  if has_negative is not None:
    is_there = is_there.at[:, 1:].set(has_negative)
  if measure == "margin_mse":
    margins = (student[:, :1] - student) - (teacher[:, :1] - teacher)
    # The positive has no margin to itself, so it adds nothing.
    squares = jnp.where(is_there, margins**2, 0.0)
    number = jnp.sum(is_there[:, 1:], axis=1, dtype=jnp.float32)
    return jnp.sum(squares, axis=1) / jnp.maximum(number, 1.0)
  log_p = jax.nn.log_softmax(jnp.where(is_there, student, MASKED))
  log_q = jax.nn.log_softmax(jnp.where(is_there, teacher, MASKED))
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=1)


@term()
def candidate_distillation(
  anchors: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  teacher: jax.Array,
  teacher_positives: jax.Array,
  teacher_negatives: jax.Array,
  has_negative: jax.Array | None = None,
  *,
  student_temperature: float = 0.05,
  teacher_temperature: float = 0.05,
) -> jax.Array:
  """Candidate distillation: `score_distillation` of the teachers' averaged cosines.

  It compares an anchor with its own positive and hard negatives, where `distillation`
  compares it with the other anchors of the batch.

  Args:
    anchors: the student's embeddings, [b, D].
    positives: those of positives, [b, D].
    negatives: those of hard negatives, [b, D] or [b, K, D].
    teacher: the teachers' of the anchors, [b, E], joined by `join_teachers`.
    teacher_positives: those of the positives, [b, E].
    teacher_negatives: those of the hard negatives, [b, E] or [b, K, E].
    has_negative: which hard negatives there are, [b, K]; None if all.
    student_temperature: divides the student's cosines.
    teacher_temperature: divides the teachers' averaged cosines.

  Returns:
    KL divergences, [b], in nats. The teachers get no gradient.
  """
  scores = _similarity(teacher, teacher_positives, teacher_negatives, "cosine")
  return score_distillation(
    anchors,
    positives,
    negatives,
    scores,
    has_negative,
    student_temperature=student_temperature,
    teacher_temperature=teacher_temperature,
  )


def _similarity(
  anchors: jax.Array, positives: jax.Array, negatives: jax.Array, kind: str
) -> jax.Array:
  """Computes the cosine or dot product of each anchor with its candidates, [b, 1 + K]."""
  if negatives.ndim == 2:
    negatives = negatives[:, None]
  candidates = jnp.concatenate([positives[:, None], negatives], axis=1)
  if kind == "cosine":
    anchors, candidates = normalize(anchors), normalize(candidates)
  return jnp.einsum(
    "bd,bkd->bk",
    anchors.astype(jnp.float32),
    candidates.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )

"""Distillation of embeddings: the student's embedding follows its teachers'."""

import jax

from dcse_jax.losses.similarity import pair_cosine
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import term


def _held_out(student: jax.Array, teacher: jax.Array, *, measure: str) -> jax.Array:
  """Computes the term without dropout."""
  return embedding_distillation(student, teacher, measure=measure)


@term(held_out=_held_out, measure=Choice(("cosine", "l2")))
def embedding_distillation(
  student: jax.Array, teacher: jax.Array, *, measure: str = "cosine"
) -> jax.Array:
  """Embedding distillation: the student's embedding follows its teachers'.

  It is 1 - cos(student, teacher), or the squared distance of both on the unit sphere,
  which is twice that: `measure` only changes the term's weight beside others, and where
  gradients are clipped. Each sentence teaches by itself; the batch has no part in it.

  Several teachers count as one, since `join_teachers` puts them side by side: the
  cosine is then with their joint embedding, in which each has its share of the length.
  LEAF takes the squared distance to one teacher, after a map like the one that the
  student has here where widths differ.

  Args:
    student: the student's embedding as it is served, under dropout, [b, E]; if the
      teachers' has another width, after a linear map that is trained along.
    teacher: the teachers' of the same sentences, [b, E], joined by `join_teachers`.
    measure: "cosine" or "l2".

  Returns:
    The loss of each sentence, [b], in [0, 2] or [0, 4]. The teachers get no gradient.

  References:
    Vujanic and Rueckstiess, LEAF: Knowledge Distillation of Text Embedding Models with
    Teacher-Aligned Representations, 2025 (arXiv:2509.12539).

  Examples:
    The lengths of embeddings have no part in it.

    >>> import jax.numpy as jnp
    >>> teacher = jnp.asarray([[2.0, 0.0], [0.0, 1.0]])
    >>> student = jnp.asarray([[1.0, 0.0], [3.0, 0.0]])
    >>> print(embedding_distillation(student, teacher))
    [0. 1.]
  """
  loss = 1.0 - pair_cosine(student, jax.lax.stop_gradient(teacher))
  return loss if measure == "cosine" else 2.0 * loss

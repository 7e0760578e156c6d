"""Contrast with an angular margin that a teacher scales."""

import math

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term

# The root's slope is infinite where the cosine is -1.
_SMALLEST_SQUARED_SINE = 1e-6


@term(margin=Range(0, math.pi / 2), similarity_threshold=Range(-1, 1))
def adap_acse(
  anchors: jax.Array,
  all_positives: jax.Array,
  teacher: jax.Array,
  all_teacher: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  margin: float = 0.15,
  similarity_threshold: float = 0.9,
) -> jax.Array:
  """AdapACSE: negatives count as nearer by a margin, larger for less alike ones.

  With theta_ij the angle of anchor i and positive j, and a_ij the teacher's cosine of
  the two sentences, the logit of a negative is cos(theta_ij - m (1 - a_ij)) over the
  temperature where theta_ij > m, and cos(theta_ij) elsewhere. Negatives with a_ij
  above the threshold are probably false ones, and are left out.

  This is the paper's objective with a teacher of sentences in place of its teacher
  of images and captions. Our choice: a negative a_ij counts as 0, so that the margin
  never exceeds m.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    teacher: the teacher's embeddings of the anchors' sentences, [b, E].
    all_teacher: those of the whole batch, [B, E].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines.
    margin: m, in radians.
    similarity_threshold: a teacher's cosine; 1 keeps every negative, as the
      published run does. The paper's are 0.85 to 0.9.

  Returns:
    The loss of each anchor, [b], in nats. The teacher gets no gradient.

  References:
    Nguyen et al., KDMCSE: Knowledge Distillation Multimodal Sentence Embeddings
    with Adaptive Angular margin Contrastive Learning, 2024 (arXiv:2403.17486).
  """
  similarity = cosine_similarity(anchors, all_positives)
  labels, is_own = own_columns(similarity, labels)
  alike = jax.lax.stop_gradient(cosine_similarity(teacher, all_teacher))
  shift = margin * (1 - jnp.clip(alike, 0.0, 1.0))
  sine = jnp.sqrt(jnp.maximum(1 - similarity**2, _SMALLEST_SQUARED_SINE))
  shifted = similarity * jnp.cos(shift) + sine * jnp.sin(shift)
  is_far = ~is_own & (similarity < math.cos(margin))
  logits = jnp.where(is_far, shifted, similarity) / temperature
  logits = jnp.where(~is_own & (alike > similarity_threshold), MASKED, logits)
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

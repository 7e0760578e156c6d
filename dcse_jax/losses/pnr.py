"""Contrast that does not contradict the model of the round before."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import normalize
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import term


def _mean_teacher(all_teacher, width):
  """Returns [B, D] whose products with unit rows are the teachers' mean cosines."""
  if all_teacher.shape[1] % width:
    raise ValueError(f"all_teacher must be of teachers {width} wide each")
  each = all_teacher.reshape(len(all_teacher), -1, width).astype(jnp.float32)
  # The length of each embedding is the root of its teacher's weight.
  return jnp.sum(each * jnp.linalg.norm(each, axis=-1, keepdims=True), axis=1)


@term()
def pnr(
  anchors: jax.Array,
  predictions: jax.Array,
  all_positives: jax.Array,
  all_teacher: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
) -> jax.Array:
  """PNR: the embeddings of the round before are negatives, and are predicted.

  With z the anchors, v the positives, f the previous round's embeddings, g(z) their
  predictions by a small trained network and s the cosines over the temperature, it is
  the sum of two cross entropies: of s(z_i, v_i) among all s(z_i, v_j) and the
  pseudo-negatives s(z_i, f_j), and of s(g(z_i), f_i) among all s(g(z_i), f_j) and the
  pseudo-negatives s(g(z_i), v_j), where j is not i for both kinds of pseudo-negatives.

  It follows the paper's form for MoCo, with the batch in place of queues. It differs
  from the published code: v come from the model itself, not from a momentum encoder;
  anchors are one view only, where the code adds the loss with the views exchanged; the
  predictor is as wide as the model and has no batch normalisation, where the code's has
  it, and 2,048 hidden units. f has no dropout, and teachers no projection. Our choice
  for several teachers: the mean of the cosines with each, weighted by their weights.

  Args:
    anchors: embeddings of the first view, [b, D].
    predictions: what the predictor makes of the anchors, [b, D].
    all_positives: embeddings of the second view, [B, D].
    all_teacher: the teachers' of every sentence, [B, E], E = D times their number.
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines. The paper's 0.2 is for images.

  Returns:
    The loss of each anchor, [b], in nats. The teacher gets no gradient.

  Raises:
    ValueError: a teacher is not as wide as the student.

  References:
    Cha, Cho and Moon, Regularizing with Pseudo-Negatives for Continual
    Self-Supervised Learning, 2023 (arXiv:2306.05101).
  """
  previous = jax.lax.stop_gradient(_mean_teacher(all_teacher, anchors.shape[1]))

  def cosine_with_previous(embeddings):
    product = jnp.matmul(
      normalize(embeddings), previous.T, precision=jax.lax.Precision.HIGHEST
    )
    return product / temperature

  def cross_entropy(logits, pseudo):
    columns, is_own = own_columns(logits, labels)
    pseudo = jnp.where(is_own, MASKED, pseudo)
    every = jnp.concatenate([logits, pseudo], axis=1)
    return optax.losses.softmax_cross_entropy_with_integer_labels(every, columns)

  to_positives = lambda x: cosine_similarity(x, all_positives) / temperature
  contrast = cross_entropy(to_positives(anchors), cosine_with_previous(anchors))
  prediction = cross_entropy(
    cosine_with_previous(predictions), to_positives(predictions)
  )
  return contrast + prediction

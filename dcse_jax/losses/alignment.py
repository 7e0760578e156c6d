"""Alignment and uniformity, as a loss."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import normalize
from dcse_jax.losses.terms import term


@term()
def alignment_uniformity(all_anchors: jax.Array, all_positives: jax.Array) -> jax.Array:
  """Alignment of pairs plus uniformity of sentences, on the unit sphere.

  On unit embeddings it is |a_i - p_i|^2 plus the mean over both views x of
  log E exp(-2 |x_i - x_j|^2), E the mean over every two sentences of the batch.

  Args:
    all_anchors: embeddings of the first view, [B, D].
    all_positives: embeddings of the second view, [B, D].

  Returns:
    The loss of each anchor, [B]: its own alignment and the batch's uniformity.

  References:
    Wang and Isola, Understanding Contrastive Representation Learning through
    Alignment and Uniformity on the Hypersphere, 2020 (arXiv:2005.10242); each has
    weight 1, t = 2, and the uniformity of both views, as in their training.
  """
  anchors, positives = normalize(all_anchors), normalize(all_positives)
  alignment = jnp.sum((anchors - positives) ** 2, axis=1)
  return alignment + 0.5 * (_uniformity(all_anchors) + _uniformity(all_positives))


def _uniformity(embeddings: jax.Array) -> jax.Array:
  # For unit vectors |a - b|^2 is 2 - 2 cos.
  distance = 2.0 - 2.0 * cosine_similarity(embeddings, embeddings)
  size = len(embeddings)
  others = jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, -2.0 * distance)
  return jax.nn.logsumexp(others) - jnp.log(size * (size - 1.0))

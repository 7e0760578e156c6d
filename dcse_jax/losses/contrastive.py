"""Contrastive losses with in-batch negatives."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import cosine_similarity


def _own_row_is_the_label(logits: jax.Array) -> jax.Array:
  """Cross entropy of row i of [B, C] logits, C >= B, against label i; [B]."""
  labels = jnp.arange(logits.shape[0])
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def info_nce(
  anchors: jax.Array,
  positives: jax.Array,
  *,
  temperature: float,
  negatives: jax.Array | None = None,
  negative_weight: float = 0.0,
) -> jax.Array:
  """InfoNCE with in-batch negatives and, if given, one hard negative an anchor.

  Args:
    anchors: embeddings of the first view, [B, D].
    positives: embeddings of the second view, [B, D]; row i pairs with anchor i.
    temperature: divides the cosines; smaller is sharper.
    negatives: embeddings of hard negatives, [B, D]; row i was mined for anchor
      i, and every row is a negative of every anchor.
    negative_weight: added to the logit of an anchor with its own hard negative;
      above 0 it counts e^negative_weight times.

  Returns:
    The loss of each anchor, [B], in nats.

  References:
    Gao et al., SimCSE, 2021, Eq. 1 and Sec. 4 (arXiv:2104.08821).
  """
  logits = cosine_similarity(anchors, positives) / temperature
  if negatives is not None:
    hard = cosine_similarity(anchors, negatives) / temperature
    hard = hard + negative_weight * jnp.eye(hard.shape[0])
    logits = jnp.concatenate([logits, hard], axis=1)
  return _own_row_is_the_label(logits)


def focal_info_nce(
  anchors: jax.Array,
  positives: jax.Array,
  *,
  temperature: float,
  margin: float,
) -> jax.Array:
  """Focal-InfoNCE: easy negatives weigh less, and so do hard positives.

  With s_ij the cosine of anchor i and positive j, the positive's logit is
  s_ii^2 / temperature and a negative's is s_ij (s_ij + margin) / temperature.
  The latter is smallest at s_ij = -margin / 2: a negative that is already
  further away than that is pulled back towards it.

  Args:
    anchors: embeddings of the first view, [B, D].
    positives: embeddings of the second view, [B, D]; row i pairs with anchor i.
    temperature: divides the re-weighted cosines.
    margin: the paper's m; a negative with s_ij + margin > 1 counts more than
      under InfoNCE, any other less.

  Returns:
    The loss of each anchor, [B], in nats. Neither symmetrised nor with a
    stopped gradient, as published.

  References:
    Hou and Li, Improving Contrastive Learning of Sentence Embeddings with
    Focal-InfoNCE, 2023 (arXiv:2310.06918).
  """
  similarity = cosine_similarity(anchors, positives)
  own = jnp.eye(similarity.shape[0], dtype=bool)
  logits = similarity * (similarity + jnp.where(own, 0.0, margin)) / temperature
  return _own_row_is_the_label(logits)

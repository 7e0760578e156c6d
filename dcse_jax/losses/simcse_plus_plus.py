"""SimCSE++: negatives without dropout, and contrast of dimensions."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.similarity import pair_cosine
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term

# What batch normalisation adds to a variance.
_SMALLEST_VARIANCE = 1e-5


@term(positive_ratio=Range(0, 1, above=True))
def undropped_negatives(
  anchors: jax.Array,
  positives: jax.Array,
  undropped: jax.Array,
  all_undropped: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  positive_ratio: float = 1.0,
) -> jax.Array:
  """InfoNCE whose positive pair has dropout and whose negative pairs have none.

  It is -log(e^p_i / (e^p_i + sum over j != i of e^s(x_i, x_j))), p_i = r s(z_i, v_i),
  z and v the two views, x the first without dropout, s the cosines over the
  temperature and r the positive ratio.

  Args:
    anchors: embeddings of the first view, [b, D].
    positives: those of the second view, [b, D].
    undropped: those of the first view without dropout, [b, D].
    all_undropped: those of the whole batch, [B, D].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines.
    positive_ratio: r; below 1 no pair can be so alike that it has no gradient. The
      paper has no such factor; the published run takes 0.9.

  Returns:
    The loss of each anchor, [b], in nats.

  References:
    Xu et al., SimCSE++: Improving Contrastive Learning for Sentence Embeddings from
    Two Perspectives, 2023 (arXiv:2305.13192).
  """
  negatives = cosine_similarity(undropped, all_undropped)
  labels, is_own = own_columns(negatives, labels)
  positive = positive_ratio * pair_cosine(anchors, positives)[:, None]
  logits = jnp.where(is_own, positive, negatives) / temperature
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


@term()
def dimension_contrast(
  all_anchors: jax.Array, all_positives: jax.Array, *, temperature: float = 5.0
) -> jax.Array:
  """Dimension-wise contrast: a dimension agrees with itself, and with no other.

  With a and b the two views, each dimension normalised to mean 0 and variance 1 over
  the batch, and c_de = (1 / B) sum over i of a_id b_ie / temperature, it is the mean
  over d of -log(e^c_dd / sum over e of e^c_de).

  Args:
    all_anchors: embeddings of the first view of the whole batch, [B, D].
    all_positives: those of the second view, [B, D].
    temperature: divides the correlations.

  Returns:
    The same loss for each row, [B], in nats: it belongs to the batch, not to its rows.

  References:
    Xu et al., SimCSE++: Improving Contrastive Learning for Sentence Embeddings from
    Two Perspectives, 2023 (arXiv:2305.13192).
  """

  def standardise(x):
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=0, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=0, keepdims=True) + _SMALLEST_VARIANCE)

  batch, dimensions = all_anchors.shape
  correlation = jnp.matmul(
    standardise(all_anchors).T,
    standardise(all_positives),
    precision=jax.lax.Precision.HIGHEST,
  )
  loss = optax.losses.softmax_cross_entropy_with_integer_labels(
    correlation / (batch * temperature), jnp.arange(dimensions)
  )
  return jnp.full(batch, loss.mean())

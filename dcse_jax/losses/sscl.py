"""Intermediate layers' embeddings as negatives."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(layers=Range(1, whole=True, several=True))
def sscl(
  anchors: jax.Array,
  all_positives: jax.Array,
  all_layers: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  layers: tuple[int, ...] = (11,),
) -> jax.Array:
  """SSCL: InfoNCE, half of it with intermediate layers' embeddings as negatives too.

  With cosines over the temperature as logits, it is half the cross entropy of each
  anchor's positive among all positives, and half of that among all positives and the
  embeddings of these layers of every sentence of the batch. The anchor's own layers
  are among these, as the formula has it: the last layer is to differ from them.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    all_layers: embeddings of the first view from each of `layers`, [B, L, D]. (The
      published code takes the second view's as well.)
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines.
    layers: which layers a step embeds, the first being 1. The paper's are the last
      but one, or that and the one before; the published run takes layer 2.

  Returns:
    The loss of each anchor, [b], in nats.

  References:
    Chen et al., Alleviating Over-smoothing for Unsupervised Sentence
    Representation, 2023 (arXiv:2305.06154).
  """
  logits = cosine_similarity(anchors, all_positives) / temperature
  labels, _ = own_columns(logits, labels)
  negatives = all_layers.reshape(-1, all_layers.shape[-1])
  extra = cosine_similarity(anchors, negatives) / temperature
  cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
  with_layers = cross_entropy(jnp.concatenate([logits, extra], axis=1), labels)
  return 0.5 * (with_layers + cross_entropy(logits, labels))

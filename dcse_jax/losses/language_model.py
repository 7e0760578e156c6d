"""The masked-language-model loss."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(masked_views=Range(1, 2, whole=True))
def masked_language_model(
  masked_logits: jax.Array,
  masked_labels: jax.Array,
  is_masked: jax.Array,
  *,
  masked_views: int = 1,
) -> jax.Array:
  """Cross entropy of the true token at each masked position.

  Args:
    masked_logits: scores over the vocabulary, [b, K, V].
    masked_labels: true token ids, [b, K]; read only where `is_masked` is true.
    is_masked: which positions count, [b, K], boolean or 0/1.
    masked_views: how many of a sentence's views a step masks, each at random: 1 is
      enough for pretraining; SimCSE's code masks both, side by side in K.

  Returns:
    The mean over each sentence's masked positions, [b], in nats; 0 for a
    sentence with none. (BERT's own code takes one mean over all positions of
    the batch; here every sentence weighs the same.)

  References:
    Devlin et al., BERT, 2019, Sec. 3.1 (arXiv:1810.04805).
  """
  del masked_views  # The objective, which masks the tokens, reads it.
  mask = is_masked.astype(jnp.float32)
  labels = jnp.where(mask > 0, masked_labels, 0)
  loss = optax.losses.softmax_cross_entropy_with_integer_labels(
    masked_logits.astype(jnp.float32), labels
  )
  return jnp.sum(loss * mask, axis=-1) / jnp.maximum(mask.sum(axis=-1), 1.0)

"""The masked-language-model loss."""

import jax
import jax.numpy as jnp
import optax


def masked_language_model(
  logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> jax.Array:
  """Cross entropy of the true token at each masked position.

  Args:
    logits: scores over the vocabulary, [B, S, V].
    labels: true token ids, [B, S]; read only where `mask` is true.
    mask: which positions count, [B, S], boolean or 0/1.

  Returns:
    The mean over each sentence's masked positions, [B], in nats; 0 for a
    sentence with none. (BERT's own code takes one mean over all positions of
    the batch; here every sentence weighs the same.)

  References:
    Devlin et al., BERT, 2019, Sec. 3.1 (arXiv:1810.04805).
  """
  mask = mask.astype(jnp.float32)
  labels = jnp.where(mask > 0, labels, 0)
  loss = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), labels
  )
  return jnp.sum(loss * mask, axis=-1) / jnp.maximum(mask.sum(axis=-1), 1.0)

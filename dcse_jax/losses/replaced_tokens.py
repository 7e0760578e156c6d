"""Detection of replaced tokens from a sentence's embedding: DiffCSE."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(mask_probability=Range(0, 1, above=True, below=True))
def replaced_token_detection(
  replaced_logits: jax.Array,
  is_replaced: jax.Array,
  is_token: jax.Array,
  *,
  mask_probability: float = 0.3,
) -> jax.Array:
  """Which tokens of an edited sentence differ, told by the original's embedding.

  Some words are masked and filled in by a frozen language model, the one that
  training starts from; a second encoder, trained along and then dropped, reads the
  edited sentence with the original's embedding, projected, in the place of [CLS], and
  says of each token whether it was replaced.

  Padding is left out, which the published code counts. Published is a smaller
  generator than the model, and a weight of 0.005.

  Args:
    replaced_logits: of each token's being replaced, [b, S].
    is_replaced: whether it was, [b, S] boolean.
    is_token: true for tokens, false for padding, [b, S].
    mask_probability: the share of words that the generator fills in.

  Returns:
    The mean over each sentence's tokens of the binary cross entropy, [b], in nats.

  References:
    Chuang et al., DiffCSE, 2022, Eq. 3 (arXiv:2204.10298).
  """
  del mask_probability  # Of those who mask.
  loss = optax.losses.sigmoid_binary_cross_entropy(
    replaced_logits.astype(jnp.float32), is_replaced
  )
  mask = is_token.astype(jnp.float32)
  return jnp.sum(loss * mask, axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)

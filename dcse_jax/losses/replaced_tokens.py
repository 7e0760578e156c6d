"""Detection of replaced tokens from a sentence's embedding: DiffCSE."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(
  mask_probability=Range(0, 1, above=True, below=True),
  edits=Choice(("masked", "published")),
)
def replaced_token_detection(
  replaced_logits: jax.Array,
  is_replaced: jax.Array,
  is_token: jax.Array,
  *,
  mask_probability: float = 0.3,
  edits: str = "masked",
) -> jax.Array:
  """DiffCSE: detects an edited sentence's replaced tokens by the original's embedding.

  Some words are masked, and a frozen language model fills them in; a second encoder,
  which is trained along and then dropped, reads the edited sentence with the original's
  projected embedding in place of [CLS], and says for each token whether it was
  replaced.

  There are two ways to edit. "masked" is the cheaper one: only the masked words of the
  first view are filled in, without dropout. "published" does what the authors' code
  does: in both views 80 % of the chosen words are masked, 10 % replaced and 10 % left,
  the language model fills in every token but the first under dropout, and padding
  counts as not replaced. Either way the language model is the one that training starts
  from; the paper has a smaller one than the model, and a weight of 0.005.

  Args:
    replaced_logits: the logit that each token was replaced, [b, S]; those of both
      views side by side where both are edited.
    is_replaced: whether it was, [b, S] boolean.
    is_token: which tokens count, [b, S] boolean.
    mask_probability: the share of words that are chosen.
    edits: "masked" or "published".

  Returns:
    The mean over each sentence's tokens of the binary cross entropy, [b], in nats.

  References:
    Chuang et al., DiffCSE, 2022, Eq. 3 (arXiv:2204.10298).
  """
  del mask_probability, edits  # The objective, which edits sentences, reads them.
  loss = optax.losses.sigmoid_binary_cross_entropy(
    replaced_logits.astype(jnp.float32), is_replaced
  )
  mask = is_token.astype(jnp.float32)
  return jnp.sum(loss * mask, axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)

"""Contrast with hard positives made by mixup, and focal weights."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import normalize
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.similarity import pair_cosine
from dcse_jax.losses.similarity import row_keys
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(alpha=Range(1e-3, 1e3))
def core_tuning(
  anchors: jax.Array,
  all_positives: jax.Array,
  rng: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  alpha: float = 1.0,
) -> jax.Array:
  """Core-tuning's contrast: mixup makes hard positives, and hard pairs weigh more.

  An anchor has two positives: its own v_i, and the mixture h_i = l v_i + (1 - l) v_k
  with the hardest negative; k is the most similar of the others, and l is drawn from
  Beta(alpha, alpha). With p the softmax of a positive's cosine among all v_j and
  h_i, the loss is the mean of -(1 - p) log p over the two.

  The paper's positives are those of a class, and it mixes the hardest of them; here
  there is only the second view. Our choice: embeddings are mixed at unit length, and a
  mixture is in the denominator of its own anchor only.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, v, [B, D].
    rng: a key; every row draws its own l from it, by its number.
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines. The paper's 0.07 is for images.
    alpha: both parameters of the Beta distribution; 1 draws l uniformly.

  Returns:
    The loss of each anchor, [b], in nats.

  References:
    Zhang et al., Unleashing the Power of Contrastive Self-Supervised Visual Models
    via Contrast-Regularized Fine-Tuning, 2021 (arXiv:2102.06605).
  """
  similarity = cosine_similarity(anchors, all_positives)
  labels, is_own = own_columns(similarity, labels)
  hardest = jnp.argmax(jnp.where(is_own, MASKED, similarity), axis=1)
  share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(
    row_keys(rng, labels)
  )
  unit = normalize(all_positives)
  mixed = share[:, None] * unit[labels] + (1 - share[:, None]) * unit[hardest]
  to_mixed = pair_cosine(anchors, mixed)
  logits = jnp.concatenate([similarity, to_mixed[:, None]], axis=1) / temperature
  log_all = jax.nn.log_softmax(logits)
  of_own = jnp.take_along_axis(log_all, labels[:, None], axis=1)[:, 0]
  focal = lambda log_p: -(1 - jnp.exp(log_p)) * log_p
  return 0.5 * (focal(of_own) + focal(log_all[:, -1]))

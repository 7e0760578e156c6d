"""Losses of pairs with scores: a better pair shall be closer than a worse one."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import pair_cosine
from dcse_jax.losses.terms import term

# It keeps the gradient of an embedding that is all zeros finite.
_SMALLEST = 1e-16


@term()
def cosent(
  all_anchors: jax.Array,
  all_positives: jax.Array,
  all_scores: jax.Array,
  *,
  temperature: float = 0.05,
) -> jax.Array:
  """CoSENT: cosines of pairs are ranked as their scores are.

  It is log(1 + the sum of exp((c_j - c_i) / temperature) over all i and j whose scores
  are s_i > s_j), with the cosines c of the batch's pairs.

  Args:
    all_anchors: embeddings of first sentences, [B, D].
    all_positives: those of second sentences, [B, D].
    all_scores: how alike a pair is, higher is better, on any scale, [B, S]; the first
      counts.
    temperature: divides the cosines.

  Returns:
    The loss of the whole batch for each row, [B], in nats.

  References:
    Huang et al., CoSENT: Consistent Sentence Embedding via Similarity Ranking, IEEE/ACM
    Transactions on Audio, Speech, and Language Processing, 2024.

  Examples:
    A bad pair is as close as a good one: log(1 + e^0).

    >>> import jax.numpy as jnp
    >>> same = jnp.ones((2, 3))
    >>> print(cosent(same, same, jnp.asarray([[1.0], [0.0]])).round(4))
    [0.6931 0.6931]
  """
  return _rank(pair_cosine(all_anchors, all_positives) / temperature, all_scores)


@term()
def angle(
  all_anchors: jax.Array,
  all_positives: jax.Array,
  all_scores: jax.Array,
  *,
  temperature: float = 0.05,
) -> jax.Array:
  """AnglE: angles between complex embeddings are ranked as scores are.

  The first half of an embedding is taken as real parts, the second as imaginary ones. A
  pair's similarity is the size of the sum of all parts of the quotient of its two
  embeddings, each of unit length; the loss is that of `cosent`.

  Args:
    all_anchors: embeddings of first sentences, [B, D], D even.
    all_positives: those of second sentences, [B, D].
    all_scores: how alike a pair is, higher is better, on any scale, [B, S]; the first
      counts.
    temperature: divides the similarities.

  Returns:
    The loss of the whole batch for each row, [B], in nats.

  References:
    Li and Li, AnglE-optimized Text Embeddings, 2023, Eq. 6 to 9 (arXiv:2309.12871).
  """
  a, b = jnp.split(all_anchors.astype(jnp.float32), 2, axis=1)
  c, d = jnp.split(all_positives.astype(jnp.float32), 2, axis=1)
  size = lambda real, imaginary: jnp.sum(real**2 + imaginary**2, axis=1)
  # The quotient (a + bi) / (c + di) is (a + bi)(c - di) over the length of c + di, squared;
  # its own length is that of the two embeddings' lengths.
  parts = jnp.sum((a * c + b * d) + (b * c - a * d), axis=1)
  lengths = jnp.maximum(size(a, b) * size(c, d), _SMALLEST)
  return _rank(jnp.abs(parts) / jnp.sqrt(lengths) / temperature, all_scores)


def _rank(similarity: jax.Array, scores: jax.Array) -> jax.Array:
  """Computes CoSENT's loss of scaled similarities, [B], once for each row."""
  first = scores[:, 0]
  is_worse = first[None, :] < first[:, None]
  gaps = jnp.where(is_worse, similarity[None, :] - similarity[:, None], MASKED)
  loss = jax.nn.logsumexp(jnp.append(gaps.reshape(-1), 0.0))
  return jnp.full(similarity.shape, loss)

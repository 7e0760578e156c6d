"""Spread-out embeddings: sentences that have nothing in common lie apart."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import term


@term()
def spread(
  served: jax.Array, all_served: jax.Array, labels: jax.Array | None = None
) -> jax.Array:
  """Global orthogonal regularisation: cosines of different sentences are near 0.

  It is the mean of the squared cosine with the others of a batch: 1 / D for points that
  are uniform on the sphere. Like EmbeddingGemma's it is only this second moment. The
  paper hinges it at 1 / D and adds the square of the mean cosine, which the second
  moment bounds.

  Args:
    served: the student's embedding as it is served, under dropout, [b, D].
    all_served: those of the whole batch, [B, D].
    labels: which of the B rows is each one's own, [b]; by default the first b.

  Returns:
    The loss of each sentence, [b], in [0, 1].

  References:
    Zhang et al., Learning Spread-out Local Feature Descriptors, 2017
    (arXiv:1708.06320). Schechter Vera et al., EmbeddingGemma, 2025 (arXiv:2509.20354).

  Examples:
    Two of three sentences lie at 45 degrees to the third, and at right angles to each
    other.

    >>> import jax.numpy as jnp
    >>> embeddings = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> print(spread(embeddings, embeddings).round(2))
    [0.25 0.25 0.5 ]
  """
  similarity = cosine_similarity(served, all_served)
  _, is_own = own_columns(similarity, labels)
  square = jnp.where(is_own, 0.0, similarity**2)
  return jnp.sum(square, axis=1) / (similarity.shape[1] - 1)

"""Contrast with hard negatives that are looked up in the corpus: CARDS."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(num_neighbours=Range(1, whole=True), search_pooling=Choice(("model", "mean")))
def retrieved_negatives(
  anchors: jax.Array,
  all_positives: jax.Array,
  sentence_id: jax.Array,
  all_retrieved: jax.Array,
  all_retrieved_id: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  num_neighbours: int = 8,
  search_pooling: str = "model",
) -> jax.Array:
  """InfoNCE with a near neighbour of each anchor as one more negative for all.

  At each step one of a sentence's nearest neighbours in the corpus, in the eyes of the
  model that training starts from, is drawn and encoded; all anchors share these
  negatives, except where one is the anchor's own sentence.

  As in the published code, one of num_neighbours sentences is drawn.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    sentence_id: the number of each anchor's sentence in the corpus, [b]; equal
      sentences have equal numbers.
    all_retrieved: embeddings of what was retrieved, [B, D].
    all_retrieved_id: the numbers of these sentences in the corpus, [B].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines.
    num_neighbours: how many nearest sentences there are to draw from.
    search_pooling: how the search embeds: "model" takes the model's own pooling, and
      "mean" the mean over tokens, as published.

  Returns:
    The loss of each anchor, [b], in nats.

  References:
    Wang et al., Improving Contrastive Learning of Sentence Embeddings with
    Case-Augmented Positives and Retrieved Negatives, 2022 (arXiv:2206.02457).
  """
  del num_neighbours, search_pooling  # The search reads them, in `corpus`.
  logits = cosine_similarity(anchors, all_positives) / temperature
  labels, _ = own_columns(logits, labels)
  more = cosine_similarity(anchors, all_retrieved) / temperature
  is_itself = sentence_id[:, None] == all_retrieved_id[None]
  more = jnp.where(is_itself, -jnp.inf, more)
  logits = jnp.concatenate([logits, more], axis=1)
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

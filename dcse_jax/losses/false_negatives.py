"""Contrast that finds sentences of a batch with the same meaning: IFND."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(
  mode=Choice(("eliminate", "attract")),
  num_clusters=Range(2, whole=True, several=True),
  refresh_every=Range(1, whole=True),
)
def incremental_false_negatives(
  anchors: jax.Array,
  all_positives: jax.Array,
  clusters: jax.Array,
  all_clusters: jax.Array,
  confidence: jax.Array,
  all_confidence: jax.Array,
  progress: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  mode: str = "eliminate",
  num_clusters: tuple[int, ...] = (64, 256, 1024),
  refresh_every: int = 1000,
) -> jax.Array:
  """InfoNCE without the negatives that clustering finds like the anchor.

  A cluster is a sentence's pseudo-label, accepted if it is among the surest
  `progress` of the corpus: none at the start, all at the end. Two sentences with the
  same accepted label at any granularity are false negatives of each other.
  "eliminate" leaves them out of the denominator; "attract" takes each of them as a
  positive too, and the loss is the mean over positives of -log of its share.

  It follows Chen et al., who cluster images by hierarchical k-means. Here each
  granularity is a k-means of its own, on the text as the model embeds it every
  refresh_every steps, and a pair needs only one granularity.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    clusters: each anchor's cluster by granularity, [b, G] integers.
    all_clusters: those of the whole batch, [B, G].
    confidence: the share of the corpus with a less sure cluster, [b, G], in
      [0, 1].
    all_confidence: those of the whole batch, [B, G].
    progress: the share of the training that is done, in [0, 1].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines.
    mode: "eliminate" or "attract".
    num_clusters: how many clusters each granularity has.
    refresh_every: steps between two clusterings.

  Returns:
    The loss of each anchor, [b], in nats.

  References:
    Chen et al., Incremental False Negative Detection for Contrastive Learning, 2021
    (arXiv:2106.03719).
  """
  del num_clusters, refresh_every  # The clustering reads them, in `corpus`.
  logits = cosine_similarity(anchors, all_positives) / temperature
  _, is_own = own_columns(logits, labels)
  is_sure = lambda x: x >= 1.0 - progress
  same = clusters[:, None] == all_clusters[None]
  same &= is_sure(confidence)[:, None] & is_sure(all_confidence)[None]
  like = same.any(axis=-1) & ~is_own
  if mode == "eliminate":
    kept = jnp.where(like, -jnp.inf, logits)
    positive = jnp.sum(jnp.where(is_own, logits, 0.0), axis=1)
    return jax.nn.logsumexp(kept, axis=1) - positive
  positives = like | is_own
  log_share = jax.nn.log_softmax(logits, axis=1)
  total = jnp.sum(jnp.where(positives, log_share, 0.0), axis=1)
  return -total / jnp.sum(positives, axis=1, dtype=total.dtype)

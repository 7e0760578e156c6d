"""Contrast that keeps a margin between two kinds of positives, with a queue."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.similarity import pair_cosine
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(margin=Range(0, 2), queue_size=Range(1, 1 << 20, whole=True))
def fraternal_twins(
  anchors: jax.Array,
  positives: jax.Array,
  all_positives: jax.Array,
  undropped: jax.Array,
  queue: jax.Array,
  is_queued: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  margin: float = 0.05,
  queue_size: int = 128,
) -> jax.Array:
  """IFTCL: InfoNCE with a queue, and a margin between identical and fraternal twins.

  An anchor's identical twin is the same sentence without dropout; its fraternal twin
  is its positive, which another augmentation may have made (the second column of the
  text, if there is one). InfoNCE takes the positives of past batches as negatives,
  too. The hinge max(0, margin - (cosine with the identical twin - cosine with the
  fraternal one)), over the temperature, is added: contrast alone would make both 1,
  though the fraternal twin means something a little different.

  It follows the paper's Twins Loss and hippocampus queue. The formula was not at hand.
  Our choice: this hinge, its margin and the queue's size.

  Args:
    anchors: embeddings of the first view, [b, D].
    positives: those of the second view, [b, D].
    all_positives: those of the second view of the whole batch, [B, D].
    undropped: those of the first view without dropout, [b, D].
    queue: those of the second view in past batches, [Q, D]; no gradient.
    is_queued: which of these are filled yet, [Q] boolean.
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines.
    margin: how much nearer the identical twin shall be, a difference of cosines.
    queue_size: Q, how many positives of past batches there are.

  Returns:
    The loss of each anchor, [b], in nats.

  References:
    Xiao, Li and Chen, Identical and Fraternal Twins: Fine-Grained Semantic
    Contrastive Learning of Sentence Representations, 2023 (arXiv:2307.10932).
  """
  logits = cosine_similarity(anchors, all_positives) / temperature
  labels, _ = own_columns(logits, labels)
  past = cosine_similarity(anchors, jax.lax.stop_gradient(queue)) / temperature
  past = jnp.where(is_queued, past, MASKED)
  contrast = optax.losses.softmax_cross_entropy_with_integer_labels(
    jnp.concatenate([logits, past], axis=1), labels
  )
  kept = pair_cosine(anchors, undropped) - pair_cosine(anchors, positives)
  return contrast + jax.nn.relu(margin - kept) / temperature

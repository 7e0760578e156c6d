"""GISTEmbed: a guide says which sentences of a batch are no negatives."""

import jax
import jax.numpy as jnp
import optax

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import flat_negatives
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term

_MARGINS = Choice(("absolute", "relative"))


@term(margin=Range(0, 2), margin_strategy=_MARGINS)
def gist(
  anchors: jax.Array,
  positives: jax.Array,
  all_anchors: jax.Array,
  all_positives: jax.Array,
  teacher: jax.Array,
  all_teacher: jax.Array,
  all_negatives: jax.Array | None = None,
  teacher_positives: jax.Array | None = None,
  all_teacher_positives: jax.Array | None = None,
  all_teacher_negatives: jax.Array | None = None,
  labels: jax.Array | None = None,
  all_has_negative: jax.Array | None = None,
  *,
  temperature: float = 0.01,
  margin: float = 0.0,
  margin_strategy: str = "absolute",
) -> jax.Array:
  """InfoNCE without the negatives that a guide finds too close, as GISTEmbed has it.

  The negatives of an anchor are the other positives and anchors, those of its positive
  the other positives, and hard negatives if there are any. One is left out where the
  guide, a teacher or several, has its cosine above a threshold: that of anchor and
  positive, less the margin.

  Args:
    anchors: embeddings of the first view, [b, D].
    positives: embeddings of the second view, [b, D].
    all_anchors: the same as anchors, for the whole batch, [B, D].
    all_positives: the same as positives, for the whole batch, [B, D].
    teacher: the guide's embeddings of the anchors, [b, E].
    all_teacher: the same, for the whole batch, [B, E].
    all_negatives: embeddings of hard negatives, [B, D] or [B, K, D].
    teacher_positives: the guide's embeddings of the positives, [b, E]; None where a
      positive is its anchor's own sentence.
    all_teacher_positives: the same, for the whole batch, [B, E].
    all_teacher_negatives: the guide's embeddings of the hard negatives, [B, E] or
      [B, K, E].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    all_has_negative: which hard negatives there are, [B, K]; None if all.
    temperature: divides the cosines.
    margin: how far below the positive's cosine the threshold is; with "relative", as
      a share of that cosine's size.
    margin_strategy: "absolute" or "relative".

  Returns:
    The loss of each anchor, [b], in nats. An anchor or positive is never its own
    negative; elsewhere it is where the guide has it at the threshold exactly.

  References:
    Solatorio, GISTEmbed, 2024 (arXiv:2402.16829).
  """
  if teacher_positives is None:
    teacher_positives, all_teacher_positives = teacher, all_teacher
  guided = cosine_similarity(teacher, all_teacher_positives)
  labels, is_own = own_columns(guided, labels)
  nearest = jnp.sum(jnp.where(is_own, guided, 0.0), axis=1, keepdims=True)
  size = jnp.abs(nearest) if margin_strategy == "relative" else jnp.ones_like(nearest)
  is_near = lambda cosines: cosines > nearest - margin * size
  by_anchors = cosine_similarity(teacher, all_teacher)
  by_positives = cosine_similarity(teacher_positives, all_teacher_positives)
  # Pairs of cosines and of who is left out.
  compared = [
    (cosine_similarity(anchors, all_positives), is_near(guided) & ~is_own),
    (cosine_similarity(anchors, all_anchors), is_near(by_anchors) | is_own),
    (cosine_similarity(positives, all_positives), is_near(by_positives) | is_own),
  ]
  if all_negatives is not None:
    negatives, is_there = flat_negatives(all_negatives, all_has_negative)
    guides, _ = flat_negatives(all_teacher_negatives)
    left_out = is_near(cosine_similarity(teacher, guides))
    if is_there is not None:
      left_out |= ~is_there
    compared.append((cosine_similarity(anchors, negatives), left_out))
  logits = jnp.concatenate(
    [jnp.where(left_out, MASKED, x / temperature) for x, left_out in compared], axis=1
  )
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

"""Contrast that weighs pairs by their inverse propensity."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term

# The least weight of a pair: its logarithm stays finite.
_LEAST_WEIGHT = 1e-6


def _overlap(ids, mask, all_ids, all_mask):
  """Computes the Jaccard index of the token sets of b and B sentences, [b, B]."""
  mask, all_mask = mask.astype(bool), all_mask.astype(bool)

  def first_of_each(ids, mask):
    same = (ids[:, :, None] == ids[:, None, :]) & mask[:, None, :]
    earlier = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool), k=-1)
    return mask & ~jnp.any(same & earlier[None], axis=2)

  distinct, all_distinct = first_of_each(ids, mask), first_of_each(all_ids, all_mask)
  same = ids[:, None, :, None] == all_ids[None, :, None, :]
  shared = jnp.any(same & all_mask[None, :, None, :], axis=3) & distinct[:, None]
  both = shared.sum(axis=2)
  either = distinct.sum(axis=1)[:, None] + all_distinct.sum(axis=1)[None] - both
  return both / jnp.maximum(either, 1)


@term(least_propensity=Range(1e-3, 1))
def debcse(
  anchors: jax.Array,
  all_anchors: jax.Array,
  all_positives: jax.Array,
  input_ids: jax.Array,
  all_input_ids: jax.Array,
  attention_mask: jax.Array,
  all_attention_mask: jax.Array,
  labels: jax.Array | None = None,
  teacher: jax.Array | None = None,
  all_teacher: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  least_propensity: float = 0.1,
) -> jax.Array:
  """DebCSE: weighs pairs by the inverse of how likely their tokens made them a pair.

  With u_ij the surface similarity of two sentences, the Jaccard index of their sets
  of tokens, and m_ij their semantic similarity, a cosine in [0, 1], a positive weighs
  m_ii / u_ii and a negative (1 - m_ij) / (1 - u_ij): a positive that shares no words,
  or a negative that shares many, is rare and counts the more. With s the cosines over
  the temperature and w the negatives' weights over their mean in the row, the loss is
  -(m_ii / u_ii) log(e^s_ii / (e^s_ii + sum over j != i of w_ij e^s_ij)).

  It follows the paper, which samples pairs with such weights from candidates that it
  retrieves. The paper's propensities were not at hand. Our choice: the weights above,
  on the pairs of the batch; special tokens count as words that all share. u_ii is 1,
  since a step offers only the tokens of the first column.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_anchors: those of the first view of the whole batch, [B, D].
    all_positives: those of the second view of the whole batch, [B, D].
    input_ids: tokens of the anchors' sentences, [b, S].
    all_input_ids: those of the whole batch, [B, S].
    attention_mask: which of the anchors' tokens are there, [b, S], boolean or 0/1.
    all_attention_mask: those of the whole batch, [B, S].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    teacher: the teacher's of the anchors' sentences, [b, E], if any: m_ij is then
      their cosine. Without one, it is that of the two anchors, and m_ii that of an
      anchor and its positive.
    all_teacher: those of the whole batch, [B, E].
    temperature: divides the cosines.
    least_propensity: u_ii and 1 - u_ij count as this where they are smaller.

  Returns:
    The loss of each anchor, [b], in nats. Weights get no gradient.

  References:
    Miao, Du and Zhang, DebCSE: Rethinking Unsupervised Contrastive Sentence
    Embedding Learning in the Debiasing Perspective, 2023 (arXiv:2309.07396).
  """
  similarity = cosine_similarity(anchors, all_positives)
  labels, is_own = own_columns(similarity, labels)
  if teacher is None:
    semantic = jnp.where(is_own, similarity, cosine_similarity(anchors, all_anchors))
  else:
    semantic = cosine_similarity(teacher, all_teacher)
  semantic = jax.lax.stop_gradient(jnp.clip(semantic, 0.0, 1.0))
  surface = _overlap(input_ids, attention_mask, all_input_ids, all_attention_mask)
  positive = semantic / jnp.maximum(surface, least_propensity)
  negative = (1 - semantic) / jnp.maximum(1 - surface, least_propensity)
  negative = jnp.where(is_own, 0.0, negative)
  mean = negative.sum(axis=1, keepdims=True) / (negative.shape[1] - 1)
  negative = jnp.maximum(negative / jnp.maximum(mean, _LEAST_WEIGHT), _LEAST_WEIGHT)
  logits = similarity / temperature + jnp.where(is_own, 0.0, jnp.log(negative))
  log_all = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.where(is_own, positive * log_all, 0.0), axis=1)

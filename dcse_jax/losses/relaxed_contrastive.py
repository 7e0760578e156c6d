"""A penalty on pairs with the same meaning whose embeddings are too alike."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


@term(
  similarity_threshold=Range(-1, 1),
  teacher_threshold=Range(-1, 1),
  pairs=Choice(("all", "least_alike")),
)
def relaxed_contrastive(
  anchors: jax.Array,
  all_positives: jax.Array,
  labels: jax.Array | None = None,
  teacher: jax.Array | None = None,
  all_teacher: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  similarity_threshold: float = 0.7,
  teacher_threshold: float = 0.9,
  pairs: str = "all",
) -> jax.Array:
  """FedRCL's divergence penalty: pairs with one meaning must not collapse into one.

  It is log(1 + sum over j of e^((s_ij - 1) / temperature)), with s the cosines, over
  the pairs with one meaning and s_ij above the threshold. It is only a penalty, and
  wants a contrastive term beside it, as in "info_nce + relaxed_contrastive".

  The paper's pairs share a class. Here there are no classes: an anchor and its own
  positive are such a pair, and so are sentences that a teacher finds alike.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    teacher: the teacher's of the anchors' sentences, [b, E], if there are teachers.
    all_teacher: those of the whole batch, [B, E].
    temperature: divides the cosines.
    similarity_threshold: the paper's lambda; pairs below it get no penalty.
    teacher_threshold: two sentences whose teacher's cosine is above it have one
      meaning; our choice, not the paper's.
    pairs: "all" sums over all of them, as the paper's formula does; "least_alike"
      takes only the anchor's pair with the lowest cosine, as the published code does.

  Returns:
    The penalty of each anchor, [b], in nats; 0 where no pair is above the threshold.
    The teacher gets no gradient.

  References:
    Seo et al., Relaxed Contrastive Learning for Federated Learning, 2024
    (arXiv:2401.04928).
  """
  similarity = cosine_similarity(anchors, all_positives)
  _, is_pair = own_columns(similarity, labels)
  if teacher is not None:
    alike = jax.lax.stop_gradient(cosine_similarity(teacher, all_teacher))
    is_pair |= alike > teacher_threshold
  if pairs == "least_alike":
    lowest = jnp.where(is_pair, similarity, jnp.inf).min(axis=1, keepdims=True)
    is_pair &= similarity == lowest
  is_pair &= similarity > similarity_threshold
  logits = jnp.where(is_pair, (similarity - 1) / temperature, MASKED)
  with_one = jnp.pad(logits, ((0, 0), (1, 0)))
  return jax.nn.logsumexp(with_one, axis=1)

"""Contrastive losses with in-batch negatives."""

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

# Whether a temperature is the setting's, or starts there and is trained along.
_MODES = Choice(("fixed", "learnt"))


@term(temperature_mode=_MODES, negative_weight=Range())
def info_nce(
  anchors: jax.Array,
  all_positives: jax.Array,
  all_negatives: jax.Array | None = None,
  labels: jax.Array | None = None,
  all_has_negative: jax.Array | None = None,
  learnt_temperature: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  temperature_mode: str = "fixed",
  negative_weight: float = 0.0,
) -> jax.Array:
  """InfoNCE with in-batch negatives and, if given, hard negatives for each anchor.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    all_negatives: embeddings of hard negatives, [B, D] or [B, K, D]; row i was mined
      for anchor i, and every one is a negative of every anchor.
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    all_has_negative: which hard negatives there are, [B, K]; None if all.
    learnt_temperature: takes the place of `temperature` if that is learnt, a scalar.
    temperature: divides the cosines; smaller is sharper.
    temperature_mode: "fixed", or "learnt", as CLIP does.
    negative_weight: added to the logit of an anchor with its own hard negatives;
      above 0 they count e^negative_weight times.

  Returns:
    The loss of each anchor, [b], in nats.

  References:
    Gao et al., SimCSE, 2021, Eq. 1 and Sec. 4 (arXiv:2104.08821); Radford et al., CLIP,
    2021, Sec. 2.5, for the learnt temperature (arXiv:2103.00020).

  Examples:
    Two sentences that have nothing in common, each its own positive: the chance of the
    right one is e^2 / (e^2 + 1).

    >>> import jax.numpy as jnp
    >>> eye = jnp.eye(2)
    >>> print(info_nce(eye, eye, temperature=0.5).round(4))
    [0.1269 0.1269]
  """
  if temperature_mode == "learnt":
    temperature = learnt_temperature
  logits = cosine_similarity(anchors, all_positives) / temperature
  labels, is_own = own_columns(logits, labels)
  if all_negatives is not None:
    negatives, is_there = flat_negatives(all_negatives, all_has_negative)
    hard = cosine_similarity(anchors, negatives) / temperature
    is_own = jnp.repeat(is_own, len(negatives) // len(all_negatives), axis=1)
    hard = hard + jnp.where(is_own, negative_weight, 0.0)
    if is_there is not None:
      hard = jnp.where(is_there, hard, MASKED)
    logits = jnp.concatenate([logits, hard], axis=1)
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


@term(temperature_mode=_MODES)
def symmetric_info_nce(
  anchors: jax.Array,
  positives: jax.Array,
  all_anchors: jax.Array,
  all_positives: jax.Array,
  all_negatives: jax.Array | None = None,
  labels: jax.Array | None = None,
  all_has_negative: jax.Array | None = None,
  learnt_temperature: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  temperature_mode: str = "fixed",
) -> jax.Array:
  """InfoNCE in both directions: positives find their anchors, too.

  Args:
    anchors: embeddings of the first view, [b, D].
    positives: embeddings of the second view, [b, D].
    all_anchors: the same as anchors, for the whole batch, [B, D].
    all_positives: the same as positives, for the whole batch, [B, D].
    all_negatives: embeddings of hard negatives, [B, D] or [B, K, D], of which only
      anchors know.
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    all_has_negative: which hard negatives there are, [B, K]; None if all.
    learnt_temperature: takes the place of `temperature` if that is learnt, a scalar.
    temperature: divides the cosines.
    temperature_mode: "fixed", or "learnt", as CLIP does.

  Returns:
    The mean of both directions' losses for each pair, [b], in nats.

  References:
    Radford et al., CLIP, 2021, Sec. 2.3 (arXiv:2103.00020).
  """
  if temperature_mode == "learnt":
    temperature = learnt_temperature
  forward = info_nce(
    anchors,
    all_positives,
    all_negatives,
    labels,
    all_has_negative,
    temperature=temperature,
  )
  backward = info_nce(positives, all_anchors, None, labels, temperature=temperature)
  return (forward + backward) / 2


@term(margin=Range(0, 2))
def focal_info_nce(
  anchors: jax.Array,
  all_positives: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 0.05,
  margin: float = 0.3,
) -> jax.Array:
  """Focal-InfoNCE: easy negatives weigh less, and so do hard positives.

  With s_ij the cosine of anchor i and positive j, the positive's logit is
  s_ii^2 / temperature and a negative's is s_ij (s_ij + margin) / temperature.
  The latter is smallest at s_ij = -margin / 2: a negative that is already
  further away than that is pulled back towards it.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the re-weighted cosines.
    margin: the paper's m; a negative with s_ij + margin > 1 counts more than
      under InfoNCE, any other less.

  Returns:
    The loss of each anchor, [b], in nats. Neither symmetrised nor with a
    stopped gradient, as published.

  References:
    Hou and Li, Improving Contrastive Learning of Sentence Embeddings with
    Focal-InfoNCE, 2023 (arXiv:2310.06918).
  """
  similarity = cosine_similarity(anchors, all_positives)
  labels, is_own = own_columns(similarity, labels)
  logits = similarity * (similarity + jnp.where(is_own, 0.0, margin)) / temperature
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

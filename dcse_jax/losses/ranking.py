"""Learning to rank the other sentences of a batch."""

import jax
import jax.numpy as jnp

from dcse_jax.losses.distillation import jensen_shannon
from dcse_jax.losses.distillation import similarity_divergence
from dcse_jax.losses.similarity import MASKED
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import term


@term()
def list_net(
  anchors: jax.Array,
  all_positives: jax.Array,
  teacher: jax.Array,
  all_teacher: jax.Array,
  labels: jax.Array | None = None,
  *,
  student_temperature: float = 0.05,
  teacher_temperature: float = 0.025,
) -> jax.Array:
  """ListNet: the student gives each sentence the teacher's chance to be ranked first.

  It is the cross entropy between the teacher's softmax over the other sentences and the
  student's, which compares its first view with their second. Our choice: a sentence is
  not in its own list, where every ranking has it first.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: those of the second view of the whole batch, [B, D].
    teacher: the teacher's embeddings of the anchors' sentences, [b, E].
    all_teacher: those of the whole batch, [B, E].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    student_temperature: divides the student's cosines, the paper's tau_2.
    teacher_temperature: divides the teacher's, the paper's tau_3 = tau_2 / 2.

  Returns:
    The loss of each anchor, [b], in nats. The teacher gets no gradient.

  References:
    Liu et al., RankCSE: Unsupervised Sentence Representations Learning via Learning
    to Rank, 2023 (arXiv:2305.16726); Cao et al., ListNet, ICML 2007.
  """
  return similarity_divergence(
    cosine_similarity(anchors, all_positives),
    jax.lax.stop_gradient(cosine_similarity(teacher, all_teacher)),
    labels,
    student_temperature=student_temperature,
    teacher_temperature=teacher_temperature,
  )


@term()
def list_mle(
  anchors: jax.Array,
  all_positives: jax.Array,
  teacher: jax.Array,
  all_teacher: jax.Array,
  labels: jax.Array | None = None,
  *,
  student_temperature: float = 0.05,
) -> jax.Array:
  """ListMLE: the likelihood of the teacher's ranking by the student's similarities.

  With r_1, ..., r_N the other sentences from most to least similar to the teacher and
  s the student's cosines of its first view with their second over the temperature, it
  is -1/N times the sum over k of log(e^s(r_k) / sum over l >= k of e^s(r_l)). Our
  choice: a sentence is not in its own list; the mean over ranks and not their sum, so
  that another batch size needs no other weight; ties go by the order of the batch. The
  public reproduction sums over the ranks of a list that the sentence itself heads:
  that is InfoNCE plus N times this.

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: those of the second view of the whole batch, [B, D].
    teacher: the teacher's embeddings of the anchors' sentences, [b, E].
    all_teacher: those of the whole batch, [B, E].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    student_temperature: divides the student's cosines.

  Returns:
    The loss of each anchor, [b], in nats. The teacher gets no gradient.

  References:
    Liu et al., RankCSE: Unsupervised Sentence Representations Learning via Learning
    to Rank, 2023 (arXiv:2305.16726); Xia et al., ListMLE, ICML 2008.
  """
  logits = cosine_similarity(anchors, all_positives) / student_temperature
  _, is_own = own_columns(logits, labels)
  target = jax.lax.stop_gradient(cosine_similarity(teacher, all_teacher))
  # A row's own sentence is masked, so it comes last, and is cut off.
  order = jnp.argsort(-jnp.where(is_own, MASKED, target), axis=1)[:, :-1]
  ranked = jnp.take_along_axis(logits, order, axis=1)
  remaining = jax.lax.cumlogsumexp(ranked, axis=1, reverse=True)
  return jnp.mean(remaining - ranked, axis=1)


@term()
def rank_consistency(
  anchors: jax.Array,
  positives: jax.Array,
  all_anchors: jax.Array,
  all_positives: jax.Array,
  *,
  temperature: float = 0.05,
) -> jax.Array:
  """RankCSE's ranking consistency: both views of a sentence rank the batch alike.

  It is the Jensen-Shannon divergence of two softmaxes over the batch: that of the
  cosines of a sentence's first view with all second ones, and that of its second with
  all first ones.

  Args:
    anchors: embeddings of the first view, [b, D].
    positives: those of the second view, [b, D].
    all_anchors: those of the first view of the whole batch, [B, D].
    all_positives: those of the second view of the whole batch, [B, D].
    temperature: divides the cosines.

  Returns:
    The loss of each sentence, [b], in nats, from 0 to log 2.

  References:
    Liu et al., RankCSE: Unsupervised Sentence Representations Learning via Learning
    to Rank, 2023 (arXiv:2305.16726).
  """
  forward = cosine_similarity(anchors, all_positives) / temperature
  backward = cosine_similarity(positives, all_anchors) / temperature
  return jensen_shannon(jax.nn.log_softmax(forward), jax.nn.log_softmax(backward))

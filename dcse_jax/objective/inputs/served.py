"""The student's embedding as it is served, and as wide as its teachers'."""

import jax

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.model import ops
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.flops import encode_flops
from dcse_jax.objective.inputs.provider import Provider


class Served(Provider):
  """The first column's embedding as served, [B, D], and as wide as teachers', [B, E].

  `served` is what evaluation and export give, except for dropout: pooled, without the
  training-only projection unless the round keeps its head. `student` is as wide as the
  teachers' joint embedding: if `served` is not, a linear map that is trained along
  makes it so. The map is a head, which the round keeps or drops.
  """

  offers = ("served", "student")
  compared = embeddings = ("served",)

  def _is_mapped(self, objective) -> bool:
    if "student" not in objective.inputs or not objective.stacks:
      return False
    return objective.teacher_size != self._size(objective)

  def _size(self, objective) -> int:
    return pooling_lib.embedding_size(objective.config, objective.pooling)

  def init_params(self, objective, encoder, init, language_model):
    if not self._is_mapped(objective):
      return {}
    sizes = self._size(objective), objective.teacher_size
    return {"teacher_map": init("teacher_map", heads.make_linear(*sizes))}

  def flops(self, objective, size):
    flops = 0.0
    if not objective.has_views:
      flops += encode_flops(
        objective.config, objective.pooling, sentences=size.batch, **size.lengths
      )
    if self._is_mapped(objective):
      flops += 2 * size.batch * self._size(objective) * objective.teacher_size
    return flops, 0.0

  def embed(self, objective, sentences, offered):
    if objective.has_views:
      return {"served": offered["anchors" if objective.keep_head else "pooled"]}
    embeddings = encoder_lib.encode(
      sentences.params["encoder"],
      objective.config,
      sentences.rows["input_ids"][:, 0],
      sentences.rows["attention_mask"][:, 0],
      pooling=objective.pooling,
      rng=jax.random.fold_in(sentences.rng, 8),
      dtype=objective.dtype,
      packing=sentences.packing,
      row_ids=sentences.row_ids,
    )
    return {"served": embeddings}

  def join(self, objective, params, inputs, offered):
    served = offered["served"]
    if "teacher_map" not in params:
      return {"student": served}
    dense = params["teacher_map"]
    student = ops.linear(served, dense["kernel"], dense["bias"])
    return {"student": student, "served": student if objective.keep_head else served}

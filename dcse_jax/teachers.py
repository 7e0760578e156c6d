"""Frozen teachers: several in one jitted forward, and their averaged cosines.

Teachers of one shape and pooling form one stack: a tree of parameters with a
leading axis. Teachers of another shape form another stack.
"""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from dcse_jax import encoder as encoder_lib
from dcse_jax import losses
from dcse_jax.folder import Model


@dataclasses.dataclass(frozen=True)
class TeacherStack:
  """What is static about teachers of one shape.

  Attributes:
    weights: of each teacher in the average; over all stacks they sum to 1.
  """

  config: encoder_lib.EncoderConfig
  pooling: str
  weights: tuple[float, ...]


def stack_teachers(
  models: Sequence[Model], weights: Sequence[float]
) -> tuple[tuple[TeacherStack, ...], tuple[encoder_lib.Params, ...]]:
  """Groups teachers by shape.

  Args:
    models: the teachers.
    weights: one a teacher, in any unit.

  Returns:
    The stacks and, in the same order, their parameters with a leading axis of
    teachers.
  """
  groups: dict[tuple, list[int]] = {}
  for i, model in enumerate(models):
    groups.setdefault((model.config, model.pooling), []).append(i)
  stacks, params = [], []
  for (config, pooling), members in groups.items():
    shares = tuple(float(weights[i] / sum(weights)) for i in members)
    stacks.append(TeacherStack(config, pooling, shares))
    params.append(
      jax.tree.map(lambda *x: np.stack(x), *(models[i].params for i in members))
    )
  return tuple(stacks), tuple(params)


def teacher_similarity(
  params: Sequence[encoder_lib.Params],
  stacks: Sequence[TeacherStack],
  input_ids: jax.Array,
  attention_mask: jax.Array,
  *,
  dtype,
) -> jax.Array:
  """The weighted mean over teachers of the cosines of a batch.

  Args:
    params: of each stack.
    stacks: as `stack_teachers` gives them.
    input_ids: the student's token ids, [B, S].
    attention_mask: [B, S].
    dtype: of the matrix products.

  Returns:
    [B, B] float32 raw cosines, without dropout, projection or gradient.
  """
  embeddings, weights = [], []
  for stack_params, stack in zip(params, stacks):

    def embed(teacher, stack=stack):
      return encoder_lib.encode(
        teacher,
        stack.config,
        input_ids,
        attention_mask,
        pooling=stack.pooling,
        dtype=dtype,
      )

    # One after the other: on a CPU faster than vmap, and it needs the memory of
    # one teacher's activations.
    embeddings.extend(jax.lax.map(embed, stack_params))
    weights.extend(stack.weights)
  similarity = losses.average_similarity(embeddings, weights=weights)
  return jax.lax.stop_gradient(similarity)

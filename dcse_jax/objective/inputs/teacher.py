"""The teachers' joint embedding of a sentence."""

from dcse_jax.model.flops import encode_flops
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.teachers import stacks as stacks_lib


class Teacher(Provider):
  """`stacks.teacher_embeddings`, [B, E]; missing where there are no teachers."""

  offers = ("teacher",)

  def flops(self, objective, size):
    frozen = 0.0
    for stack in objective.stacks:
      if isinstance(stack, stacks_lib.CachedTeachers):
        frozen += 2 * size.batch**2 * sum(stack.widths)
        continue
      one = encode_flops(
        stack.config, stack.pooling, sentences=size.batch, **size.lengths
      )
      one += 2 * size.batch**2 * stack.config.hidden_size
      frozen += len(stack.weights) * one
    return 0.0, frozen

  def join(self, objective, params, inputs, offered):
    if not objective.stacks:
      return {}
    embeddings = stacks_lib.teacher_embeddings(
      inputs.frozen["teachers"],
      objective.stacks,
      inputs.batch,
      dtype=objective.dtype,
      packing=objective.microbatches.packing_of_chunk(inputs.packing),
      microbatches=objective.microbatches,
    )
    return {"teacher": embeddings}

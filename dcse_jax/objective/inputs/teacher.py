"""The teachers' joint embeddings of sentences."""

from dcse_jax.model.flops import encode_flops
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.teachers import stacks as stacks_lib


class Teacher(Provider):
  """`stacks.teacher_embeddings` of each column that is asked for, [B, E].

  All are missing where there are no teachers, and the last two where the text has no
  such column.
  """

  offers = ("teacher", "teacher_positives", "teacher_negatives")

  def _columns(self, objective, columns: int) -> dict[int, str]:
    """Returns the name of what is offered of each column that there is."""
    named = enumerate(self.offers[:columns])
    return {i: name for i, name in named if name in objective.inputs}

  def flops(self, objective, size):
    frozen = 0.0
    columns = len(self._columns(objective, size.columns))
    for stack in objective.stacks:
      if isinstance(stack, stacks_lib.CachedTeachers):
        frozen += 2 * size.batch**2 * sum(stack.widths)
        continue
      one = encode_flops(
        stack.config, stack.pooling, sentences=size.batch, **size.lengths
      )
      one += 2 * size.batch**2 * stack.config.hidden_size
      frozen += columns * len(stack.weights) * one
    return 0.0, frozen

  def join(self, objective, params, inputs, offered):
    if not objective.stacks:
      return {}
    columns = self._columns(objective, inputs.batch["input_ids"].shape[1])
    return {
      name: stacks_lib.teacher_embeddings(
        inputs.frozen["teachers"],
        objective.stacks,
        inputs.batch,
        column=column,
        dtype=objective.dtype,
        packing=objective.microbatches.packing_of_chunk(inputs.packing),
        microbatches=objective.microbatches,
      )
      for column, name in columns.items()
    }

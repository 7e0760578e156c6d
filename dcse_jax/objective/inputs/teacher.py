"""The teachers' joint embeddings of sentences."""

import jax.numpy as jnp

from dcse_jax.model.flops import encode_flops
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.teachers import stacks as stacks_lib


class Teacher(Provider):
  """`stacks.teacher_embeddings` of each column that is asked for, [B, E].

  All are missing where there are no teachers, and the last two where the text has no
  such column. Where there are several columns of hard negatives, they are [B, K, E].
  """

  offers = ("teacher", "teacher_positives", "teacher_negatives")

  def _columns(self, objective, columns: int) -> dict[str, tuple[int, ...]]:
    """Returns the columns that each offered array embeds, where there are any."""
    every = tuple(range(columns))
    parts = zip(self.offers, (every[:1], every[1:2], every[2:]))
    return {name: part for name, part in parts if part and name in objective.inputs}

  def flops(self, objective, size):
    frozen = 0.0
    columns = sum(map(len, self._columns(objective, size.columns).values()))
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
    embed = lambda column: stacks_lib.teacher_embeddings(
      inputs.frozen["teachers"],
      objective.stacks,
      inputs.batch,
      column=column,
      dtype=objective.dtype,
      packing=objective.microbatches.packing_of_chunk(inputs.packing),
      microbatches=objective.microbatches,
    )
    arrays = {}
    columns = self._columns(objective, inputs.batch["input_ids"].shape[1])
    for name, part in columns.items():
      embeddings = [embed(column) for column in part]
      arrays[name] = embeddings[0] if len(part) == 1 else jnp.stack(embeddings, axis=1)
    return arrays

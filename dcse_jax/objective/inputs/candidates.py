"""What the text says of a row's candidates: its positive and its hard negatives."""

import jax
import jax.numpy as jnp

from dcse_jax.objective.inputs.provider import Provider


class Candidates(Provider):
  """Scores of positive and hard negatives, [B, C - 1], and which there are, [B, C - 2].

  C is how many columns the text has. `scores` are 0 for a hard negative that a row does
  not have. `has_negative` is missing where every row has as many as there are columns.
  """

  offers = ("scores", "has_negative")

  def validate(self, objective, start):
    if "scores" in objective.inputs and not start.has_scores:
      return (
        f"objective={objective.text!r} takes scores: name the columns that hold them in "
        "score_columns"
      )
    return ""

  def abstract_batch(self, objective, batch, columns, length):
    shapes = {}
    if "scores" in objective.inputs:
      shapes["scores"] = jax.ShapeDtypeStruct((batch, columns - 1), jnp.float32)
    if columns > 3:
      shapes["has_negative"] = jax.ShapeDtypeStruct((batch, columns - 2), bool)
    return shapes

  def join(self, objective, params, inputs, offered):
    return {name: inputs.batch[name] for name in self.offers if name in inputs.batch}

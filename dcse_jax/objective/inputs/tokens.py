"""The tokens of sentences, and where rows lie in the batch."""

from dcse_jax.objective.inputs.provider import Provider


class Tokens(Provider):
  """Token ids and mask of the first column, [B, S] both."""

  offers = ("input_ids", "attention_mask")

  def join(self, objective, params, inputs, offered):
    return {name: inputs.batch[name][:, 0] for name in self.offers}


class Step(Provider):
  """What a step has for all: a key for each term, and the share of training done.

  The objective itself gives every term its key, `rng`, and the numbers in the batch of
  the rows that it is asked for, `labels`, [b].
  """

  offers = ("labels", "rng", "progress")
  of_step = offers

  def join(self, objective, params, inputs, offered):
    return {"progress": inputs.progress}

"""The tokens of sentences, and what all rows of a step share."""

from dcse_jax.objective.inputs.provider import Provider


class Tokens(Provider):
  """Token ids and mask of the first column, both [B, S]."""

  offers = ("input_ids", "attention_mask")

  def join(self, objective, params, inputs, offered):
    ids, mask = (inputs.batch[name][:, 0] for name in self.offers)
    return {"input_ids": ids, "attention_mask": mask.astype(bool)}


class Step(Provider):
  """Inputs that all rows of a step share: a term's key, the share of training done.

  The objective itself gives every term its key, `rng`, and `labels`, the numbers in
  the batch of the rows that the term is asked for, [b].
  """

  offers = ("labels", "rng", "progress")
  of_step = offers

  def join(self, objective, params, inputs, offered):
    return {"progress": inputs.progress}

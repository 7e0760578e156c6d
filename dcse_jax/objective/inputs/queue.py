"""Positives of earlier batches."""

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.objective.inputs.provider import Provider


class Queue(Provider):
  """Positives of earlier batches, [Q, D], the latest first; and which are there, [Q].

  They have no gradient. Q is the term's setting `queue_size`.
  """

  offers = ("queue", "is_queued")
  needs_views = needs_pairs = True
  of_step = offers
  embeddings = ("queue",)

  def validate(self, objective, start):
    return objective.validate_width("queue", start)

  def init_carry(self, objective):
    shape = (objective.setting("queue_size"), objective.config.hidden_size)
    return {"queue": np.zeros(shape, np.float32), "queued": np.zeros((), np.int32)}

  def join(self, objective, params, inputs, offered):
    queue, queued = inputs.carry["queue"], inputs.carry["queued"]
    return {"queue": queue, "is_queued": jnp.arange(len(queue)) < queued}

  def carry(self, inputs, offered):
    positives = jax.lax.stop_gradient(offered["positives"])
    queue, queued = inputs.carry["queue"], inputs.carry["queued"]
    return {
      "queue": jnp.concatenate([positives, queue])[: len(queue)],
      "queued": jnp.minimum(queued + len(positives), len(queue)),
    }

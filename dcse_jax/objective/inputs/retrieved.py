"""A near neighbour of each sentence, looked up in the whole text."""

import jax
import jax.numpy as jnp

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.objective.inputs.provider import Provider


class Retrieved(Provider):
  """A neighbour's embedding, [B, D], and the numbers of it and of the sentence, [B].

  The embedding has dropout and the projection; equal sentences have equal numbers.
  `corpus.Corpus` chooses the neighbour.
  """

  offers = ("retrieved", "retrieved_id", "sentence_id")
  compared = embeddings = ("retrieved",)
  needs_views = True

  def corpus_settings(self, objective):
    return {"retrieved": objective.settings_of("retrieved")}

  def abstract_batch(self, objective, batch, columns, length):
    ids = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return {
      "sentence_id": ids,
      "retrieved_id": ids,
      "retrieved_input_ids": jax.ShapeDtypeStruct((batch, length), jnp.int32),
      "retrieved_mask": jax.ShapeDtypeStruct((batch, length), bool),
    }

  def flops(self, objective, size):
    return objective.embedding_flops(size, size.batch), 0.0

  def prepare(self, objective, inputs):
    return {n: inputs.batch[n] for n in ("retrieved_input_ids", "retrieved_mask")}

  def embed(self, objective, sentences, offered):
    embeddings = encoder_lib.encode(
      sentences.params["encoder"],
      objective.config,
      sentences.rows["retrieved_input_ids"],
      sentences.rows["retrieved_mask"],
      pooling=objective.pooling,
      rng=jax.random.fold_in(sentences.rng, 5),
      dtype=objective.dtype,
      row_ids=sentences.row_ids,
    )
    return objective.project(sentences.params, {"retrieved": embeddings})

  def join(self, objective, params, inputs, offered):
    return {name: inputs.batch[name] for name in ("retrieved_id", "sentence_id")}

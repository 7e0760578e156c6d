"""The first view without dropout."""

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.objective.inputs.provider import Provider


class Undropped(Provider):
  """Embeddings of the first column without dropout, after the projection, [B, D]."""

  offers = compared = embeddings = ("undropped",)
  needs_views = True

  def flops(self, objective, size):
    return objective.embedding_flops(size, size.batch), 0.0

  def embed(self, objective, sentences, offered):
    embeddings = encoder_lib.encode(
      sentences.params["encoder"],
      objective.config,
      sentences.rows["input_ids"][:, 0],
      sentences.rows["attention_mask"][:, 0],
      pooling=objective.pooling,
      dtype=objective.dtype,
      packing=sentences.packing,
    )
    return objective.project(sentences.params, {"undropped": embeddings})

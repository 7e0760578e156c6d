"""The start of a new BERT whose embeddings are, before it learns, its tokens' means."""

from collections.abc import Sequence

import numpy as np

from dcse_jax.model import bert
from dcse_jax.model import encoder as encoder_lib


def begin_with(
  params: encoder_lib.Params,
  config: bert.EncoderConfig,
  vectors: np.ndarray,
  *,
  weightless: Sequence[int] = (),
  seed: int = 0,
) -> encoder_lib.Params:
  """Gives the tokens of a new BERT vectors that keep their lengths through its norms.

  Norms bring all states to one length, and a mean of vectors needs the lengths: rare words
  count, frequent ones do not. So the last number of an embedding makes up what a vector
  lacks in length, and the last norm's scale is 0 there. The mean over tokens then is nearly
  that of their vectors, and all of this is trained on.

  Args:
    params: a new encoder's.
    config: its shape; a stack of equal layers, each with a norm at its end.
    vectors: one for each token, [V, H]; the last number is left out. A token whose vector
      is all zero gets a random one, of full length.
    weightless: tokens that count for nothing at first, such as [CLS].
    seed: draws the random vectors.

  Returns:
    Parameters; those that differ from `params` are new.
  """
  vectors = np.array(vectors, np.float32)
  is_unknown = ~vectors.any(axis=1)
  width = config.hidden_size
  vectors[:, -1] = 0
  vectors /= np.linalg.norm(vectors, axis=1).max()
  drawn = np.random.default_rng(seed).normal(size=(int(is_unknown.sum()), width - 1))
  drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
  vectors[is_unknown, :-1] = drawn
  vectors[list(weightless)] = 0
  missing = 1 - np.square(vectors).sum(axis=1)
  vectors[:, -1] = np.sqrt(np.maximum(missing, 0))
  # This is the size that the first norm gives them, beside which positions are small.
  table = vectors * np.float32(width**0.5)
  embeddings = {**params["embeddings"], "word": {"embedding": table}}
  scale = np.array(params["layers"]["norm"]["scale"])
  scale[-1, -1] = 0
  norm = {**params["layers"]["norm"], "scale": scale}
  layers = {**params["layers"], "norm": norm}
  return {**params, "embeddings": embeddings, "layers": layers}

"""MPNet: BERT's layers with a bias of scores by distance, from one table for all.

Song et al., MPNet, 2020 (arXiv:2004.09297); the distances' buckets are those of Raffel
et al., T5, 2020 (arXiv:1910.10683).
"""

import dataclasses

from flax import nnx
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import bert

# How many buckets distances fall into, however many rows the table has; and the
# distance in tokens from which on they share the last one.
NUM_BUCKETS, _FARTHEST = 32, 128


@dataclasses.dataclass(frozen=True)
class EncoderConfig(bert.EncoderConfig):
  """The shape of an MPNet.

  Attributes:
    num_buckets: rows of the table of biases, `NUM_BUCKETS` or more.
  """

  num_buckets: int = NUM_BUCKETS

  @property
  def skips_padding(self) -> bool:
    return True


def new_config(*, max_tokens: int, pad_token_id: int, **fields) -> EncoderConfig:
  """Makes the shape of a new MPNet for sentences of max_tokens, from config fields.

  Positions are counted after token 1 whatever the tokenizer pads with: if that token is
  another, as WordPiece's [UNK] is, it has no position, here as in transformers.
  """
  del pad_token_id
  return EncoderConfig(
    model_type="mpnet",
    max_positions=max(512, max_tokens) + 2,
    type_vocab_size=0,
    layer_norm_eps=1e-5,
    has_pooler=True,
    pad_token_id=1,
    **fields,
  )


def buckets(length: int) -> np.ndarray:
  """Returns the bucket of each key's distance from each query, [S, S] in [0, 32).

  Half of the buckets are for keys after the query. The first half of each is for
  single distances; the rest grow by a constant factor up to `_FARTHEST`.
  """
  place = np.arange(length)
  distance = place[:, None] - place
  half, single = NUM_BUCKETS // 2, NUM_BUCKETS // 4
  far = np.maximum(np.abs(distance), 1).astype(np.float32)
  # In float32, like PyTorch: rounding decides on which side of a bound a distance is.
  far = np.log(far / np.float32(single)) / np.float32(np.log(_FARTHEST / single))
  far = single + (far * np.float32(half - single)).astype(np.int32)
  near = np.abs(distance)
  bucket = np.where(near < single, near, np.minimum(far, half - 1))
  return bucket + half * (distance < 0)


class Encoder(bert.Encoder):
  """BERT's encoder with a table of biases; its call is that of `family.Encoder`."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    super().__init__(config, dtype, rngs)
    init = nnx.initializers.normal(config.initializer_range)
    self.relative_bias = nnx.Embed(
      config.num_buckets, config.num_heads, embedding_init=init, rngs=rngs
    )

  def bias(self, length):
    table = self.relative_bias.embedding[...].astype(jnp.float32)
    return jnp.moveaxis(table[buckets(length)], -1, 0)

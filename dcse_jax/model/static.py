"""A static model: an embedding for each token, and nothing that looks around.

A sentence is the mean of its tokens' embeddings, as in sentence-transformers'
StaticEmbedding: thousands of sentences a second on a CPU.
"""

import dataclasses

from flax import nnx

from dcse_jax.model import layers as layers_lib
from dcse_jax.model.attention import Reach
from dcse_jax.model.family import Work
from dcse_jax.runtime import mesh as mesh_lib

MODEL_TYPE = "static"


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The shape of a static model, see `family.EncoderConfig`.

  What is said of layers holds for one that leaves states as they are.
  """

  vocab_size: int
  hidden_size: int
  model_type: str = MODEL_TYPE
  num_layers: int = 1
  num_heads: int = 1
  intermediate_size: int = 1
  layer_norm_eps: float = 1e-12
  activation: str = "gelu"
  initializer_range: float = 0.02
  pad_token_id: int = 0

  @property
  def max_tokens(self) -> int:
    # A sum has no end; this is what a batch of one text may hold.
    return 1 << 20

  @property
  def language_model(self) -> None:
    return None

  @property
  def work(self) -> Work:
    return Work(token=0, key_value=0, pair=0, reaches=(Reach(),))


class Embeddings(nnx.Module):
  """The embedding of each token."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.word = layers_lib.embed(config, config.vocab_size, dtype, rngs)


class Encoder(nnx.Module):
  """Looks embeddings up; its call has the arguments of `family.Encoder`."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.embeddings = Embeddings(config, dtype, rngs)
    self.layers = nnx.Dict()

  def __call__(
    self, input_ids, layout, rng, positions=None, layers=(), first_states=None
  ):
    first = mesh_lib.by_row(self.embeddings.word(layout.flat(input_ids)))
    if first_states is not None:
      first = first.at[:, 0].set(first_states.astype(first.dtype))
    last = first if positions is None else layout.select(first, positions)
    return first, first, last, (first,) * len(layers)

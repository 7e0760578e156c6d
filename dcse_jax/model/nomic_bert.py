"""NomicBERT: a BERT with rotary positions and a gated feed-forward part.

Nussbaum et al., Nomic Embed, 2024 (arXiv:2402.01613).
"""

import dataclasses

from flax import nnx
import jax.numpy as jnp

from dcse_jax.model import layers as layers_lib
from dcse_jax.model import rotary
from dcse_jax.model.dropout import dropout
from dcse_jax.model.family import LanguageModel


@dataclasses.dataclass(frozen=True)
class EncoderConfig(rotary.RotaryConfig):
  """The shape of an encoder; see `rotary.RotaryConfig`.

  Attributes:
    type_vocab_size: how many kinds of segments there are; only the first is used.
    theta: the base of the angles.
    dropout: rate after embeddings and sublayers, in [0, 1).
  """

  type_vocab_size: int = 2
  theta: float = 1000.0
  dropout: float = 0.0

  @property
  def kinds(self) -> tuple[rotary.Kind, ...]:
    return (rotary.Kind(self.theta),) * self.num_layers

  @property
  def language_model(self) -> LanguageModel:
    return LanguageModel(self.activation)


def new_config(*, max_tokens: int, **fields) -> EncoderConfig:
  """Makes the shape of a new encoder for sentences of max_tokens, from config fields.

  It has dropout, which released ones lack: without it two views would be the same.
  """
  return EncoderConfig(
    model_type="nomic_bert",
    max_positions=max(512, max_tokens),
    layer_norm_eps=1e-12,
    activation="silu",
    attention_dropout=0.1,
    dropout=0.1,
    **fields,
  )


class Embeddings(nnx.Module):
  """Word and (single) segment embeddings, normalised."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.rate = config.dropout
    self.word = layers_lib.embed(config, config.vocab_size, dtype, rngs)
    self.token_type = layers_lib.embed(config, config.type_vocab_size, dtype, rngs)
    self.norm = layers_lib.layer_norm(config, dtype, rngs)

  def __call__(self, input_ids, layout, key):
    x = self.word(layout.flat(input_ids))
    x = self.norm(x + self.token_type(jnp.zeros((1, 1), jnp.int32)))
    return dropout(x, self.rate, key, layout.rows)


class Layer(rotary.Layer):
  """Attention and feed-forward, each with a residual and a LayerNorm after."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.rate = config.dropout
    self.attention = rotary.Attention(config, dtype, rngs)
    self.attention_norm = layers_lib.layer_norm(config, dtype, rngs)
    self.mlp = rotary.GatedMlp(config, dtype, rngs)
    self.norm = layers_lib.layer_norm(config, dtype, rngs)

  def _rest(self, x, attended, rows, keys):
    x = self.attention_norm(x + dropout(attended, self.rate, keys[1], rows))
    forward = self.mlp(x, rows, None)
    return self.norm(x + dropout(forward, self.rate, keys[2], rows))


class Encoder(rotary.Encoder):
  """A NomicBERT; see `rotary.Encoder`."""

  make_embeddings, make_layer = Embeddings, Layer

"""ModernBERT and its kin: Ettin, mmBERT, gte-modernbert.

Warner et al., 2024 (arXiv:2412.13663): rotary positions, norms before each part, gated
feed-forward, and layers that see a window of neighbours between ones that see all.
"""

import dataclasses

from flax import nnx
import jax.numpy as jnp

from dcse_jax.model import layers as layers_lib
from dcse_jax.model import rotary
from dcse_jax.model.attention import Reach
from dcse_jax.model.dropout import dropout
from dcse_jax.model.family import LanguageModel


@dataclasses.dataclass(frozen=True)
class EncoderConfig(rotary.RotaryConfig):
  """The shape of an encoder; see `rotary.RotaryConfig`.

  Attributes:
    is_local: for each layer, whether its tokens see only a window; empty for all but
      every third, from the first. Values for more layers are dropped, so that a model
      that is cut to its first layers keeps their pattern.
    local_attention: the window's width, half of it on either side.
    embedding_dropout: rate after the embeddings, in [0, 1); attention_dropout is also
      the rate on attention's output, and mlp_dropout that on what the MLP gates.
    norm_bias: whether norms have biases; attention_bias and mlp_bias say so for linear
      layers, classifier_bias for that of the language-model head, and decoder_bias for
      its scores.
    classifier_activation: the language-model head's.
  """

  max_positions: int = 8192
  layer_norm_eps: float = 1e-5
  activation: str = "gelu"
  initializer_range: float = 0.02
  pad_token_id: int = 0
  attention_dropout: float = 0.0
  is_local: tuple[bool, ...] = ()
  local_attention: int = 128
  global_theta: float = 160_000.0
  local_theta: float = 10_000.0
  embedding_dropout: float = 0.0
  mlp_dropout: float = 0.0
  norm_bias: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  classifier_bias: bool = False
  classifier_activation: str = "gelu"
  decoder_bias: bool = True

  def __post_init__(self):
    is_local = self.is_local or [i % 3 > 0 for i in range(self.num_layers)]
    object.__setattr__(self, "is_local", tuple(is_local[: self.num_layers]))

  @property
  def kinds(self) -> tuple[rotary.Kind, ...]:
    half = self.local_attention // 2
    local = rotary.Kind(self.local_theta, Reach(half, half))
    everywhere = rotary.Kind(self.global_theta)
    return tuple(local if each else everywhere for each in self.is_local)

  @property
  def language_model(self) -> LanguageModel:
    return LanguageModel(
      activation=self.classifier_activation,
      dense_bias=self.classifier_bias,
      norm_bias=self.norm_bias,
      bias=self.decoder_bias,
    )


def new_config(*, max_tokens: int, **fields) -> EncoderConfig:
  """Makes the shape of a new encoder for sentences of max_tokens, from config fields.

  It has dropout, which released ones lack: without it two views would be the same.
  """
  return EncoderConfig(
    model_type="modernbert",
    max_positions=max(512, max_tokens),
    attention_dropout=0.1,
    mlp_dropout=0.1,
    **fields,
  )


class Embeddings(nnx.Module):
  """Word embeddings, normalised."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.rate = config.embedding_dropout
    self.word = layers_lib.embed(config, config.vocab_size, dtype, rngs)
    self.norm = layers_lib.layer_norm(config, dtype, rngs, config.norm_bias)

  def __call__(self, input_ids, layout, key):
    x = self.norm(self.word(layout.flat(input_ids)))
    return dropout(x, self.rate, key, layout.rows)


class Layer(rotary.Layer):
  """Attention and feed-forward, each after a norm; attention of layer 0 without."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.rate = config.attention_dropout
    # Layer 0 has one too, which nothing reads, since all layers have one form.
    self.attention_norm = layers_lib.layer_norm(config, dtype, rngs, config.norm_bias)
    self.attention = rotary.Attention(
      config, dtype, rngs, use_bias=config.attention_bias
    )
    self.norm = layers_lib.layer_norm(config, dtype, rngs, config.norm_bias)
    self.mlp = rotary.GatedMlp(
      config, dtype, rngs, use_bias=config.mlp_bias, rate=config.mlp_dropout
    )

  def _before(self, x, number):
    return jnp.where(number == 0, x, self.attention_norm(x))

  def _rest(self, x, attended, rows, keys):
    x = x + dropout(attended, self.rate, keys[1], rows)
    return x + self.mlp(self.norm(x), rows, keys[2])


class Encoder(rotary.Encoder):
  """A ModernBERT; see `rotary.Encoder`."""

  make_embeddings, make_layer = Embeddings, Layer

  def make_norm(self, config, dtype, rngs):
    return layers_lib.layer_norm(config, dtype, rngs, config.norm_bias)

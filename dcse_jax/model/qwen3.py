"""Qwen3 as an embedder: each token sees those before it, so the last one sees all.

Zhang et al., Qwen3 Embedding, 2025 (arXiv:2506.05176): norms of queries and keys,
heads that share keys and values, and a gated feed-forward part.
"""

import dataclasses

from flax import nnx

from dcse_jax.model import layers as layers_lib
from dcse_jax.model import rotary
from dcse_jax.model.attention import Reach


@dataclasses.dataclass(frozen=True)
class EncoderConfig(rotary.RotaryConfig):
  """The shape of a decoder that is read as an encoder; see `rotary.RotaryConfig`.

  Attributes:
    kv_heads: how many heads keys and values have, a divisor of `num_heads`.
    head_size: the width of a head.
    is_local: for each layer, whether its tokens see only a window. Values for more
      layers are dropped.
    sliding_window: how many tokens the window has: the token itself and those before.
    attention_bias: whether attention's linear layers have biases.
  """

  kv_heads: int
  head_size: int
  is_local: tuple[bool, ...]
  sliding_window: int
  theta: float
  attention_bias: bool = False

  def __post_init__(self):
    object.__setattr__(self, "is_local", tuple(self.is_local[: self.num_layers]))

  @property
  def kinds(self) -> tuple[rotary.Kind, ...]:
    local = rotary.Kind(self.theta, Reach(self.sliding_window - 1, 0))
    everywhere = rotary.Kind(self.theta, Reach(after=0))
    return tuple(local if each else everywhere for each in self.is_local)

  @property
  def num_kv_heads(self) -> int:
    return self.kv_heads

  @property
  def head_dim(self) -> int:
    return self.head_size


def new_config(
  *, max_tokens: int, hidden_size: int, num_layers: int, num_heads: int, **fields
) -> EncoderConfig:
  """Makes the shape of a new decoder for sentences of max_tokens, from config fields.

  Two heads share keys and values where that is possible. It has dropout, which released
  ones lack: without it two views would be the same.
  """
  return EncoderConfig(
    model_type="qwen3",
    hidden_size=hidden_size,
    num_layers=num_layers,
    num_heads=num_heads,
    max_positions=max(512, max_tokens),
    layer_norm_eps=1e-6,
    activation="silu",
    attention_dropout=0.1,
    kv_heads=num_heads // 2 if num_heads % 2 == 0 else num_heads,
    head_size=hidden_size // num_heads,
    is_local=(False,) * num_layers,
    sliding_window=4096,
    theta=1_000_000.0,
    **fields,
  )


class Embeddings(nnx.Module):
  """Word embeddings, and nothing else."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.word = layers_lib.embed(config, config.vocab_size, dtype, rngs)

  def __call__(self, input_ids, layout, key):
    return self.word(layout.flat(input_ids))


class Layer(rotary.Layer):
  """Attention and feed-forward, each after a norm."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.attention_norm = layers_lib.rms_norm(config, dtype)
    self.attention = rotary.Attention(
      config,
      dtype,
      rngs,
      use_bias=config.attention_bias,
      norm=lambda size: layers_lib.rms_norm(config, dtype, size),
    )
    self.norm = layers_lib.rms_norm(config, dtype)
    self.mlp = rotary.GatedMlp(config, dtype, rngs)

  def _before(self, x, number):
    return self.attention_norm(x)

  def _rest(self, x, attended, rows, keys):
    x = x + attended
    return x + self.mlp(self.norm(x), rows, keys[2])


class Encoder(rotary.Encoder):
  """A Qwen3 without its language-model head; see `rotary.Encoder`."""

  make_embeddings, make_layer = Embeddings, Layer

  def make_norm(self, config, dtype, rngs):
    return layers_lib.rms_norm(config, dtype)

"""Gemma 3 for text, which EmbeddingGemma is made from.

Schechter Vera et al., EmbeddingGemma, 2025 (arXiv:2509.20354): a decoder whose
tokens see each other in both directions, with norms before and after each part.
"""

import dataclasses

from flax import nnx
import jax.numpy as jnp

from dcse_jax.model import layers as layers_lib
from dcse_jax.model import rotary
from dcse_jax.model.attention import Reach


@dataclasses.dataclass(frozen=True)
class EncoderConfig(rotary.RotaryConfig):
  """The shape of a Gemma 3 text model; see `rotary.RotaryConfig`.

  Attributes:
    kv_heads: how many heads keys and values have, a divisor of `num_heads`.
    head_size: the width of a head.
    is_local: for each layer, whether its tokens see only a window. Values for more
      layers are dropped.
    sliding_window: as in config.json: if tokens see both directions half of it is on
      either side, otherwise it is the token itself and those before it.
    is_bidirectional: whether tokens see those after them.
    scalar: scores are divided by its root.
    attention_bias: whether attention's linear layers have biases.
  """

  kv_heads: int
  head_size: int
  is_local: tuple[bool, ...]
  sliding_window: int
  is_bidirectional: bool
  scalar: float
  global_theta: float
  local_theta: float
  attention_bias: bool = False

  def __post_init__(self):
    object.__setattr__(self, "is_local", tuple(self.is_local[: self.num_layers]))

  @property
  def kinds(self) -> tuple[rotary.Kind, ...]:
    half = self.sliding_window // 2
    near = (
      Reach(half, half) if self.is_bidirectional else Reach(self.sliding_window - 1, 0)
    )
    far = Reach() if self.is_bidirectional else Reach(after=0)
    local = rotary.Kind(self.local_theta, near)
    everywhere = rotary.Kind(self.global_theta, far)
    return tuple(local if each else everywhere for each in self.is_local)

  @property
  def num_kv_heads(self) -> int:
    return self.kv_heads

  @property
  def head_dim(self) -> int:
    return self.head_size

  @property
  def divisor(self) -> float:
    return self.scalar


def new_config(
  *, max_tokens: int, hidden_size: int, num_layers: int, num_heads: int, **fields
) -> EncoderConfig:
  """Makes the shape of a new encoder for sentences of max_tokens, from config fields.

  Like EmbeddingGemma's tokens its own see both directions, in every sixth layer all
  others. It has dropout, which released ones lack: without it two views would be the
  same.
  """
  head_size = hidden_size // num_heads
  return EncoderConfig(
    model_type="gemma3_text",
    hidden_size=hidden_size,
    num_layers=num_layers,
    num_heads=num_heads,
    max_positions=max(512, max_tokens),
    layer_norm_eps=1e-6,
    activation="gelu_pytorch_tanh",
    attention_dropout=0.1,
    kv_heads=num_heads // 2 if num_heads % 2 == 0 else num_heads,
    head_size=head_size,
    is_local=tuple((i + 1) % 6 > 0 for i in range(num_layers)),
    sliding_window=512,
    is_bidirectional=True,
    scalar=float(head_size),
    global_theta=1_000_000.0,
    local_theta=10_000.0,
    **fields,
  )


def _norm(config: EncoderConfig, dtype, size: int | None = None) -> nnx.Module:
  # Its weights are stored less one.
  return layers_lib.rms_norm(config, dtype, size, offset=1.0)


class Embeddings(nnx.Module):
  """Word embeddings, times the root of their width."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.word = layers_lib.embed(config, config.vocab_size, dtype, rngs)
    self.scale = config.hidden_size**0.5

  def __call__(self, input_ids, layout, key):
    x = self.word(layout.flat(input_ids))
    return x * jnp.asarray(self.scale, x.dtype)


class Layer(rotary.Layer):
  """Attention and feed-forward, each between two norms."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.attention_norm = _norm(config, dtype)
    self.attention = rotary.Attention(
      config,
      dtype,
      rngs,
      use_bias=config.attention_bias,
      norm=lambda size: _norm(config, dtype, size),
    )
    self.attended_norm = _norm(config, dtype)
    self.norm = _norm(config, dtype)
    self.mlp = rotary.GatedMlp(config, dtype, rngs)
    self.mlp_norm = _norm(config, dtype)

  def _before(self, x, number):
    return self.attention_norm(x)

  def _rest(self, x, attended, rows, keys):
    x = x + self.attended_norm(attended)
    return x + self.mlp_norm(self.mlp(self.norm(x), rows, keys[2]))


class Encoder(rotary.Encoder):
  """A Gemma 3 without its language-model head; see `rotary.Encoder`."""

  make_embeddings, make_layer = Embeddings, Layer

  def make_norm(self, config, dtype, rngs):
    return _norm(config, dtype)

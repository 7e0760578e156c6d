"""The parts of encoders with rotary positions, which their families put together.

Positions are angles by which queries and keys are turned (RoPE), layers may see only a
window of their neighbours, heads may share keys and values, and the feed-forward
part is gated.
"""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import layers as layers_lib
from dcse_jax.model import ops
from dcse_jax.model import stack
from dcse_jax.model.attention import Dropout
from dcse_jax.model.attention import Reach
from dcse_jax.model.attention import attend
from dcse_jax.model.dropout import dropout
from dcse_jax.model.dropout import make_keys
from dcse_jax.model.family import Work
from dcse_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of layer: what its program depends on.

  Attributes:
    theta: the base of its angles.
    reach: which keys its tokens see.
  """

  theta: float
  reach: Reach = Reach()


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
  """The fields that the shapes of all families here have.

  Attributes:
    max_positions: the longest sentence, in tokens.
    layer_norm_eps: epsilon of all norms.
    activation: the gate's, a key of `layers.ACTIVATIONS`.
    attention_dropout: rate on attention probabilities, in [0, 1).
  """

  model_type: str
  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  max_positions: int
  layer_norm_eps: float
  activation: str
  initializer_range: float
  pad_token_id: int
  attention_dropout: float

  # Families override what differs.

  @property
  def kinds(self) -> tuple[Kind, ...]:
    """The kind of each layer."""
    raise NotImplementedError

  @property
  def num_kv_heads(self) -> int:
    """The number of heads of keys and values, a divisor of `num_heads`."""
    return self.num_heads

  @property
  def head_dim(self) -> int:
    """The width of a head."""
    return self.hidden_size // self.num_heads

  @property
  def divisor(self) -> float:
    """The number by whose root scores are divided."""
    return self.head_dim

  @property
  def max_tokens(self) -> int:
    """The longest sentence, in tokens."""
    return self.max_positions

  @property
  def language_model(self):
    """The head of a masked-language model: these families have none."""
    return None

  @property
  def work(self) -> Work:
    """Products: two of queries and outputs, two of keys and values, three of MLPs."""
    width, queries = self.hidden_size, self.num_heads * self.head_dim
    key_value = 4 * width * self.num_kv_heads * self.head_dim
    return Work(
      token=4 * width * queries + key_value + 6 * width * self.intermediate_size,
      key_value=key_value,
      pair=4 * queries,
      reaches=tuple(kind.reach for kind in self.kinds),
    )


@functools.lru_cache(maxsize=64)
def _angles(length: int, width: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
  """Computes cosines and sines of all positions, [S, 1, d / 2] float32."""
  # It rounds where PyTorch does: at position 8,000 a last place is visible.
  powers = np.float32(np.arange(0, width, 2) / width)
  frequencies = np.float32(1) / np.float32(np.float64(theta) ** powers)
  angles = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
  return np.float32(np.cos(angles)), np.float32(np.sin(angles))


class Attention(nnx.Module):
  """Self-attention with rotary positions.

  Args:
    config: the encoder's.
    dtype: that of the matrix products.
    rngs: draws new parameters.
    use_bias: whether linear layers have biases.
    norm: makes a norm for a head's queries, and one for its keys, from its width; None
      for none.
  """

  def __init__(self, config, dtype, rngs, *, use_bias=False, norm=None):
    width, head = config.hidden_size, config.head_dim
    queries, keys = config.num_heads * head, config.num_kv_heads * head
    linear = lambda d_in, d_out: layers_lib.linear(
      config, d_in, d_out, dtype, rngs, use_bias
    )
    self.config = config
    self.query, self.output = linear(width, queries), linear(queries, width)
    self.key, self.value = linear(width, keys), linear(width, keys)
    self.has_norms = norm is not None
    if norm:
      self.query_norm, self.key_norm = norm(head), norm(head)

  def __call__(self, x, layout, kind, key):
    """Attends for every token, laid out as x; key is a dropout key or None."""
    qkv = layers_lib.fused((self.query, self.key, self.value), mesh_lib.by_row(x))
    qkv = layout.grid(mesh_lib.by_row(qkv))
    queries, keys = self.query.out_features, self.key.out_features
    parts = jnp.split(qkv, (queries, queries + keys), axis=-1)
    attended = self._attend(*parts, layout, kind, key, layout.grid_rows)
    return self.output(mesh_lib.by_row(layout.flat(attended)))

  def at(self, x, positions, layout, kind, key):
    """Attends for the tokens at positions [N, K] only, [N, K, D]."""
    pair = mesh_lib.by_row(layers_lib.fused((self.key, self.value), x))
    pair = jnp.split(layout.grid(pair), 2, axis=-1)
    query = mesh_lib.by_row(self.query(layout.select(x, positions)))
    rows = layout.rows_at(positions)
    attended = self._attend(query, *pair, layout, kind, key, rows, positions)
    return self.output(mesh_lib.by_row(attended))

  def _attend(self, query, key, value, layout, kind, dropout_key, rows, positions=None):
    config = self.config
    split = lambda y: y.reshape(*y.shape[:2], -1, config.head_dim)
    query, key, value = map(split, (query, key, value))
    if self.has_norms:
      query, key = self.query_norm(query), self.key_norm(key)
    angles = _angles(key.shape[1], config.head_dim, kind.theta)
    at = angles if positions is None else [jnp.asarray(x)[positions] for x in angles]
    attended = attend(
      ops.rotate(query, *at),
      ops.rotate(key, *angles),
      value,
      layout.mask,
      Dropout(config.attention_dropout, dropout_key, rows),
      reach=kind.reach,
      positions=positions,
      divisor=config.divisor,
    )
    return attended.reshape(*attended.shape[:2], -1)


class GatedMlp(nnx.Module):
  """A gated linear unit, after Shazeer, 2020 (arXiv:2002.05202): GeGLU, SwiGLU.

  Args:
    config: the encoder's.
    dtype: that of the matrix products.
    rngs: draws new parameters.
    use_bias: whether linear layers have biases.
    rate: the dropout rate on what is gated.
  """

  def __init__(self, config, dtype, rngs, *, use_bias=False, rate=0.0):
    width, inner = config.hidden_size, config.intermediate_size
    linear = lambda d_in, d_out: layers_lib.linear(
      config, d_in, d_out, dtype, rngs, use_bias
    )
    self.activation, self.rate = config.activation, rate
    self.gate, self.up = linear(width, inner), linear(width, inner)
    self.down = linear(inner, width)

  def __call__(self, x, rows, key):
    """Maps states [..., D] of tokens; rows are their numbers in the whole batch."""
    both = layers_lib.fused((self.gate, self.up), mesh_lib.by_row(x))
    gate, up = jnp.split(mesh_lib.by_row(both), 2, axis=-1)
    inner = layers_lib.ACTIVATIONS[self.activation](gate) * up
    return self.down(dropout(inner, self.rate, key, rows))


class Layer(nnx.Module):
  """Attention and feed-forward, each with a residual.

  A family says what comes before attention (`_before`) and everything after it
  (`_rest`), and has the attention as `attention`.
  """

  def __call__(self, x, layout, keys, kind, number):
    """Computes every token's next state, laid out as x; layers are numbered from 0."""
    before = self._before(x, number)
    attended = self.attention(before, layout, kind, keys[0])
    return mesh_lib.by_row(self._rest(x, attended, layout.rows, keys))

  def at(self, x, positions, layout, keys, kind, number):
    """Computes the next states of the tokens at positions [N, K] only, [N, K, D]."""
    before = self._before(x, number)
    attended = self.attention.at(before, positions, layout, kind, keys[0])
    x, rows = layout.select(x, positions), layout.rows_at(positions)
    return mesh_lib.by_row(self._rest(x, attended, rows, keys))

  def _before(self, x, number):
    return x

  def _rest(self, x, attended, rows, keys):
    raise NotImplementedError


class Encoder(nnx.Module):
  """Embeddings, a stack of layers and perhaps a last norm; see `family.Encoder`.

  A family has `make_embeddings` and `make_layer`, and `make_norm` if states are normed
  at the end; all take a config, dtype and rngs.
  """

  make_norm = None

  def __init__(self, config: RotaryConfig, dtype, rngs: nnx.Rngs):
    self.config = config
    self.embeddings = self.make_embeddings(config, dtype, rngs)
    make = lambda rngs: self.make_layer(config, dtype, rngs)
    self.layers = stack.make_stack(make, config.num_layers, rngs)
    if self.make_norm:
      self.norm = self.make_norm(config, dtype, rngs)

  def __call__(
    self, input_ids, layout, rng, positions=None, layers=(), first_states=None
  ):
    embeddings_key = layer_keys = None
    if rng is not None:
      rng, layers_rng = jax.random.split(rng)
      embeddings_key = make_keys(rng, ())
      layer_keys = make_keys(layers_rng, (self.config.num_layers, 3))
    first = mesh_lib.by_row(self.embeddings(input_ids, layout, embeddings_key))
    if first_states is not None:
      first = first.at[:, 0].set(first_states.astype(first.dtype))

    def call_last(layer, x, *arguments):
      if positions is None:
        return layer(x, layout, *arguments)
      return layer.at(x, positions, layout, *arguments)

    previous, last, between = stack.run_stack(
      self.layers,
      first,
      layer_keys,
      kinds=self.config.kinds,
      call=lambda layer, x, *arguments: layer(x, layout, *arguments),
      call_last=call_last,
      layers=layers,
    )
    if self.make_norm:
      last = self.norm(last)
    return first, previous, last, between

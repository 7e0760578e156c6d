"""BERT and its kin: RoBERTa, XLM-R, CamemBERT and DistilBERT.

The layers are one module with a leading axis, run under `scan`, so that twelve
layers compile in the time of one; the last runs by itself, since many readers
want few of its tokens. Padding takes part only in attention where the layout is
packed. None of this changes what is computed.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import attention_kernel
from dcse_jax.model import layers as layers_lib
from dcse_jax.model import ops
from dcse_jax.model.dropout import dropout
from dcse_jax.model.dropout import make_keys
from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The shape of an encoder.

  Attributes:
    model_type: "bert", "distilbert", or one that counts positions from
      `pad_token_id` + 1 and skips padding: "roberta", "xlm-roberta", "camembert".
    max_positions: rows of the position table, for RoBERTa two more than tokens.
    type_vocab_size: kinds of segments, of which texts are all the first; DistilBERT
      has 0.
    activation: a key of `layers.ACTIVATIONS`, e.g. "gelu" (exact).
    dropout: rate after embeddings and sublayers, in [0, 1).
    attention_dropout: rate on attention probabilities, in [0, 1).
    has_pooler: whether the weights carry BERT's next-sentence pooler. It takes
      no part here; it is kept so that an exported folder is complete.
  """

  model_type: str
  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  max_positions: int
  type_vocab_size: int
  layer_norm_eps: float = 1e-12
  activation: str = "gelu"
  dropout: float = 0.1
  attention_dropout: float = 0.1
  initializer_range: float = 0.02
  pad_token_id: int = 0
  has_pooler: bool = False

  @property
  def is_roberta(self) -> bool:
    return self.model_type in ("roberta", "xlm-roberta", "camembert")

  @property
  def skips_padding(self) -> bool:
    """Whether tokens alone have positions, counted from `pad_token_id` + 1."""
    return self.is_roberta

  @property
  def max_tokens(self) -> int:
    """The longest sentence, in tokens."""
    if self.skips_padding:
      return self.max_positions - self.pad_token_id - 1
    return self.max_positions


class Embeddings(nnx.Module):
  """Word, position and (single) segment embeddings, normalised."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.config = config
    self.word = layers_lib.embed(config, config.vocab_size, dtype, rngs)
    self.position = layers_lib.embed(config, config.max_positions, dtype, rngs)
    if config.type_vocab_size:
      self.token_type = layers_lib.embed(config, config.type_vocab_size, dtype, rngs)
    self.norm = layers_lib.layer_norm(config, dtype, rngs)

  def __call__(self, input_ids, layout, key):
    positions = jnp.broadcast_to(self._positions(layout.mask), input_ids.shape)
    x = self.word(layout.flat(input_ids)) + self.position(layout.flat(positions))
    if self.config.type_vocab_size:
      x = x + self.token_type(jnp.zeros((1, 1), jnp.int32))
    x = self.norm(mesh_lib.by_row(x))
    return dropout(x, self.config.dropout, key, layout.rows)

  def _positions(self, attention_mask):
    if self.config.skips_padding:
      mask = attention_mask.astype(jnp.int32)
      return jnp.cumsum(mask, axis=1) * mask + self.config.pad_token_id
    return jnp.arange(attention_mask.shape[1])[None]


class Layer(nnx.Module):
  """Self-attention and feed-forward, each with a residual and a LayerNorm after."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    width = config.hidden_size
    self.config = config
    self.query = layers_lib.linear(config, width, width, dtype, rngs)
    self.key = layers_lib.linear(config, width, width, dtype, rngs)
    self.value = layers_lib.linear(config, width, width, dtype, rngs)
    self.attention_output = layers_lib.linear(config, width, width, dtype, rngs)
    self.attention_norm = layers_lib.layer_norm(config, dtype, rngs)
    self.up = layers_lib.linear(config, width, config.intermediate_size, dtype, rngs)
    self.down = layers_lib.linear(config, config.intermediate_size, width, dtype, rngs)
    self.norm = layers_lib.layer_norm(config, dtype, rngs)

  def __call__(self, x, layout, keys, bias=None):
    """Computes every token's next state, laid out as x; scores get a bias [heads, S, S]."""
    qkv = layers_lib.fused((self.query, self.key, self.value), mesh_lib.by_row(x))
    qkv = layout.grid(mesh_lib.by_row(qkv))
    config, mask, rows = self.config, layout.mask, layout.grid_rows
    width = config.hidden_size // config.num_heads
    if bias is None and attention_kernel.is_for(qkv.shape[1], width, qkv.dtype):
      rate = config.attention_dropout
      attended = attention_kernel.self_attend(
        qkv, mask, rows, heads=config.num_heads, rate=rate, key=keys[0]
      )
    else:
      query, key, value = jnp.split(qkv, 3, axis=-1)
      attended = self._attend(query, key, value, mask, rows, keys[0], bias)
    return self._rest(x, layout.flat(attended), layout.rows, keys)

  def at(self, x, positions, layout, keys, bias=None):
    """Computes the next states of the tokens at positions [N, K] alone, [N, K, D]."""
    pair = mesh_lib.by_row(layers_lib.fused((self.key, self.value), x))
    key, value = jnp.split(layout.grid(pair), 2, axis=-1)
    x, rows = layout.select(x, positions), layout.rows_at(positions)
    query = mesh_lib.by_row(self.query(x))
    if bias is not None:
      bias = bias[:, positions].swapaxes(0, 1)
    attended = self._attend(query, key, value, layout.mask, rows, keys[0], bias)
    return self._rest(x, attended, rows, keys)

  def _rest(self, x, attended, rows, keys):
    config = self.config
    attended = self.attention_output(mesh_lib.by_row(attended))
    add_and_norm = layers_lib.add_and_norm
    x = add_and_norm(self.attention_norm, x, attended, config.dropout, keys[1], rows)
    up = mesh_lib.by_row(self.up(mesh_lib.by_row(x)))
    forward = self.down(layers_lib.ACTIVATIONS[config.activation](up))
    x = add_and_norm(self.norm, x, forward, config.dropout, keys[2], rows)
    return mesh_lib.by_row(x)

  def _attend(self, query, key, value, mask, rows, dropout_key, bias):
    """Attends from queries [N, Q, D] to keys and values [N, S, D]: [N, Q, D].

    The bias of scores is [heads, Q, S], [N, heads, Q, S] or None.
    """
    heads, shape = self.config.num_heads, query.shape
    split = lambda y: y.reshape(*y.shape[:2], heads, -1)
    query, key, value = map(split, (query, key, value))
    scores = ops.attention_scores(query, key).astype(jnp.float32)
    scores = scores / jnp.sqrt(jnp.float32(query.shape[-1]))
    if bias is not None:
      scores = scores + bias
    # A finite mask: a row of padding alone must not become NaN.
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    rows = rows[:, None] * heads + np.arange(heads)[:, None]
    weights = dropout(weights, self.config.attention_dropout, dropout_key, rows)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(shape)


def _unroll(num_layers: int) -> int:
  """Counts the layers in one turn of the loop over them."""
  # A loop copies whatever the backward pass reads: on a GPU a third of all that a step
  # moves. On a TPU compiling is expensive and copies are cheap.
  return 1 if backend.current() == "tpu" else num_layers


class Encoder(nnx.Module):
  """Embeddings and a stack of layers; `config.has_pooler` adds an unused pooler.

  Its call has the arguments of `family.Encoder`.
  """

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.config = config
    self.embeddings = Embeddings(config, dtype, rngs)

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs):
      return Layer(config, dtype, rngs)

    self.layers = stack(rngs)
    if config.has_pooler:
      self.pooler = layers_lib.linear(
        config, config.hidden_size, config.hidden_size, dtype, rngs
      )

  def bias(self, length):
    """What every layer adds to its scores, [heads, S, S] float32; None for nothing."""
    return None

  def __call__(
    self, input_ids, layout, rng, positions=None, layers=(), first_states=None
  ):
    bias = self.bias(input_ids.shape[1])
    num_layers = self.config.num_layers
    embeddings_key = layer_keys = None
    if rng is not None:
      rng, layers_rng = jax.random.split(rng)
      embeddings_key = make_keys(rng, ())
      layer_keys = make_keys(layers_rng, (num_layers, 3))
    first = self.embeddings(input_ids, layout, embeddings_key)
    if first_states is not None:
      first = first.at[:, 0].set(first_states.astype(first.dtype))
    layer_def, every = nnx.split(self.layers)

    def step(x, layer):
      params, keys = layer
      keys = [None] * 3 if keys is None else keys
      x = nnx.merge(layer_def, params)(x, layout, keys, bias)
      return x, x if layers else None

    # Split, not sliced: the gradient of a split is one concatenation.
    split = lambda x: jax.lax.split(x, (num_layers - 1, 1))
    leaves, tree = jax.tree.flatten((every, layer_keys))
    first_ones, last_one = (
      jax.tree.unflatten(tree, part) for part in zip(*map(split, leaves))
    )
    previous, between = jax.lax.scan(
      step, first, first_ones, unroll=_unroll(num_layers)
    )
    between = tuple(between[layer - 1] for layer in layers)
    params, keys = jax.tree.map(lambda x: x[0], last_one)
    last = nnx.merge(layer_def, params)
    keys = [None] * 3 if keys is None else keys
    if positions is None:
      return first, previous, last(previous, layout, keys, bias), between
    return first, previous, last.at(previous, positions, layout, keys, bias), between

"""BERT and its kin: RoBERTa, XLM-R, CamemBERT, DistilBERT, ELECTRA and ALBERT.

Padding takes no part but in attention where the layout is packed, and the last layer
may be computed for few tokens. None of this changes what is computed.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from dcse_jax.model import attention
from dcse_jax.model import attention_kernel
from dcse_jax.model import family
from dcse_jax.model import layers as layers_lib
from dcse_jax.model import stack
from dcse_jax.model.dropout import dropout
from dcse_jax.model.dropout import make_keys
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

  @property
  def embedding_size(self) -> int:
    """Numbers in the embedding of a token."""
    return self.hidden_size

  @property
  def is_projected(self) -> bool:
    """Whether a linear layer lies between embeddings and layers."""
    return self.embedding_size != self.hidden_size

  @property
  def num_own_layers(self) -> int:
    """Layers with parameters of their own: all, or 1 that all share."""
    return self.num_layers

  @property
  def language_model(self) -> family.LanguageModel:
    # RoBERTa's has GELU, whatever its layers have.
    activation = "gelu" if self.skips_padding else self.activation
    return family.LanguageModel(activation, width=self.embedding_size)

  @property
  def work(self) -> family.Work:
    """Eight H^2 + 4 H I a token (width H, intermediate size I), 4 H a pair."""
    width = self.hidden_size
    return family.Work(
      before=2 * self.embedding_size * width * self.is_projected,
      token=8 * width**2 + 4 * width * self.intermediate_size,
      key_value=4 * width**2,
      pair=4 * width,
      reaches=(attention.Reach(),) * self.num_layers,
    )


def new_config(*, max_tokens: int, **fields) -> EncoderConfig:
  """Makes the shape of a new BERT for sentences of max_tokens, from its fields."""
  return EncoderConfig(
    model_type="bert",
    max_positions=max(512, max_tokens),
    type_vocab_size=2,
    # transformers reports a BERT without one as incomplete.
    has_pooler=True,
    **fields,
  )


def new_roberta(*, max_tokens: int, pad_token_id: int, **fields) -> EncoderConfig:
  """Makes the shape of a new RoBERTa, likewise."""
  return EncoderConfig(
    model_type="roberta",
    max_positions=max(512, max_tokens) + pad_token_id + 1,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    has_pooler=True,
    pad_token_id=pad_token_id,
    **fields,
  )


def new_distilbert(*, max_tokens: int, **fields) -> EncoderConfig:
  """Makes the shape of a new DistilBERT, likewise."""
  return EncoderConfig(
    model_type="distilbert",
    max_positions=max(512, max_tokens),
    type_vocab_size=0,
    **fields,
  )


class Embeddings(nnx.Module):
  """Word, position and (single) segment embeddings, normalised."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.config = config
    size = config.embedding_size
    narrow = dataclasses.replace(config, hidden_size=size)
    self.word = layers_lib.embed(narrow, config.vocab_size, dtype, rngs)
    self.position = layers_lib.embed(narrow, config.max_positions, dtype, rngs)
    if config.type_vocab_size:
      self.token_type = layers_lib.embed(narrow, config.type_vocab_size, dtype, rngs)
    self.norm = layers_lib.layer_norm(narrow, dtype, rngs)
    if config.is_projected:
      self.project = layers_lib.linear(config, size, config.hidden_size, dtype, rngs)

  def __call__(self, input_ids, layout, key):
    x = self.word(layout.flat(input_ids)) + self._position(input_ids, layout)
    if self.config.type_vocab_size:
      x = x + self.token_type(jnp.zeros((1, 1), jnp.int32))
    x = self.norm(mesh_lib.by_row(x))
    x = dropout(x, self.config.dropout, key, layout.rows)
    return mesh_lib.by_row(self.project(x)) if self.config.is_projected else x

  def _position(self, input_ids, layout):
    """Looks up the embeddings of every token's position, laid out as the layout says."""
    if self.config.skips_padding:
      # A text may spell the pad token, which then is seen but has no position.
      pad = self.config.pad_token_id
      mask = (layout.mask & (input_ids != pad)).astype(jnp.int32)
      return self.position(layout.flat(jnp.cumsum(mask, axis=1) * mask + pad))
    # The same for every sentence: its gradient is a sum over them, and no scatter.
    row = self.position.embedding[...][: input_ids.shape[1]]
    grid = jnp.broadcast_to(row, (*input_ids.shape, row.shape[-1]))
    return layout.flat(grid.astype(self.position.dtype))


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
    """Computes every token's next state, laid out as x; scores get a bias [h, S, S]."""
    config, mask, rows = self.config, layout.mask, layout.grid_rows
    width = config.hidden_size // config.num_heads
    linears, x = (self.query, self.key, self.value), mesh_lib.by_row(x)
    # A kernel adds no bias to scores, which MPNet alone has; ALBERT's layers have the
    # kernel like BERT's, whose layers they are.
    if bias is None and attention_kernel.is_for(*mask.shape, width, linears[0].dtype):
      qkv, qkv_bias = layers_lib.fused_product(linears, x)
      attended = attention_kernel.self_attend(
        mesh_lib.by_row(qkv),
        qkv_bias,
        mask,
        rows,
        places=layout.places,
        heads=config.num_heads,
        rate=config.attention_dropout,
        key=keys[0],
      )
    else:
      qkv = layout.grid(mesh_lib.by_row(layers_lib.fused(linears, x)))
      query, key, value = jnp.split(qkv, 3, axis=-1)
      attended = self._attend(query, key, value, mask, rows, keys[0], bias)
      attended = layout.flat(attended)
    return self._rest(x, attended, layout.rows, keys)

  def at(self, x, positions, layout, keys, bias=None):
    """Computes the next states of the tokens at positions [N, K] alone, [N, K, D]."""
    pair = mesh_lib.by_row(layers_lib.fused((self.key, self.value), x))
    key, value = jnp.split(layout.grid(pair), 2, axis=-1)
    x, rows = layout.select(x, positions), layout.rows_at(positions)
    query = mesh_lib.by_row(self.query(x))
    attended = self._attend(
      query, key, value, layout.mask, rows, keys[0], bias, positions
    )
    return self._rest(x, attended, rows, keys)

  def _rest(self, x, attended, rows, keys):
    config, add_and_norm = self.config, layers_lib.add_and_norm
    attended = mesh_lib.by_row(attended)
    x, to_up = add_and_norm(
      self.attention_output,
      self.attention_norm,
      x,
      attended,
      config.dropout,
      keys[1],
      rows,
      readers=2,
    )
    up = mesh_lib.by_row(self.up(mesh_lib.by_row(to_up)))
    up = layers_lib.ACTIVATIONS[config.activation](up)
    (x,) = add_and_norm(self.down, self.norm, x, up, config.dropout, keys[2], rows)
    return mesh_lib.by_row(x)

  def _attend(self, query, key, value, mask, rows, dropout_key, bias, positions=None):
    """Attends from queries [N, Q, D] to keys and values [N, S, D]: [N, Q, D]."""
    heads, shape = self.config.num_heads, query.shape
    split = lambda y: y.reshape(*y.shape[:2], heads, -1)
    query, key, value = map(split, (query, key, value))
    dropped = attention.Dropout(self.config.attention_dropout, dropout_key, rows)
    attended = attention.attend(
      query, key, value, mask, dropped, bias=bias, positions=positions
    )
    return attended.reshape(shape)


class Encoder(nnx.Module):
  """Embeddings and a stack of layers; `config.has_pooler` adds an unused pooler.

  Its call has the arguments of `family.Encoder`.
  """

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.config = config
    self.embeddings = Embeddings(config, dtype, rngs)

    make = lambda rngs: Layer(config, dtype, rngs)
    self.layers = stack.make_stack(make, config.num_own_layers, rngs)
    if config.has_pooler:
      self.pooler = layers_lib.linear(
        config, config.hidden_size, config.hidden_size, dtype, rngs
      )

  def bias(self, length):
    """Returns what every layer adds to its scores, [heads, S, S] float32, or None."""
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

    def call_last(layer, x, keys, *_):
      if positions is None:
        return layer(x, layout, keys, bias)
      return layer.at(x, positions, layout, keys, bias)

    previous, last, between = stack.run_stack(
      self.layers,
      first,
      layer_keys,
      kinds=(None,) * num_layers,
      call=lambda layer, x, keys, *_: layer(x, layout, keys, bias),
      call_last=call_last,
      layers=layers,
    )
    return first, previous, last, between

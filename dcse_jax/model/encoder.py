"""The BERT-family encoder, its poolings and its training-only heads.

Modules are Flax NNX; they are split once into a plain pytree of arrays, and
`encode`, `hidden_states` and the heads are pure functions over that pytree.
The layers are one module with a leading axis, run under `scan`, so that twelve
layers compile in the time of one; the last runs by itself, since many readers
want few of its tokens. Padding takes no part but in attention where a `Packing`
is given. None of this changes what is computed.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import ops
from dcse_jax.model.dropout import dropout
from dcse_jax.model.dropout import make_keys
from dcse_jax.model.packing import Layout
from dcse_jax.model.packing import Packing
from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib

Params = dict[str, Any]

# What an embedding may be of the last states; several of these, joined by "+", are
# put side by side.
STATE_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
# Means over tokens of the average of two layers' states.
LAYER_POOLINGS = ("mean_top2", "mean_first_last", "mean_embedding_last")
POOLINGS = ("cls", "cls_before_pooler", *STATE_POOLINGS[1:], *LAYER_POOLINGS)
# Names that changed their meaning, and what digests and workdirs say for them: what
# was written before the change must not pass for what the name means now.
_RECORDED = {
  "mean_first_last": "mean_first_last of layer 1",
  "mean_embedding_last": "mean_first_last",
}


def is_pooling(pooling: str) -> bool:
  """Whether a text names a pooling, or several of the last states joined by "+"."""
  return pooling in POOLINGS or all(
    mode in STATE_POOLINGS for mode in pooling.split("+")
  )


def recorded_pooling(pooling: str) -> str:
  """The name of a pooling that digests and workdirs hold."""
  return _RECORDED.get(pooling, pooling)


def embedding_size(config: "EncoderConfig", pooling: str) -> int:
  """Numbers in an embedding."""
  return config.hidden_size * len(pooling.split("+"))


def _exact_gelu(x):
  # As PyTorch has it. jax.nn.gelu takes erfc, twice as slow on a CPU.
  gelu = lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))
  if backend.current() == "cpu":
    return gelu(x)
  # Elsewhere memory is dear and its arithmetic free: the backward pass computes it
  # again from x, in place of reading three float32 arrays of the widest kind.
  return jax.checkpoint(gelu, prevent_cse=False)(x).astype(x.dtype)


ACTIVATIONS = {
  "gelu": _exact_gelu,
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  # Other names of transformers for the same, and the rest of its smooth ones.
  "swish": jax.nn.silu,
  "gelu_python": _exact_gelu,
  "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_10": lambda x: jnp.clip(_exact_gelu(x), -10, 10),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
  "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The shape of an encoder.

  Attributes:
    model_type: "bert", "roberta", "xlm-roberta" or "camembert"; all but BERT count
      positions from `pad_token_id` + 1 and skip padding.
    max_positions: rows of the position table, for RoBERTa two more than tokens.
    activation: a key of the activations known here, e.g. "gelu" (exact).
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
  def max_tokens(self) -> int:
    """The longest sentence, in tokens."""
    if self.is_roberta:
      return self.max_positions - self.pad_token_id - 1
    return self.max_positions


def _fused(linears: Sequence[nnx.Linear], x: jax.Array) -> jax.Array:
  """Linear layers of one input in one matrix product, side by side."""
  join = lambda xs: xs[0] if len(xs) == 1 else jnp.concatenate(xs, axis=-1)
  kernel = join([linear.kernel[...] for linear in linears])
  bias = join([linear.bias[...] for linear in linears])
  dtype = linears[0].dtype
  return ops.linear(x.astype(dtype), kernel.astype(dtype), bias.astype(dtype))


class _LayerNorm(nnx.LayerNorm):
  """Flax's parameters, our backward pass."""

  def __call__(self, x):
    return ops.layer_norm(
      x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon
    )


class _Linear(nnx.Linear):
  """Flax's parameters, our backward pass."""

  def __call__(self, x):
    return _fused((self,), x)


def _linear(config, d_in, d_out, dtype, rngs):
  init = nnx.initializers.normal(config.initializer_range)
  return _Linear(d_in, d_out, kernel_init=init, dtype=dtype, rngs=rngs)


def _embed(config, rows, dtype, rngs):
  init = nnx.initializers.normal(config.initializer_range)
  return nnx.Embed(
    rows, config.hidden_size, embedding_init=init, dtype=dtype, rngs=rngs
  )


def _layer_norm(config, dtype, rngs):
  return _LayerNorm(
    config.hidden_size,
    epsilon=config.layer_norm_eps,
    dtype=dtype,
    rngs=rngs,
  )


class Embeddings(nnx.Module):
  """Word, position and (single) segment embeddings, normalised."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.config = config
    self.word = _embed(config, config.vocab_size, dtype, rngs)
    self.position = _embed(config, config.max_positions, dtype, rngs)
    self.token_type = _embed(config, config.type_vocab_size, dtype, rngs)
    self.norm = _layer_norm(config, dtype, rngs)

  def __call__(self, input_ids, layout, key):
    positions = jnp.broadcast_to(self._positions(layout.mask), input_ids.shape)
    x = self.word(layout.flat(input_ids)) + self.position(layout.flat(positions))
    x = mesh_lib.by_row(x + self.token_type(jnp.zeros((1, 1), jnp.int32)))
    return dropout(self.norm(x), self.config.dropout, key, layout.rows)

  def _positions(self, attention_mask):
    if self.config.is_roberta:
      mask = attention_mask.astype(jnp.int32)
      return jnp.cumsum(mask, axis=1) * mask + self.config.pad_token_id
    return jnp.arange(attention_mask.shape[1])[None]


class Layer(nnx.Module):
  """Self-attention and feed-forward, each with a residual and a LayerNorm after."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    width = config.hidden_size
    self.config = config
    self.query = _linear(config, width, width, dtype, rngs)
    self.key = _linear(config, width, width, dtype, rngs)
    self.value = _linear(config, width, width, dtype, rngs)
    self.attention_output = _linear(config, width, width, dtype, rngs)
    self.attention_norm = _layer_norm(config, dtype, rngs)
    self.up = _linear(config, width, config.intermediate_size, dtype, rngs)
    self.down = _linear(config, config.intermediate_size, width, dtype, rngs)
    self.norm = _layer_norm(config, dtype, rngs)

  def __call__(self, x, layout, keys):
    """Every token's next state, laid out as x."""
    qkv = _fused((self.query, self.key, self.value), mesh_lib.by_row(x))
    qkv = layout.grid(mesh_lib.by_row(qkv))
    query, key, value = jnp.split(qkv, 3, axis=-1)
    attended = self._attend(query, key, value, layout.mask, layout.grid_rows, keys[0])
    return self._rest(x, layout.flat(attended), layout.rows, keys)

  def at(self, x, positions, layout, keys):
    """The next states of the tokens at positions [N, K] alone, [N, K, D]."""
    pair = mesh_lib.by_row(_fused((self.key, self.value), x))
    key, value = jnp.split(layout.grid(pair), 2, axis=-1)
    x, rows = layout.select(x, positions), layout.rows_at(positions)
    query = mesh_lib.by_row(self.query(x))
    attended = self._attend(query, key, value, layout.mask, rows, keys[0])
    return self._rest(x, attended, rows, keys)

  def _rest(self, x, attended, rows, keys):
    config = self.config
    attended = self.attention_output(mesh_lib.by_row(attended))
    x = self.attention_norm(x + dropout(attended, config.dropout, keys[1], rows))
    up = mesh_lib.by_row(self.up(mesh_lib.by_row(x)))
    forward = self.down(ACTIVATIONS[config.activation](up))
    x = self.norm(x + dropout(forward, config.dropout, keys[2], rows))
    return mesh_lib.by_row(x)

  def _attend(self, query, key, value, mask, rows, dropout_key):
    """Queries [N, Q, D] over keys and values [N, S, D]: [N, Q, D]."""
    heads, shape = self.config.num_heads, query.shape
    split = lambda y: y.reshape(*y.shape[:2], heads, -1)
    query, key, value = map(split, (query, key, value))
    scores = ops.attention_scores(query, key).astype(jnp.float32)
    scores = scores / jnp.sqrt(jnp.float32(query.shape[-1]))
    # A finite mask: a row of padding alone must not become NaN.
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    rows = rows[:, None] * heads + np.arange(heads)[:, None]
    weights = dropout(weights, self.config.attention_dropout, dropout_key, rows)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(shape)


def _unroll(num_layers: int) -> int:
  """Layers in one turn of the loop over them."""
  # On a CPU all: a loop would copy whatever the backward pass reads. Elsewhere
  # compiling is dear and copies are cheap.
  return num_layers if backend.current() == "cpu" else 1


class Encoder(nnx.Module):
  """Embeddings and a stack of layers; `config.has_pooler` adds an unused pooler.

  Its call returns the states after the embeddings, before the last layer and
  after it, and a tuple of those after `layers`, laid out as the layout has it; with
  positions [N, K] the last is of these tokens alone, [N, K, D]. `first_states` [N, D]
  take the place of the first tokens' embeddings, in a layout with its padding.
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
      self.pooler = _linear(config, config.hidden_size, config.hidden_size, dtype, rngs)

  def __call__(
    self, input_ids, layout, rng, positions=None, layers=(), first_states=None
  ):
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
      x = nnx.merge(layer_def, params)(x, layout, keys)
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
      return first, previous, last(previous, layout, keys), between
    return first, previous, last.at(previous, positions, layout, keys), between


class Projection(nnx.Module):
  """Linear and tanh on the embedding while training; dropped at evaluation."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.dense = _linear(config, config.hidden_size, config.hidden_size, dtype, rngs)

  def __call__(self, embeddings):
    return jnp.tanh(self.dense(embeddings))


class Predictor(nnx.Module):
  """Two linear layers from one model's embedding to another's."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    width = config.hidden_size
    self.up = _linear(config, width, width, dtype, rngs)
    self.down = _linear(config, width, width, dtype, rngs)

  def __call__(self, embeddings):
    return self.down(jax.nn.relu(self.up(embeddings)))


class TokenHead(nnx.Module):
  """One logit a token."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.dense = _linear(config, config.hidden_size, 1, dtype, rngs)

  def __call__(self, states):
    return self.dense(states)[..., 0]


class LanguageModelHead(nnx.Module):
  """Scores over the vocabulary; its matrix is the word embeddings."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.config = config
    width = config.hidden_size
    self.dense = _linear(config, width, width, dtype, rngs)
    self.norm = _layer_norm(config, dtype, rngs)
    self.bias = nnx.Param(jnp.zeros(config.vocab_size))

  def __call__(self, hidden, word_embedding):
    hidden = ACTIVATIONS[self.config.activation](self.dense(hidden))
    hidden = self.norm(hidden)
    return hidden @ word_embedding.astype(hidden.dtype).T + self.bias[...]


@functools.cache
def _graph(module: type[nnx.Module], config: EncoderConfig, dtype) -> Any:
  """The static half of a module; the same for every set of parameters."""
  abstract = nnx.eval_shape(lambda: module(config, dtype, nnx.Rngs(0)))
  return nnx.split(abstract)


def _bind(module, config, dtype, params):
  return nnx.merge(_graph(module, config, jnp.dtype(dtype))[0], params)


def abstract_params(
  config: EncoderConfig, module: type[nnx.Module] = Encoder
) -> Params:
  """Shapes and dtypes of a module's parameters, as a plain nested dict."""
  return nnx.to_pure_dict(_graph(module, config, jnp.dtype(jnp.float32))[1])


def init_params(
  config: EncoderConfig, rng: jax.Array, module: type[nnx.Module] = Encoder
) -> Params:
  """Random float32 parameters of a module, as a plain nested dict."""
  built = module(config, jnp.dtype(jnp.float32), nnx.Rngs(params=rng))
  return nnx.to_pure_dict(nnx.split(built)[1])


def hidden_states(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  *,
  rng: jax.Array | None = None,
  dtype: Any = jnp.float32,
  packing: Packing | None = None,
  numbers: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Hidden states of a batch of single sentences, those that poolings read.

  Args:
    params: the encoder's parameters.
    config: their shape.
    input_ids: token ids, [B, S].
    attention_mask: true for tokens, false for padding, [B, S].
    rng: draws the dropout masks; None turns dropout off.
    dtype: of the matrix products; LayerNorm statistics and attention
      probabilities are float32 always.
    packing: leaves padding out; None computes it too. The result is the same,
      dropout included.
    numbers: of the sentences in a batch of which these are a part, [B]: their
      dropout is what it is there.

  Returns:
    Three [B, S, D]: after the embeddings, before the last layer, after it.
    Padding has states too, of no meaning.
  """
  layout = Layout(attention_mask.astype(bool), packing, numbers)
  encoder = _bind(Encoder, config, dtype, params)
  *states, _ = encoder(input_ids.astype(jnp.int32), layout, rng)
  return tuple(map(layout.grid, states))


def states_at(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  positions: jax.Array,
  *,
  rng: jax.Array | None = None,
  dtype: Any = jnp.float32,
  packing: Packing | None = None,
  numbers: jax.Array | None = None,
) -> jax.Array:
  """The last hidden states of a few tokens of each sentence.

  The last layer computes nothing else: the states are those of `hidden_states`.

  Args:
    params: the encoder's parameters.
    config: their shape.
    input_ids: token ids, [B, S].
    attention_mask: true for tokens, false for padding, [B, S].
    positions: of the tokens, [B, K] int32.
    rng: draws the dropout masks; None turns dropout off.
    dtype: of the matrix products.
    packing: leaves padding out; None computes it too.
    numbers: of the sentences in a batch of which these are a part, [B].

  Returns:
    [B, K, D].
  """
  layout = Layout(attention_mask.astype(bool), packing, numbers)
  encoder = _bind(Encoder, config, dtype, params)
  return encoder(input_ids.astype(jnp.int32), layout, rng, positions)[2]


def pool(state: jax.Array, attention_mask: jax.Array, pooling: str) -> jax.Array:
  """One embedding a sentence from its tokens' states.

  Args:
    state: [B, S, D], padding after the tokens.
    attention_mask: [B, S].
    pooling: one or more of `STATE_POOLINGS`, joined by "+": "cls", the first token's
      state; "lasttoken", the last token's; "max", the largest of each dimension;
      "mean"; "mean_sqrt_len", the sum divided by the root of the tokens' number;
      "weightedmean", the mean weighted by position, counted from 1.

  Returns:
    [B, D] float32, or as many times D as there are poolings.
  """
  pooled = [_pool_one(state, attention_mask, mode) for mode in pooling.split("+")]
  return pooled[0] if len(pooled) == 1 else jnp.concatenate(pooled, axis=-1)


def _pool_one(state, attention_mask, pooling):
  if pooling in ("cls", "cls_before_pooler"):
    return state[:, 0].astype(jnp.float32)
  if pooling == "lasttoken":
    last = attention_mask.astype(jnp.int32).sum(axis=1) - 1
    last = jnp.maximum(last, 0)[:, None, None]
    return jnp.take_along_axis(state, last, axis=1)[:, 0].astype(jnp.float32)
  state = state.astype(jnp.float32)
  mask = attention_mask.astype(jnp.float32)[:, :, None]
  if pooling == "max":
    # A finite mask: a row of padding alone must not become infinite.
    return jnp.where(mask > 0, state, -1e30).max(axis=1)
  if pooling == "weightedmean":
    mask = mask * jnp.arange(1, mask.shape[1] + 1, dtype=jnp.float32)[:, None]
  total, count = (state * mask).sum(axis=1), jnp.maximum(mask.sum(axis=1), 1.0)
  return total / (jnp.sqrt(count) if pooling == "mean_sqrt_len" else count)


def encode(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  *,
  pooling: str,
  rng: jax.Array | None = None,
  dtype: Any = jnp.float32,
  packing: Packing | None = None,
  numbers: jax.Array | None = None,
) -> jax.Array:
  """Sentence embeddings, [B, D] float32; see `hidden_states`.

  Args:
    pooling: as `pool` takes it, of the last states. Or "cls_before_pooler", which
      differs from "cls" in training alone, where "cls" passes through a projection.
      Or the tokens' mean of an average: of the last two layers' states by
      "mean_top2", of the first layer's and the last by "mean_first_last", of the
      embedding layer's and the last by "mean_embedding_last".
  """
  kwargs = dict(rng=rng, dtype=dtype, packing=packing, numbers=numbers)
  return _encode(params, config, input_ids, attention_mask, (), pooling, **kwargs)[0]


def encode_with_layers(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  *,
  layers: tuple[int, ...],
  pooling: str,
  rng: jax.Array | None = None,
  dtype: Any = jnp.float32,
  packing: Packing | None = None,
  numbers: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Sentence embeddings, with those of earlier layers by the same forward pass.

  Args:
    layers: counted from 1, all before the last.
    pooling: of an earlier layer's state as of the last one's; its mean over tokens,
      for the poolings of two layers.

  Returns:
    What `encode` gives, [B, D], and of each layer in order, [B, L, D]; float32.
  """
  kwargs = dict(rng=rng, dtype=dtype, packing=packing, numbers=numbers)
  embeddings, between = _encode(
    params, config, input_ids, attention_mask, layers, pooling, **kwargs
  )
  return embeddings, jnp.stack(between, axis=1)


def _encode(
  params,
  config,
  input_ids,
  attention_mask,
  layers,
  pooling,
  *,
  rng,
  dtype,
  packing,
  numbers,
):
  """Embeddings [B, D], and a list of those after `layers`."""
  layout = Layout(attention_mask.astype(bool), packing, numbers)
  encoder = _bind(Encoder, config, dtype, params)
  of_first = pooling in ("cls", "cls_before_pooler")
  # One layer is the first and the last.
  with_first = pooling == "mean_first_last" and config.num_layers > 1
  embedded, previous, last, between = encoder(
    input_ids.astype(jnp.int32),
    layout,
    rng,
    jnp.zeros((len(input_ids), 1), jnp.int32) if of_first else None,
    (1,) * with_first + tuple(layers),
  )
  grid = lambda state: layout.grid(state).astype(jnp.float32)
  if pooling in LAYER_POOLINGS:
    other = {"mean_top2": previous, "mean_embedding_last": embedded}.get(pooling, last)
    if with_first:
      other, *between = between
    state, mode = (grid(last) + grid(other)) / 2, "mean"
  else:
    state, mode = last if of_first else layout.grid(last), pooling
  pooled = [pool(layout.grid(each), attention_mask, mode) for each in between]
  return pool(state, attention_mask, mode), pooled


def detect_replaced(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  embeddings: jax.Array,
  *,
  rng: jax.Array | None = None,
  dtype: Any = jnp.float32,
  numbers: jax.Array | None = None,
) -> jax.Array:
  """Logits of each token's being replaced, [B, S] float32.

  Args:
    params: `encoder` and `head`, a `TokenHead`.
    config: their shape.
    input_ids: of edited sentences, [B, S].
    attention_mask: true for tokens, [B, S].
    embeddings: of the sentences before they were edited, [B, D]; they stand in for
      [CLS].
    rng: draws the dropout masks; None turns dropout off.
    dtype: of the matrix products.
    numbers: of the sentences in a batch of which these are a part, [B].
  """
  layout = Layout(attention_mask.astype(bool), None, numbers)
  encoder = _bind(Encoder, config, dtype, params["encoder"])
  states = encoder(input_ids.astype(jnp.int32), layout, rng, first_states=embeddings)[2]
  head = _bind(TokenHead, config, jnp.float32, params["head"])
  return head(states.astype(jnp.float32))


def project(params: Params, config: EncoderConfig, embeddings: jax.Array) -> jax.Array:
  """The training-only projection of [B, D] embeddings, [B, D] float32."""
  return _bind(Projection, config, jnp.float32, params)(embeddings)


def predict(params: Params, config: EncoderConfig, embeddings: jax.Array) -> jax.Array:
  """What a `Predictor` makes of [B, D] embeddings, [B, D] float32."""
  return _bind(Predictor, config, jnp.float32, params)(embeddings)


def score_tokens(
  head: Params,
  encoder: Params,
  config: EncoderConfig,
  hidden: jax.Array,
  *,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Language-model logits of hidden states [..., D]: [..., V]."""
  module = _bind(LanguageModelHead, config, dtype, head)
  return module(hidden, encoder["embeddings"]["word"]["embedding"])


def keep_layers(
  params: Params, config: EncoderConfig, num_layers: int
) -> tuple[Params, EncoderConfig]:
  """The encoder cut to its first layers, 1 to all: a cheap student."""
  layers = jax.tree.map(lambda x: x[:num_layers], params["layers"])
  return (
    {**params, "layers": layers},
    dataclasses.replace(config, num_layers=num_layers),
  )

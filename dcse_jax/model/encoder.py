"""Encoders and heads as pure functions, from token ids to states and embeddings.

Modules are Flax NNX; they are split once into a plain pytree of arrays, and everything
here is a function of that pytree. A family is known only through `family`, and its
module is found by the class of the encoder's shape.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, TypedDict, Unpack

from flax import nnx
import jax
import jax.numpy as jnp

from dcse_jax.model import albert
from dcse_jax.model import bert
from dcse_jax.model import electra
from dcse_jax.model import gemma3
from dcse_jax.model import modernbert
from dcse_jax.model import mpnet
from dcse_jax.model import nomic_bert
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model import qwen3
from dcse_jax.model import static
from dcse_jax.model.family import Encoder
from dcse_jax.model.family import EncoderConfig
from dcse_jax.model.family import Params
from dcse_jax.model.heads import LanguageModelHead
from dcse_jax.model.heads import Predictor
from dcse_jax.model.heads import Projection
from dcse_jax.model.heads import TokenHead
from dcse_jax.model.packing import Layout
from dcse_jax.model.packing import Packing

# The module of each family, by the class of its shape.
_ENCODERS: dict[type[EncoderConfig], type[Encoder]] = {
  bert.EncoderConfig: bert.Encoder,
  mpnet.EncoderConfig: mpnet.Encoder,
  electra.EncoderConfig: electra.Encoder,
  albert.EncoderConfig: albert.Encoder,
  modernbert.EncoderConfig: modernbert.Encoder,
  nomic_bert.EncoderConfig: nomic_bert.Encoder,
  qwen3.EncoderConfig: qwen3.Encoder,
  gemma3.EncoderConfig: gemma3.Encoder,
  static.EncoderConfig: static.Encoder,
}
# What makes the shape of a new encoder, by its family.
NEW: dict[str, Callable[..., EncoderConfig]] = {
  "bert": bert.new_config,
  "roberta": bert.new_roberta,
  "distilbert": bert.new_distilbert,
  "mpnet": mpnet.new_config,
  "electra": electra.new_config,
  "albert": albert.new_config,
  "modernbert": modernbert.new_config,
  "nomic_bert": nomic_bert.new_config,
  "qwen3": qwen3.new_config,
  "gemma3_text": gemma3.new_config,
}


class Options(TypedDict, total=False):
  """Keyword arguments that say how the functions here run an encoder.

  Attributes:
    rng: draws the dropout masks; None, the default, turns dropout off.
    dtype: that of the matrix products, float32 by default; LayerNorm statistics and
      attention probabilities are always float32.
    packing: leaves padding out; None, the default, computes it too. The result is
      the same, dropout included.
    row_ids: where the sentences stand in a larger batch that these are part of, [B]:
      they get the dropout that they would have there.
  """

  rng: jax.Array | None
  dtype: Any
  packing: Packing | None
  row_ids: jax.Array | None


@functools.cache
def _graph(module: type[nnx.Module], config: EncoderConfig, dtype) -> Any:
  """Returns a module's static half, which is the same for all parameters."""
  abstract = nnx.eval_shape(lambda: module(config, dtype, nnx.Rngs(0)))
  return nnx.split(abstract)


def _bind(module, config, dtype, params):
  return nnx.merge(_graph(module, config, jnp.dtype(dtype))[0], params)


def abstract_params(
  config: EncoderConfig, module: type[nnx.Module] | None = None
) -> Params:
  """Returns shapes and dtypes of a module's parameters, as a plain nested dict.

  Args:
    config: the encoder's shape.
    module: one of `heads`; None means the encoder itself.
  """
  module = module or _ENCODERS[type(config)]
  return nnx.to_pure_dict(_graph(module, config, jnp.dtype(jnp.float32))[1])


def init_params(
  config: EncoderConfig, rng: jax.Array, module: type[nnx.Module] | None = None
) -> Params:
  """Draws float32 parameters of a module, as `abstract_params` describes them."""
  module = module or _ENCODERS[type(config)]
  built = module(config, jnp.dtype(jnp.float32), nnx.Rngs(params=rng))
  return nnx.to_pure_dict(nnx.split(built)[1])


def _run(
  params,
  config,
  input_ids,
  attention_mask,
  *,
  rng=None,
  dtype=jnp.float32,
  packing=None,
  row_ids=None,
  token=None,
  **arguments,
):
  """Returns the layout of a batch, and what `family.Encoder` returns for it."""
  layout = Layout(attention_mask.astype(bool), packing, row_ids)
  encoder = _bind(_ENCODERS[type(config)], config, dtype, params)
  input_ids = input_ids.astype(jnp.int32)
  if token:
    arguments["positions"] = token(attention_mask).astype(jnp.int32)[:, None]
  return layout, encoder(input_ids, layout, rng, **arguments)


def hidden_states(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  **options: Unpack[Options],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes hidden states of a batch of single sentences.

  Args:
    params: the encoder's parameters.
    config: their shape.
    input_ids: token ids, [B, S].
    attention_mask: true for tokens, false for padding, [B, S]; or numbers, where
      `pooling.LEFT_OUT` marks tokens that are not pooled.
    **options: see `Options`.

  Returns:
    Three [B, S, D]: after the embeddings, before the last layer, after it.
    Padding has states too, which mean nothing.
  """
  layout, found = _run(params, config, input_ids, attention_mask, **options)
  *states, _ = found
  return tuple(map(layout.grid, states))


def states_at(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  positions: jax.Array,
  **options: Unpack[Options],
) -> jax.Array:
  """Computes the last hidden states of a few tokens of each sentence.

  The last layer computes nothing else. The states and the arguments are those of
  `hidden_states`; in addition, positions has the places of the tokens, [B, K] int32.

  Returns:
    [B, K, D].
  """
  _, (*_, last, _) = _run(
    params, config, input_ids, attention_mask, positions=positions, **options
  )
  return last


def encode(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  *,
  pooling: str,
  **options: Unpack[Options],
) -> jax.Array:
  """Computes sentence embeddings, [B, D] float32.

  The arguments are those of `hidden_states` and the name of a pooling that
  `pooling.get` knows.
  """
  return _encode(params, config, input_ids, attention_mask, (), pooling, options)[0]


def encode_with_layers(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  *,
  layers: tuple[int, ...],
  pooling: str,
  **options: Unpack[Options],
) -> tuple[jax.Array, jax.Array]:
  """Computes embeddings, and those of earlier layers in the same forward pass.

  The arguments are those of `encode` and the layers, counted from 1, all before the
  last. An earlier layer's state is pooled as the last one's is; the poolings of two
  layers take its mean over tokens.

  Returns:
    The result of `encode`, [B, D], and that of each layer in order, [B, L, D]; float32.
  """
  embeddings, between = _encode(
    params, config, input_ids, attention_mask, layers, pooling, options
  )
  return embeddings, jnp.stack(between, axis=1)


def _encode(params, config, input_ids, attention_mask, layers, pooling, options):
  """Computes embeddings [B, D], and a list of those after `layers`."""
  pooling = pooling_lib.get(pooling)
  beside = pooling.beside
  # The encoder always returns these; a single layer is both the first and the last.
  is_asked = beside not in (None, 0, -2, config.num_layers)
  layout, (embedded, previous, last, between) = _run(
    params,
    config,
    input_ids,
    attention_mask,
    token=pooling.token,
    layers=(beside,) * is_asked + tuple(layers),
    **options,
  )
  if is_asked:
    other, *between = between
  else:
    other = {0: embedded, -2: previous}.get(beside, last)
  pool = lambda state: pooling.reduce(layout.grid(state), attention_mask)
  pooled = [pool(each) for each in between]
  if pooling.token:
    return last[:, 0].astype(jnp.float32), pooled
  if beside is None:
    return pool(last), pooled
  mean = (last.astype(jnp.float32) + other.astype(jnp.float32)) / 2
  return pool(mean), pooled


def detect_replaced(
  params: Params,
  config: EncoderConfig,
  input_ids: jax.Array,
  attention_mask: jax.Array,
  embeddings: jax.Array,
  **options: Unpack[Options],
) -> jax.Array:
  """Computes the logit that each token was replaced, [B, S] float32.

  Args:
    params: `encoder` and `head`, a `TokenHead`.
    config: their shape.
    input_ids: token ids of edited sentences, [B, S].
    attention_mask: true for tokens, [B, S].
    embeddings: those of the sentences before editing, [B, D]; they stand in for
      [CLS].
    **options: see `Options`; there is no packing.
  """
  _, (*_, states, _) = _run(
    params["encoder"],
    config,
    input_ids,
    attention_mask,
    packing=None,
    first_states=embeddings,
    **options,
  )
  head = _bind(TokenHead, config, jnp.float32, params["head"])
  return head(states.astype(jnp.float32))


def project(params: Params, config: EncoderConfig, embeddings: jax.Array) -> jax.Array:
  """Applies the training-only projection to embeddings [B, D]: [B, D] float32."""
  return _bind(Projection, config, jnp.float32, params)(embeddings)


def predict(params: Params, config: EncoderConfig, embeddings: jax.Array) -> jax.Array:
  """Applies a `Predictor` to embeddings [B, D]: [B, D] float32."""
  return _bind(Predictor, config, jnp.float32, params)(embeddings)


def score_tokens(
  head: Params,
  encoder: Params,
  config: EncoderConfig,
  hidden: jax.Array,
  *,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Computes language-model logits of hidden states [..., D]: [..., V].

  The matrix is the head's `decoder` where it has one, or that of the word embeddings.
  """
  rest = {name: part for name, part in head.items() if name != "decoder"}
  module = _bind(LanguageModelHead, config, dtype, rest)
  matrix = head.get("decoder", encoder["embeddings"]["word"])
  return module(hidden, matrix["embedding"])


def keep_layers(
  params: Params, config: EncoderConfig, num_layers: int
) -> tuple[Params, EncoderConfig]:
  """Cuts an encoder to its first num_layers layers, 1 to all: a cheap student."""
  layers = jax.tree.map(lambda x: x[:num_layers], params["layers"])
  return (
    {**params, "layers": layers},
    dataclasses.replace(config, num_layers=num_layers),
  )

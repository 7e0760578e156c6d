"""A family of encoders: a file like `bert`, with a shape and a module.

The rest of the code knows a family only through what is here. A new family is a file
with its own `EncoderConfig` and `Encoder` and a line in `encoder`; its folders need a
file and a line in `hub`.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol

from flax import nnx
import jax

from dcse_jax.model.attention import Reach
from dcse_jax.model.packing import Layout

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """The shape of a family's masked-language-model head.

  Attributes:
    activation: a key of `layers.ACTIVATIONS`.
    dense_bias: whether its linear layer has a bias.
    norm_bias: whether its LayerNorm has one.
    bias: whether the scores have one.
    width: the width of what is scored, like that of a token's embedding; None: as
      in a state.
  """

  activation: str
  dense_bias: bool = True
  norm_bias: bool = True
  bias: bool = True
  width: int | None = None


@dataclasses.dataclass(frozen=True)
class Work:
  """The matrix products of an encoder: a multiplication and an addition each.

  Attributes:
    token: FLOPs of a layer's linear layers for each token.
    key_value: the part of these for keys and values.
    pair: FLOPs of a query and a key: scores and weighted values.
    reaches: which keys a query meets, for each layer.
    before: FLOPs of a token before the first layer.
  """

  token: int
  key_value: int
  pair: int
  reaches: tuple[Reach, ...]
  before: int = 0


class EncoderConfig(Protocol):
  """The shape of an encoder: a frozen dataclass with this name in each family.

  Digests of models hold its `repr`: a family's fields, their order and their defaults
  stay as they are once models are made with them.

  Attributes:
    model_type: the architecture, as config.json names it.
    pad_token_id: the id that fills places where a sentence has no token.
    activation: a key of `layers.ACTIVATIONS`, e.g. "gelu" (exact).
    initializer_range: standard deviation of new weights.
  """

  model_type: str
  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  layer_norm_eps: float
  activation: str
  initializer_range: float
  pad_token_id: int

  @property
  def max_tokens(self) -> int:
    """The longest sentence, in tokens."""

  @property
  def language_model(self) -> LanguageModel | None:
    """The head of a masked-language model; None for a family without one."""

  @property
  def work(self) -> Work:
    """The matrix products of the encoder."""


def with_pooler(config: EncoderConfig, has_pooler: bool) -> EncoderConfig:
  """Returns the shape with a pooler or without, in a family that may have one.

  It takes no part here; it is kept so that an exported folder is complete.
  """
  if not hasattr(config, "has_pooler"):
    return config
  return dataclasses.replace(config, has_pooler=has_pooler)


def _dropouts(config: EncoderConfig) -> list[str]:
  return [f.name for f in dataclasses.fields(config) if "dropout" in f.name]


def has_dropout(config: EncoderConfig) -> bool:
  """Returns whether two passes over a sentence differ in training."""
  return any(getattr(config, name) > 0 for name in _dropouts(config))


def with_dropout(config: EncoderConfig, rate: float) -> EncoderConfig:
  """Returns the shape with one rate for all of its dropouts, in [0, 1)."""
  return dataclasses.replace(config, **dict.fromkeys(_dropouts(config), rate))


class Encoder(Protocol):
  """An `nnx.Module`, from token ids to states.

  Among its parameters are `layers`, each with a leading axis over the layers, and the
  word embeddings `embeddings.word.embedding`, [V, D].
  """

  def __init__(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
    """Draws new parameters; dtype is that of the matrix products."""

  def __call__(
    self,
    input_ids: jax.Array,
    layout: Layout,
    rng: jax.Array | None,
    positions: jax.Array | None = None,
    layers: Sequence[int] = (),
    first_states: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Computes states, arranged as the layout says.

    Args:
      input_ids: [N, S] int32.
      layout: where the tokens stand.
      rng: draws the dropout masks; None turns dropout off.
      positions: [N, K]; only these tokens get last states, [N, K, D].
      layers: counted from 1, all before the last.
      first_states: [N, D]; they replace first tokens' embeddings, in a layout with
        its padding.

    Returns:
      The states after the embeddings, before the last layer and after it, and a tuple
      of those after `layers`.
    """

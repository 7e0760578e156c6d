"""Heads: what stands behind an encoder's states and embeddings.

Training uses the modules; evaluation and exported folders use `Head`.
"""

from collections.abc import Callable, Iterator
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import layers as layers_lib
from dcse_jax.model.family import EncoderConfig
from dcse_jax.model.family import Params


class Projection(nnx.Module):
  """A linear layer and tanh on the embedding while training; dropped at evaluation."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.dense = layers_lib.linear(
      config, config.hidden_size, config.hidden_size, dtype, rngs
    )

  def __call__(self, embeddings):
    return jnp.tanh(self.dense(embeddings))


def make_linear(d_in: int, d_out: int) -> Callable[..., nnx.Linear]:
  """Makes a builder, like the modules here, of a linear map from d_in to d_out."""
  return lambda config, dtype, rngs: layers_lib.linear(config, d_in, d_out, dtype, rngs)


class Predictor(nnx.Module):
  """Two linear layers from one model's embedding to another's."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    width = config.hidden_size
    self.up = layers_lib.linear(config, width, width, dtype, rngs)
    self.down = layers_lib.linear(config, width, width, dtype, rngs)

  def __call__(self, embeddings):
    return self.down(jax.nn.relu(self.up(embeddings)))


class TokenHead(nnx.Module):
  """A linear layer that gives each token one logit."""

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.dense = layers_lib.linear(config, config.hidden_size, 1, dtype, rngs)

  def __call__(self, states):
    return self.dense(states)[..., 0]


class LanguageModelHead(nnx.Module):
  """Scores over the vocabulary, by the matrix of the word embeddings or another.

  The shape is `config.language_model`, which decoders have none of.
  """

  def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs):
    self.shape = shape = config.language_model
    d_in, width = config.hidden_size, shape.width or config.hidden_size
    narrow = dataclasses.replace(config, hidden_size=width)
    self.dense = layers_lib.linear(config, d_in, width, dtype, rngs, shape.dense_bias)
    self.norm = layers_lib.layer_norm(narrow, dtype, rngs, shape.norm_bias)
    if shape.bias:
      self.bias = nnx.Param(jnp.zeros(config.vocab_size))

  def __call__(self, hidden, matrix):
    hidden = layers_lib.ACTIVATIONS[self.shape.activation](self.dense(hidden))
    hidden = self.norm(hidden)
    scores = hidden @ matrix.astype(hidden.dtype).T
    return scores + self.bias[...] if self.shape.bias else scores


@dataclasses.dataclass(frozen=True)
class Head:
  """A dense layer after the pooling: sentence-transformers' Dense, SimCSE's mlp.

  Attributes:
    kernel: [D, D_out] float32.
    bias: [D_out] float32.
    activation: a key of `ACTIVATIONS`.
    then: the dense layer that follows, if any.
  """

  ACTIVATIONS = {
    "Tanh": np.tanh,
    "Identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
  }

  kernel: np.ndarray
  bias: np.ndarray
  activation: str = "Tanh"
  then: "Head | None" = None

  def __call__(self, embeddings: np.ndarray) -> np.ndarray:
    """Maps embeddings [n, D] to those of the last layer, [n, D_out]."""
    for layer in self.layers():
      activate = self.ACTIVATIONS[layer.activation]
      embeddings = activate(embeddings @ layer.kernel + layer.bias)
    return embeddings

  def layers(self) -> Iterator["Head"]:
    """Yields this layer and those that follow."""
    layer = self
    while layer is not None:
      yield layer
      layer = layer.then

  @property
  def size(self) -> int:
    """The width of the last layer's output."""
    return [len(layer.bias) for layer in self.layers()][-1]


def trained_head(params: Params) -> Head | None:
  """Returns the heads that were trained along, as one that a folder keeps.

  Args:
    params: trained parameters, perhaps with `projection`, and with `teacher_map`, which
      comes after it; without either, None is returned.
  """
  head = None
  for name, activation in (("teacher_map", "Identity"), ("projection", "Tanh")):
    if name in params:
      dense = params[name].get("dense", params[name])
      kernel, bias = (np.asarray(dense[part]) for part in ("kernel", "bias"))
      head = Head(kernel, bias, activation, then=head)
  return head

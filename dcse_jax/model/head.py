"""Dense layers after the pooling."""

from collections.abc import Iterator
import dataclasses

import numpy as np

from dcse_jax.model import encoder as encoder_lib


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
    """[n, D] to [n, D_out] of the last layer."""
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
    """Numbers in what the last layer gives."""
    return [len(layer.bias) for layer in self.layers()][-1]


def projection_head(params: encoder_lib.Params) -> Head | None:
  """The training-only projection as a head that a folder keeps.

  Args:
    params: trained, with `projection`; None is returned where there is none.
  """
  if "projection" not in params:
    return None
  dense = params["projection"]["dense"]
  return Head(np.asarray(dense["kernel"]), np.asarray(dense["bias"]))

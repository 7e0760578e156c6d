"""The shape of a model in a folder or on the hub, without its weights."""

import dataclasses

from dcse_jax.hub import dense
from dcse_jax.hub import folder as folder_lib
from dcse_jax.hub import modules
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.heads import Head


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model without weights and tokenizer.

  Attributes:
    config: the encoder's, with a pooler where the family has one, since released weights
      do.
    pooling: the name of its pooling.
    head: the dense layers after the pooling, of zeros.
    truncate_dim: how many leading numbers of an embedding are kept; None keeps all.
  """

  config: encoder_lib.EncoderConfig
  pooling: str
  head: Head | None
  truncate_dim: int | None


def load(name: str, *, default_pooling: str) -> Shape:
  """Loads the shape of a model, without its weights and tokenizer.

  Args:
    name: a name that `folder.locate` takes; only a hub model's small files are
      downloaded.
    default_pooling: see `folder.load`.

  Raises:
    UserError: see `folder.load`.
  """
  folder = folder_lib.locate(name, weights=False)
  _, config, about = modules.read(folder)
  return Shape(
    config,
    folder_lib.choose_pooling(about.pooling, default_pooling),
    dense.read_shapes(about.dense),
    about.truncate_dim,
  )

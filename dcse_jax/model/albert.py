"""ALBERT: BERT with narrow embeddings and one layer in place of all.

Lan et al., ALBERT, 2020 (arXiv:1909.11942).
"""

import dataclasses

from dcse_jax.model import bert

Encoder = bert.Encoder


@dataclasses.dataclass(frozen=True)
class EncoderConfig(bert.EncoderConfig):
  """The shape of an ALBERT, whose layers share their parameters.

  Attributes:
    embedding_size: the width of a token's embedding.
  """

  embedding_size: int = 128

  @property
  def is_projected(self) -> bool:
    return True

  @property
  def num_own_layers(self) -> int:
    return 1

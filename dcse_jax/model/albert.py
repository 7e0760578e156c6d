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


def new_config(*, max_tokens: int, hidden_size: int, **fields) -> EncoderConfig:
  """Makes the shape of a new ALBERT for sentences of max_tokens, from config fields.

  It has dropout, which released ones lack: without it two views would be the same.
  """
  return EncoderConfig(
    model_type="albert",
    max_positions=max(512, max_tokens),
    type_vocab_size=2,
    activation="gelu_new",
    hidden_size=hidden_size,
    embedding_size=min(128, hidden_size),
    has_pooler=True,
    **fields,
  )

"""ELECTRA: BERT with embeddings of a width of their own.

Clark et al., ELECTRA, 2020 (arXiv:2003.10555).
"""

import dataclasses

from dcse_jax.model import bert
from dcse_jax.model import family

Encoder = bert.Encoder


@dataclasses.dataclass(frozen=True)
class EncoderConfig(bert.EncoderConfig):
  """The shape of an ELECTRA.

  Attributes:
    embedding_size: the width of a token's embedding.
  """

  embedding_size: int = 128

  @property
  def language_model(self) -> family.LanguageModel:
    # The generator's head has GELU, whatever its layers have.
    return family.LanguageModel("gelu", width=self.embedding_size)


def new_config(*, max_tokens: int, hidden_size: int, **fields) -> EncoderConfig:
  """Makes the shape of a new ELECTRA for sentences of max_tokens, from config fields."""
  return EncoderConfig(
    model_type="electra",
    max_positions=max(512, max_tokens),
    type_vocab_size=2,
    hidden_size=hidden_size,
    embedding_size=min(128, hidden_size),
    **fields,
  )

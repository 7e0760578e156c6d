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

"""Pure losses: arrays in, one value per anchor out; see each family's file."""

from dcse_jax.losses.contrastive import focal_info_nce
from dcse_jax.losses.contrastive import info_nce
from dcse_jax.losses.distillation import average_similarity
from dcse_jax.losses.distillation import distillation
from dcse_jax.losses.distillation import group_shuffle
from dcse_jax.losses.language_model import masked_language_model
from dcse_jax.losses.similarity import cosine_similarity

__all__ = (
  "average_similarity",
  "cosine_similarity",
  "distillation",
  "focal_info_nce",
  "group_shuffle",
  "info_nce",
  "masked_language_model",
)

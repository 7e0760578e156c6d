"""Pure losses: arrays in, one value an anchor out. Each file has one family.

Every module here is imported, so that its terms are in `TERMS`.
"""

import importlib
import pkgutil

from dcse_jax.losses.contrastive import focal_info_nce
from dcse_jax.losses.contrastive import info_nce
from dcse_jax.losses.distillation import distillation
from dcse_jax.losses.distillation import join_teachers
from dcse_jax.losses.distillation import share_one_hot
from dcse_jax.losses.distillation import similarity_divergence
from dcse_jax.losses.group_shuffle import group_shuffle
from dcse_jax.losses.language_model import masked_language_model
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.terms import TERMS
from dcse_jax.losses.terms import Term
from dcse_jax.losses.terms import inputs_of
from dcse_jax.losses.terms import names
from dcse_jax.losses.terms import parse

for _module in pkgutil.iter_modules(__path__):
  importlib.import_module(f"{__name__}.{_module.name}")

__all__ = (
  "TERMS",
  "Term",
  "cosine_similarity",
  "distillation",
  "focal_info_nce",
  "group_shuffle",
  "info_nce",
  "join_teachers",
  "masked_language_model",
  "names",
  "parse",
  "share_one_hot",
  "similarity_divergence",
  "inputs_of",
)

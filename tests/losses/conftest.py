"""Losses promote neither ranks nor types: broadcasting must be explicit.

Elsewhere JAX's defaults hold: Flax's modules and Optax's schedules rely on them.
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict():
  with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
    yield

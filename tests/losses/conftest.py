"""Losses promote neither ranks nor types: what broadcasts says so.

Elsewhere both are as JAX has them: Flax's modules and Optax's schedules rely on it.
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict():
  with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
    yield

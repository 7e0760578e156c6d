"""The rate of dropout that a config sets."""

import jax
import pytest

from dcse_jax import config as config_lib
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.recipe import compose
from dcse_jax.recipe import validate
from dcse_jax.runtime.errors import UserError
from tests import models

MODEL = models.tiny_model(1, num_layers=1)


def make_objective(**fields):
  config = config_lib.default()
  config.objective = "info_nce"
  config.update(fields)
  return compose.make_objective(config, MODEL)


def test_without_a_rate_the_models_own_is_used():
  assert make_objective().config == MODEL.config
  assert MODEL.config.dropout > 0


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_rate_takes_the_place_of_the_models_own(rate):
  objective = make_objective(dropout=rate)
  batch, params = models.random_batch(0), {"encoder": MODEL.params}

  @jax.jit
  def loss(key):
    return objective(params, StepInputs(batch, key))[0]

  # Without dropout the key changes nothing.
  values = {float(loss(jax.random.key(i))) for i in range(2)}
  assert len(values) == (1 if rate == 0 else 2)


@pytest.mark.parametrize("rate", [-0.5, -2.0, 1.0])
def test_a_rate_out_of_range_is_refused(rate):
  config = config_lib.default()
  config.dropout = rate
  with pytest.raises(UserError, match="dropout"):
    validate.check(config)

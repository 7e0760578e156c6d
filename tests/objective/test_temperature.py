"""The temperature that is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses
from dcse_jax.objective.inputs import Start
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective
from tests import models

BATCH = models.random_batch(0, batch=8, columns=2)
START = Start("m", 16, True, False, 2)


def run(objective="symmetric_info_nce", log_temperature=None, **settings):
  """Returns the loss, its parts and the gradients, by parameters."""
  model = models.tiny_model(1, num_layers=1)
  terms = losses.parse(objective, {name: settings for name in losses.names(objective)})
  loss_fn = Objective(terms, model.config, "mean")
  params = loss_fn.init_params(model.params, jax.random.key(0))
  if log_temperature is not None:
    params["log_temperature"] = jnp.float32(log_temperature)
  given = StepInputs(BATCH, jax.random.key(3))
  compute = jax.jit(jax.value_and_grad(lambda p: loss_fn(p, given), has_aux=True))
  return compute(params)


def test_a_learnt_temperature_starts_from_the_fixed_one():
  (fixed, _), gradient = run(temperature=0.1)
  assert "log_temperature" not in gradient
  (learnt, parts), _ = run(temperature=0.1, temperature_mode="learnt")
  assert learnt == pytest.approx(float(fixed), rel=1e-6)
  assert parts["temperature"] == pytest.approx(0.1, rel=1e-6)


def test_the_gradient_of_a_learnt_temperature_is_that_of_the_fixed_one():
  loss = lambda temperature: float(run(temperature=temperature)[0][0])
  step = 1e-2
  by_difference = (loss(0.2 * np.exp(step)) - loss(0.2 * np.exp(-step))) / (2 * step)
  _, gradient = run(temperature=0.2, temperature_mode="learnt")
  assert gradient["log_temperature"] == pytest.approx(by_difference, rel=1e-2)


def test_a_learnt_temperature_does_not_fall_below_a_hundredth():
  (_, parts), gradient = run(temperature_mode="learnt", log_temperature=np.log(1e-3))
  assert parts["temperature"] == pytest.approx(0.01)
  assert gradient["log_temperature"] == 0


def test_terms_that_learn_one_temperature_start_it_from_one_number():
  settings = {
    "info_nce": dict(temperature_mode="learnt", temperature=0.1),
    "symmetric_info_nce": dict(temperature_mode="learnt", temperature=0.2),
  }
  terms = losses.parse("info_nce + symmetric_info_nce", settings)
  objective = Objective(terms, models.tiny_model(1, num_layers=1).config, "mean")
  assert "not from 0.1 and 0.2" in objective.validate(START)

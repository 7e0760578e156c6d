"""A temperature that is trained along."""

import jax.numpy as jnp

from dcse_jax.objective.inputs.provider import Provider

# CLIP scales cosines by no more than 100.
_LOWEST = 0.01


class Temperature(Provider):
  """The learnt temperature, a scalar, for terms with the setting `temperature_mode`.

  It starts from the term's `temperature`. Its logarithm is what is trained, and it never
  falls below 0.01.
  """

  offers = of_step = ("learnt_temperature",)

  def _terms(self, objective):
    learnt = lambda each: each.settings.get("temperature_mode") == "learnt"
    return [each for each in objective.terms if learnt(each)]

  def is_asked(self, objective):
    return bool(self._terms(objective))

  def validate(self, objective, start):
    first = {each.settings["temperature"] for each in self._terms(objective)}
    if len(first) > 1:
      return (
        "terms that learn a temperature have one together: start it from one number, "
        f"not from {' and '.join(f'{value:g}' for value in sorted(first))}"
      )
    return ""

  def init_params(self, objective, encoder, init, language_model):
    first = self._terms(objective)[0].settings["temperature"]
    return {"log_temperature": jnp.log(jnp.float32(first))}

  def join(self, objective, params, inputs, offered):
    learnt = jnp.exp(params["log_temperature"])
    return {"learnt_temperature": jnp.maximum(learnt, _LOWEST)}

  def report(self, of_step):
    return {"temperature": of_step["learnt_temperature"]}

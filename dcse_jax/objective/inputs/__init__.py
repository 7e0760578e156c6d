"""The inputs that a step offers to terms: one provider a file, asked in a fixed order.

Doors: `PROVIDERS`, `OFFERED` (what a term may ask for), `provider` (the base class).
"""

from dcse_jax.objective.inputs.candidates import Candidates
from dcse_jax.objective.inputs.clusters import Clusters
from dcse_jax.objective.inputs.masked import Masked
from dcse_jax.objective.inputs.predictions import Predictions
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.objective.inputs.provider import Sentences
from dcse_jax.objective.inputs.provider import Size
from dcse_jax.objective.inputs.provider import Start
from dcse_jax.objective.inputs.provider import StepInputs
from dcse_jax.objective.inputs.queue import Queue
from dcse_jax.objective.inputs.replaced import Replaced
from dcse_jax.objective.inputs.retrieved import Retrieved
from dcse_jax.objective.inputs.served import Served
from dcse_jax.objective.inputs.teacher import Teacher
from dcse_jax.objective.inputs.temperature import Temperature
from dcse_jax.objective.inputs.tokens import Step
from dcse_jax.objective.inputs.tokens import Tokens
from dcse_jax.objective.inputs.undropped import Undropped
from dcse_jax.objective.inputs.views import Views

# In their order: a provider may use the arrays of those before it.
PROVIDERS: tuple[Provider, ...] = (
  Views(),
  Served(),
  Undropped(),
  Retrieved(),
  Replaced(),
  Masked(),
  Predictions(),
  Tokens(),
  Clusters(),
  Candidates(),
  Teacher(),
  Queue(),
  Temperature(),
  Step(),
)


def _names(provider: Provider) -> list[str]:
  names = [*provider.offers]
  if not provider.of_tokens:
    names += [f"all_{n}" for n in provider.offers if n not in provider.of_step]
  return names


# Every name that a term may ask for.
OFFERED = tuple(name for provider in PROVIDERS for name in _names(provider))

__all__ = (
  "OFFERED",
  "PROVIDERS",
  "Provider",
  "Sentences",
  "Size",
  "Start",
  "StepInputs",
)

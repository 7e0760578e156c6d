"""How long a run still takes, for people who watch it."""

import dataclasses

from dcse_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class TimeLeft:
  """What is left once a model is trained, counted in steps of its round.

  Attributes:
    name: the round's.
    in_round: steps of the round's later models.
    in_recipe: steps that the later rounds' models are worth.
  """

  name: str
  in_round: float
  in_recipe: float

  def tell(self, steps: int, seconds: float) -> str:
    """Says how long the round and the recipe still take.

    Args:
      steps: that the model still has.
      seconds: that one of them takes.
    """
    in_round = steps + self.in_round
    text = f"{duration(in_round * seconds)} left in round {self.name}"
    if self.in_recipe:
      text += f", {duration((in_round + self.in_recipe) * seconds)} in all"
    return f"({text})"


def duration(seconds: float) -> str:
  """Writes a duration in the unit that fits it: "50 s", "12 min", "3.5 h"."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  if seconds < 90 * 60:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


def work(config: config_lib.ConfigDict, num_models: int) -> float:
  """Estimates the work of a round's models by the tokens that they read."""
  return num_models * config.num_train_steps * tokens_of_step(config)


def tokens_of_step(config: config_lib.ConfigDict) -> int:
  """Returns how many tokens a step of a round reads at most."""
  return config.batch_size * config.max_length

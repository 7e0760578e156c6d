"""AdamW with warm-up, decay and clipping."""

import jax
import optax


def make_schedule(
  *, learning_rate: float, schedule: str, warmup_steps: int, num_steps: int
) -> optax.Schedule:
  """Makes the learning rate by step: linear warm-up, then decay to 0 at num_steps.

  Args:
    learning_rate: the peak.
    schedule: "linear" or "cosine".
    warmup_steps: how many steps the rate takes from 0 to the peak.
    num_steps: the step where it is 0; training may end before.
  """
  rest = max(num_steps - warmup_steps, 1)
  decays = {
    "linear": optax.linear_schedule(learning_rate, 0.0, rest),
    "cosine": optax.cosine_decay_schedule(learning_rate, rest),
  }
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, decays[schedule]], [warmup_steps])


def _is_decayed(params):
  """Marks the parameters that decay: matrices, not biases or LayerNorm, as in BERT."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in ("kernel", "embedding"), params
  )


def make_optimizer(
  schedule: optax.Schedule, *, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
  """Makes AdamW, with PyTorch's betas and epsilon, after clipping by global norm."""
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(schedule, weight_decay=weight_decay, mask=_is_decayed),
  )

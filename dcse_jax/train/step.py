"""One training step, a pure function of the global batch.

A loss function takes parameters and `StepInputs`, and returns the scalar loss and its
named parts. A part `carry`, if it is there, is handed to the next step.
`make_train_step` turns any such function into a step.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dcse_jax.objective.inputs import StepInputs
from dcse_jax.runtime import backend

Metrics = dict[str, jax.Array]
# (params, inputs) -> loss, parts.
LossFn = Callable[[Any, StepInputs], tuple[jax.Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that changes from step to step.

  Attributes:
    params: those of the encoder and of training-only heads.
    step: how many batches there were so far.
    skipped: how many of these changed nothing, because a loss or a gradient was not
      finite.
    rng: raw data of the run's key; a step folds its number into it.
    carry: what the loss hands from step to step without training it.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  skipped: jax.Array
  rng: jax.Array
  carry: Any


def init_state(
  params: Any, tx: optax.GradientTransformation, rng: jax.Array, carry: Any = ()
) -> TrainState:
  """Makes the state before the first step."""
  return TrainState(
    params=params,
    opt_state=tx.init(params),
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    rng=jax.random.key_data(rng),
    carry=carry,
  )


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  num_steps: int,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Makes the step (state, batch, frozen, packing) -> (state, metrics).

  It is not yet jitted. Packing must be static; None leaves the padding in. A batch
  whose loss or gradient is not finite changes neither parameters nor optimizer; the
  metric `is_finite` says so.
  """

  def train_step(state, batch, frozen, packing=None):
    rng = jax.random.wrap_key_data(state.rng)
    rng = jax.random.fold_in(rng, state.step)
    (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params,
      StepInputs(
        batch=batch,
        rng=rng,
        frozen=frozen,
        packing=packing,
        carry=state.carry,
        progress=state.step / num_steps,
      ),
    )
    if backend.current() == "gpu":
      # Otherwise every pass that reads a stack's gradients joins those of its layers anew.
      grads = jax.lax.optimization_barrier(grads)
    carry = parts.pop("carry", state.carry)
    norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    keep = lambda new, old: jnp.where(is_finite, new, old)
    metrics = {
      "loss": loss,
      **parts,
      "gradient_norm": norm,
      # The optimizer's own count leaves out skipped steps too.
      "learning_rate": schedule(state.step - state.skipped),
      "is_finite": is_finite,
    }
    state = dataclasses.replace(
      state,
      params=jax.tree.map(
        keep, optax.apply_updates(state.params, updates), state.params
      ),
      opt_state=jax.tree.map(keep, opt_state, state.opt_state),
      step=state.step + 1,
      skipped=state.skipped + ~is_finite,
      carry=jax.tree.map(keep, carry, state.carry),
    )
    return state, metrics

  return train_step

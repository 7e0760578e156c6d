"""A stack of layers, run so that it compiles in the time of a few.

The parameters of all layers are one tree with a leading axis, or those of a single
layer that all share. Layers of one kind, or turns of a pattern of kinds, run under
`scan`; the last layer runs by itself, since many readers want few of its tokens.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from dcse_jax.runtime import backend


def _unroll(num_layers: int) -> int:
  """Counts the layers in one turn of the loop over them."""
  # A loop copies whatever the backward pass reads: on a GPU a third of all that a step
  # moves. On a TPU compiling is expensive and copies are cheap.
  return 1 if backend.current() == "tpu" else num_layers


def _period(kinds: Sequence[Hashable]) -> int:
  """Returns the number of layers after which kinds repeat."""
  repeats = lambda p: all(kinds[i] == kinds[i - p] for i in range(p, len(kinds)))
  return next((p for p in range(1, len(kinds)) if repeats(p)), len(kinds) or 1)


def make_stack(layer: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs) -> Any:
  """Makes new layers as one module, whose parameters have a leading axis."""

  @nnx.split_rngs(splits=num_layers)
  @nnx.vmap(in_axes=0, out_axes=0)
  def make(rngs):
    return layer(rngs)

  return make(rngs)


def run_stack(
  stack: nnx.Module,
  first: jax.Array,
  keys: jax.Array | None,
  *,
  kinds: Sequence[Hashable],
  call: Callable[..., jax.Array],
  call_last: Callable[..., jax.Array],
  layers: Sequence[int] = (),
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
  """Runs the layers of `make_stack` one after the other.

  Args:
    stack: the layers, as many as kinds, or one in place of all.
    first: the input of the first layer.
    keys: dropout keys, [L, K, 2]; None means no dropout.
    kinds: what differs in each layer's program.
    call: runs one, given (layer, x, its K keys or Nones, its kind, its number from 0).
    call_last: the same for the last one.
    layers: those whose results are wanted, counted from 1, all before the last.

  Returns:
    What comes before the last layer and after it, and a tuple of what comes after
    `layers`.
  """
  layer_def, every = nnx.split(stack)
  num_layers, period = len(kinds), _period(kinds[:-1])
  shared = None
  if len(jax.tree.leaves(every)[0]) < num_layers:
    shared, every = jax.tree.map(lambda x: x[0], every), None
  turns = (num_layers - 1) // period
  looped = turns * period
  # They are split, not sliced: the gradient of a split is one concatenation.
  split = lambda x: jax.lax.split(x, (looped, *[1] * (num_layers - looped)))
  leaves, tree = jax.tree.flatten((every, keys, jnp.arange(num_layers)))
  parts = [jax.tree.unflatten(tree, part) for part in zip(*map(split, leaves))]
  in_turns = jax.tree.map(lambda x: x.reshape(turns, period, *x.shape[1:]), parts[0])

  def run(call, x, layer, i, kind):
    params, keys, number = jax.tree.map(lambda x: x[i], layer)
    params = shared if params is None else params
    keys = [None] * 3 if keys is None else keys
    return call(nnx.merge(layer_def, params), x, keys, kind, number)

  def turn(x, layer):
    states = []
    for i in range(period):
      x = run(call, x, layer, i, kinds[i])
      states.append(x)
    return x, states if layers else None

  x, states = jax.lax.scan(turn, first, in_turns, unroll=_unroll(num_layers))
  after = lambda layer: states[(layer - 1) % period][(layer - 1) // period]
  between = {layer: after(layer) for layer in layers if layer <= looped}
  for number, part in enumerate(parts[1:-1], start=looped):
    x = run(call, x, part, 0, kinds[number])
    between[number + 1] = x
  last = run(call_last, x, parts[-1], 0, kinds[-1])
  return x, last, tuple(between[layer] for layer in layers)

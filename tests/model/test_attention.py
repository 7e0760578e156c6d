"""Attention in blocks and in turns is attention, and its memory grows with the length."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax.model import stack
from dcse_jax.model.attention import Dropout
from dcse_jax.model.attention import Reach
from dcse_jax.model.attention import attend
from dcse_jax.model.dropout import make_keys
from dcse_jax.runtime import backend

EVERYWHERE = Reach()


def draw(length, *, batch=2, heads=2, kv_heads=1, size=4):
  """Draws queries, keys, values, a mask and the queries' rows."""
  rng = np.random.default_rng(0)
  make = lambda heads: rng.normal(size=(batch, length, heads, size)).astype(np.float32)
  mask = np.arange(length) < np.linspace(length, 1, batch).astype(int)[:, None]
  rows = np.arange(batch * length, dtype=np.int32).reshape(batch, length)
  return make(heads), make(kv_heads), make(kv_heads), mask, rows


def plain(query, key, value, mask, reach):
  """Computes attention by its definition, in float64."""
  key, value = (np.repeat(x, query.shape[2] // x.shape[2], 2) for x in (key, value))
  scores = np.einsum("nqhd,nkhd->nhqk", query, key, dtype=np.float64)
  offset = np.arange(mask.shape[1]) - np.arange(mask.shape[1])[:, None]
  seen = np.broadcast_to(mask[:, None, None], scores.shape).copy()
  if reach.before is not None:
    seen &= offset >= -reach.before
  if reach.after is not None:
    seen &= offset <= reach.after
  weights = np.exp(scores / np.sqrt(query.shape[-1])) * seen
  weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
  return np.einsum("nhqk,nkhd->nqhd", weights, value)


@pytest.mark.parametrize(
  "length, reach",
  [
    (50, Reach(4, 4)),  # Blocks, the last one short.
    (50, Reach(7, 0)),
    (50, Reach(0, 3)),
    (50, Reach(0, 0)),
    (20, Reach(4, 4)),  # At once.
    (9, Reach(None, 0)),
    (600, EVERYWHERE),  # In turns, the last one short.
    (600, Reach(None, 0)),
  ],
)
def test_attention_in_parts_is_attention(length, reach):
  query, key, value, mask, rows = draw(length)
  run = lambda *arrays: attend(*arrays, mask, Dropout(0.0, None, rows), reach=reach)
  ours = jax.jit(run)(query, key, value)
  expected = plain(query, key, value, mask, reach)
  np.testing.assert_allclose(np.asarray(ours)[mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize("length, reach", [(50, Reach(4, 3)), (600, EVERYWHERE)])
def test_parts_have_the_gradient_and_the_dropout_of_the_whole(length, reach):
  query, key, value, mask, rows = draw(length)
  dropped = Dropout(0.3, make_keys(jax.random.key(0), ()), jnp.asarray(rows))
  everywhere = np.tile(np.arange(length), (len(mask), 1))

  @functools.partial(jax.jit, static_argnames="is_whole")
  def gradients(arrays, is_whole):
    # Queries whose places are given are computed at once.
    places = everywhere if is_whole else None
    run = lambda *arrays: attend(*arrays, mask, dropped, reach=reach, positions=places)
    out, backward = jax.vjp(run, *arrays)
    return out, backward(jnp.cos(out) * mask[:, :, None, None])

  for one, other in zip(
    jax.tree.leaves(gradients((query, key, value), False)),
    jax.tree.leaves(gradients((query, key, value), True)),
  ):
    one, other = (np.asarray(x) * mask[:, :, None, None] for x in (one, other))
    np.testing.assert_allclose(one, other, atol=1e-5)


def temporary_bytes(length, reach):
  """Returns the memory of attention's gradient besides arguments and results."""
  query, key, value, mask, rows = draw(length, batch=1, heads=4, size=16)

  def loss(query, key, value):
    dropped = Dropout(0.0, None, rows)
    return jnp.sum(attend(query, key, value, mask, dropped, reach=reach) ** 2)

  program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, key, value).compile()
  return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("reach", [Reach(64, 64), EVERYWHERE])
def test_memory_grows_with_the_length_and_not_its_square(reach):
  one, two = (temporary_bytes(length, reach) for length in (2048, 4096))
  # Squares would grow fourfold, and the scores alone of all heads take 256 MiB.
  assert two < 2.2 * one
  assert two < 2**28


class Affine(nnx.Module):
  def __init__(self, rngs):
    self.weight = nnx.Param(jax.random.normal(rngs.params(), ()))


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("kinds", ["a", "aaaa", "abbabbab", "abcd", "abbb"])
def test_a_stack_runs_its_layers_in_order_each_as_its_kind(kinds, name):
  layers = stack.make_stack(Affine, len(kinds), nnx.Rngs(0))
  call = lambda layer, x, keys, kind, number: (
    x * layer.weight[...] + ord(kind) + 2.0**number
  )
  wanted = tuple(range(1, len(kinds)))
  with backend.traced_for(name):
    found = jax.jit(
      lambda x: stack.run_stack(
        layers, x, None, kinds=kinds, call=call, call_last=call, layers=wanted
      )
    )(1.0)
  x, expected = 1.0, []
  for number, kind in enumerate(kinds):
    x = x * float(layers.weight[...][number]) + ord(kind) + 2.0**number
    expected.append(x)
  previous, last, between = found
  np.testing.assert_allclose(last, expected[-1], rtol=1e-5)
  np.testing.assert_allclose(previous, ([1.0] + expected)[-2], rtol=1e-5)
  np.testing.assert_allclose(between, expected[:-1], rtol=1e-5)

"""Kernels for GPUs, run step by step on the CPU, against the plain forms."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax.model import attention
from dcse_jax.model import attention_kernel
from dcse_jax.model import bert
from dcse_jax.model import layers
from dcse_jax.model import norm_kernel
from dcse_jax.model import ops
from dcse_jax.model import packing
from dcse_jax.model import splash
from dcse_jax.model.dropout import dropout
from dcse_jax.runtime import mesh as mesh_lib

KEY = jnp.asarray([3, 5], jnp.uint32)


def normal(rng, *shape):
  return jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)


def assert_same(kernel, plain, arguments, g):
  """Results and gradients are equal to a few roundings of bfloat16, 2^-9 each."""
  expected, pull = jax.vjp(plain, *arguments)
  found, pull_back = jax.vjp(kernel, *arguments)
  np.testing.assert_array_equal(found, kernel(*arguments))
  pairs = zip((found, *pull_back(g)), (expected, *pull(g)))
  for mine, other in pairs:
    mine, other = (np.asarray(x, np.float32) for x in (mine, other))
    assert np.linalg.norm(mine - other) < 0.01 * np.linalg.norm(other)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_attention_in_one_pass_is_attention_with_the_same_dropout(rate):
  sentences, length, heads, width = 3, 16, 2, 16
  rng = np.random.default_rng(0)
  qkv = normal(rng, sentences, length, 3, heads, width)
  bias = jnp.asarray(rng.standard_normal((3, heads, width)), jnp.float32)
  mask = np.arange(length) < np.asarray([[16], [3], [9]])
  rows = jnp.arange(sentences * length, dtype=jnp.int32).reshape(mask.shape)
  of_heads = rows[:, None] * heads + np.arange(heads)[:, None]

  places = jnp.zeros((sentences, 2), jnp.int32)

  def kernel(qkv, bias):
    return attention_kernel.attend(qkv, bias, mask, of_heads, places, KEY, rate, True)

  def plain(qkv, bias):
    query, key, value = (qkv + bias.astype(qkv.dtype)).swapaxes(0, 2).swapaxes(1, 2)
    dropped = attention.Dropout(rate, KEY, rows)
    return attention.attend(query, key, value, mask, dropped)

  g = normal(rng, sentences, length, heads, width)
  assert_same(kernel, plain, (qkv, bias), g)


def test_attention_reads_packed_sentences_where_they_lie():
  """With room for the tokens, zeros follow the last; without, the last are lost."""
  lengths, length, heads, width = [9, 0, 16, 3, 1, 12], 16, 2, 16
  rng = np.random.default_rng(0)
  mask = jnp.asarray(np.arange(length) < np.asarray(lengths)[:, None])
  bias = jnp.asarray(rng.standard_normal(3 * heads * width), jnp.float32)
  run = functools.partial(
    attention_kernel.self_attend, heads=heads, rate=0.25, key=KEY, interpret=True
  )
  for tokens, lost in ((32, 0), (20, 5)):
    # Three sentences a group: 25 tokens, and 16.
    layout = packing.Layout(mask, packing.Packing(tokens, groups=2))
    rows = layout.grid_rows

    def kernel(qkv, bias, layout=layout, rows=rows):
      return run(qkv, bias, mask, rows, places=layout.places)

    def plain(qkv, bias, layout=layout, rows=rows):
      attended = run(layout.grid(qkv), bias, mask, rows)
      flat = layout.flat(attended)
      return jnp.where(jnp.arange(tokens)[:, None] < real[:, None, None], flat, 0)

    real = jnp.minimum(mask.reshape(2, -1).sum(axis=1), tokens)
    assert int(mask.sum() - real.sum()) == lost
    arguments = normal(rng, 2, tokens, 3 * heads * width), bias
    if lost:
      # What is lost is read as another token's here, and as nothing there.
      found = kernel(*arguments)
      np.testing.assert_array_equal(found[1], plain(*arguments)[1])
      assert np.isfinite(np.asarray(found[0], np.float32)).all()
    else:
      assert_same(kernel, plain, arguments, normal(rng, 2, tokens, heads * width))


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
def test_splash_attention_is_attention(is_causal):
  # Two heads share keys and values; the last of three blocks is half full.
  sentences, length, heads, width = 2, 320, 4, 64
  rng = np.random.default_rng(0)
  draw = lambda heads: jnp.asarray(
    rng.standard_normal((sentences, length, heads, width)), jnp.float32
  )
  arrays = draw(heads), draw(heads // 2), draw(heads // 2)
  mask = np.arange(length) < np.asarray([[length], [150]])
  rows = jnp.arange(sentences * length, dtype=jnp.int32).reshape(mask.shape)

  def kernel(*arrays):
    return splash.attend(
      *arrays, mask, is_causal=is_causal, divisor=50.0, block=128, interpret=True
    )

  def plain(*arrays):
    reach = attention.Reach(after=0 if is_causal else None)
    dropped = attention.Dropout(0.0, None, rows)
    return attention.attend(*arrays, mask, dropped, reach=reach, divisor=50.0)

  run = lambda fn: jax.vjp(lambda *x: fn(*x) * mask[:, :, None, None], *arrays)
  (found, pull), (expected, pull_plain) = run(kernel), run(plain)
  g = draw(heads)
  for mine, other in zip((found, *pull(g)), (expected, *pull_plain(g))):
    np.testing.assert_allclose(mine, other, atol=2e-5)


@pytest.mark.parametrize(("rate", "readers"), [(0.0, 1), (0.25, 2)])
def test_dropout_residual_and_norm_in_one_pass_are_the_three(rate, readers):
  # 192 is three parts of 64: no power of two.
  tokens, width, eps = 64, 192, 1e-12
  rng = np.random.default_rng(0)
  vector = lambda: jnp.asarray(1 + 0.1 * rng.standard_normal(width), jnp.float32)
  x, branch = normal(rng, tokens, width), normal(rng, tokens, width)
  rows = jnp.arange(tokens, dtype=jnp.int32) * 7

  # Each reader has a gradient of its own.
  g = normal(rng, readers * tokens, width)

  def kernel(*arrays):
    return jnp.concatenate(
      norm_kernel.add_and_norm(*arrays, rows, KEY, rate, eps, readers, True)
    )

  def plain(x, branch, branch_bias, weight, bias):
    branch = dropout(branch + branch_bias.astype(branch.dtype), rate, KEY, rows)
    return jnp.concatenate((ops.layer_norm(x + branch, weight, bias, eps),) * readers)

  assert_same(kernel, plain, (x, branch, vector(), vector(), vector()), g)


def test_the_gradient_of_a_frequent_token_is_summed_in_float32():
  """In bfloat16 a sum of ones would stay at 256: the next number is 258."""
  config = bert.new_config(
    max_tokens=8,
    vocab_size=5,
    hidden_size=4,
    num_layers=1,
    num_heads=1,
    intermediate_size=4,
  )
  table = layers.embed(config, 5, jnp.bfloat16, nnx.Rngs(0))
  graph, params = nnx.split(table)
  ids = jnp.full((64, 8), 3)

  def total(params):
    return nnx.merge(graph, params)(ids).astype(jnp.float32).sum()

  gradient = nnx.to_pure_dict(jax.grad(total)(params))["embedding"]
  np.testing.assert_array_equal(gradient, 512 * np.eye(5)[3][:, None] * np.ones(4))


def test_a_kernel_sees_the_rows_of_its_device_and_their_gradients_are_summed():
  sentences, length, heads, width = 8, 16, 2, 16
  rng = np.random.default_rng(0)
  qkv = normal(rng, sentences, length, 3 * heads * width)
  bias = jnp.asarray(rng.standard_normal(3 * heads * width), jnp.float32)
  mask = np.arange(length) < np.arange(9, 17)[:, None]
  rows = jnp.arange(sentences * length, dtype=jnp.int32).reshape(mask.shape)
  mesh = mesh_lib.make_mesh(jax.devices()[:4])

  def loss(mesh):
    def fn(qkv, bias):
      with mesh_lib.traced_over(mesh):
        attended = attention_kernel.self_attend(
          qkv, bias, mask, rows, heads=heads, rate=0.25, key=KEY, interpret=True
        )
      return jnp.sum(jnp.square(attended.astype(jnp.float32)))

    return jax.jit(jax.grad(fn, (0, 1)))

  alone = loss(mesh_lib.make_mesh(jax.devices()[:1]))(qkv, bias)
  divided = jax.device_put(qkv, mesh_lib.over_batch(mesh))
  together = loss(mesh)(divided, jax.device_put(bias, mesh_lib.replicated(mesh)))
  assert together[0].sharding.is_equivalent_to(mesh_lib.over_batch(mesh), 3)
  for mine, other in zip(together, alone):
    mine, other = (np.asarray(x, np.float32) for x in (mine, other))
    np.testing.assert_allclose(mine, other, atol=1e-5, rtol=1e-3)

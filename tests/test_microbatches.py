"""Gradient caching: parts of a batch, with the gradient of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import sharding
from dcse_jax import train_step
from dcse_jax.microbatches import Microbatches
from dcse_jax.packing import Packing
from tests import models
from tests import test_train


def test_parts_take_as_many_rows_of_each_group_and_come_back_in_order():
  # Two devices with rows 10 to 13 and 14 to 17: each part has a half of both.
  def fn(rows, numbers):
    return 2 * rows, numbers, jnp.full_like(rows, rows.sum())

  doubled, numbers, sums = Microbatches(2, groups=2).map(fn, jnp.arange(10, 18))
  assert doubled.tolist() == list(range(20, 36, 2))
  assert numbers.tolist() == list(range(8))
  first, second = 10 + 11 + 14 + 15, 12 + 13 + 16 + 17
  assert sums.tolist() == [first, first, second, second] * 2


def value_and_grad(microbatches, *, mesh=None, packing=None, columns=1):
  """Of the distilling loss with dropout and Group-P."""
  loss_fn, teacher_params = test_train.distilling()
  loss_fn = functools.partial(loss_fn, microbatches=microbatches)
  batch = models.random_batch(0, batch=16, columns=columns)
  params = test_train.student_params()
  if mesh is not None:
    batch = sharding.put_batch(batch, sharding.over_batch(mesh))
    params, teacher_params = sharding.put_params((params, teacher_params), mesh)
  run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True), static_argnums=4)
  (loss, _), grads = run(params, batch, jax.random.key(3), teacher_params, packing)
  return jax.device_get((loss, grads))


def assert_close(ours, theirs):
  assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    ours[1],
    theirs[1],
  )


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("number", [2, 8])
def test_parts_give_the_gradient_of_the_whole_batch(number, columns):
  whole = value_and_grad(Microbatches(), columns=columns)
  parts = value_and_grad(Microbatches(number), columns=columns)
  assert_close(parts, whole)


def test_parts_may_be_packed_and_divided_among_devices():
  whole = value_and_grad(Microbatches())
  mesh = sharding.make_mesh(jax.devices()[:4], data=2, fsdp=2)
  # Of 16 sentences of at most 12 tokens each of 4 devices has two in each part.
  packing = Packing(24 - 1, groups=8)
  lengths = models.random_batch(0, batch=16)["attention_mask"].sum(axis=(1, 2))
  assert lengths.reshape(8, 2).sum(axis=1).max() <= packing.tokens
  parts = value_and_grad(Microbatches(2, groups=4), mesh=mesh, packing=packing)
  assert_close(parts, whole)


def test_pretraining_in_parts_gives_the_gradient_of_the_whole_batch():
  model = models.tiny_model(0)
  params = train_step.init_language_model_params(
    model.params, model.config, jax.random.key(0)
  )

  def run(microbatches):
    loss_fn = functools.partial(
      train_step.language_model_loss,
      config=model.config,
      dtype=jnp.float32,
      mask_token_id=4,
      special_token_ids=(0, 1, 2, 3, 4),
      microbatches=microbatches,
    )
    (loss, parts), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
      params, models.random_batch(1, batch=16), jax.random.key(2), ()
    )
    return jax.device_get((loss, (grads, parts)))

  assert_close(run(Microbatches(4)), run(Microbatches()))

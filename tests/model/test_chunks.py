"""Gradient caching and blocks of rows: the gradient of the whole, by parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses
from dcse_jax.model.chunks import Chunks
from dcse_jax.model.packing import Packing
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers import stacks as stacks_lib
from tests import models
from tests.train import test_train


def test_parts_take_as_many_rows_of_each_group_and_come_back_in_order():
  # Two devices with rows 10 to 13 and 14 to 17: each part has a half of both.
  def fn(rows, row_ids):
    return 2 * rows, row_ids, jnp.full_like(rows, rows.sum())

  doubled, row_ids, sums = Chunks(2, groups=2).map(fn, jnp.arange(10, 18))
  assert doubled.tolist() == list(range(20, 36, 2))
  assert row_ids.tolist() == list(range(8))
  first, second = 10 + 11 + 14 + 15, 12 + 13 + 16 + 17
  assert sums.tolist() == [first, first, second, second] * 2


def value_and_grad(*, mesh=None, packing=None, columns=1, **blocks):
  """Computes the distilling loss, with dropout and Group-P, and its gradient."""
  loss_fn, teacher_params = test_train.distilling()
  loss_fn = dataclasses.replace(loss_fn, **blocks)
  batch = models.random_batch(0, batch=16, columns=columns)
  params = test_train.student_params()
  if mesh is not None:
    batch = mesh_lib.put_batch(batch, mesh_lib.over_batch(mesh))
    params, teacher_params = mesh_lib.put_params((params, teacher_params), mesh)
  run = jax.jit(
    jax.value_and_grad(models.called(loss_fn), has_aux=True), static_argnums=4
  )
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
  whole = value_and_grad(columns=columns)
  parts = value_and_grad(microbatches=Chunks(number), columns=columns)
  assert_close(parts, whole)


def test_parts_may_be_packed_and_divided_among_devices():
  whole = value_and_grad()
  mesh = mesh_lib.make_mesh(jax.devices()[:4], data=2, fsdp=2)
  # There are 16 sentences of at most 12 tokens: two a device and part.
  packing = Packing(24 - 1, groups=8)
  lengths = models.random_batch(0, batch=16)["attention_mask"].sum(axis=(1, 2))
  assert lengths.reshape(8, 2).sum(axis=1).max() <= packing.tokens
  parts = value_and_grad(microbatches=Chunks(2, groups=4), mesh=mesh, packing=packing)
  assert_close(parts, whole)


def test_pretraining_in_parts_gives_the_gradient_of_the_whole_batch():
  model = models.tiny_model(0)
  loss_fn = models.language_model_loss(model)
  params = loss_fn.init_params(model.params, jax.random.key(0))

  def run(microbatches):
    whole = dataclasses.replace(loss_fn, microbatches=microbatches)
    (loss, parts), grads = jax.jit(
      jax.value_and_grad(models.called(whole), has_aux=True)
    )(params, models.random_batch(1, batch=16), jax.random.key(2))
    return jax.device_get((loss, (grads, parts)))

  assert_close(run(Chunks(4)), run(Chunks()))


@pytest.mark.parametrize("columns", [1, 3])
def test_blocks_of_rows_give_the_gradient_of_the_whole_batch(columns):
  # Group-P's shuffling is part of it: a row draws the same wherever it is.
  whole = value_and_grad(columns=columns)
  assert_close(value_and_grad(row_chunks=Chunks(4), columns=columns), whole)


def test_blocks_of_rows_and_microbatches_divide_among_devices():
  mesh = mesh_lib.make_mesh(jax.devices()[:4], data=2, fsdp=2)
  blocks = dict(microbatches=Chunks(2, groups=4), row_chunks=Chunks(4, groups=4))
  assert_close(value_and_grad(mesh=mesh, **blocks), value_and_grad())


@pytest.mark.slow
def test_two_views_masked_and_edited_are_the_same_in_microbatches():
  # Forms that do more than those of `every_term`.
  model = models.tiny_model(1, num_layers=1)
  settings = {
    "masked_language_model": {"masked_views": 2},
    "replaced_token_detection": {"edits": "published"},
  }
  loss_fn = Objective(
    losses.parse("masked_language_model + replaced_token_detection", settings),
    config=model.config,
    pooling="mean",
    mask_token_id=4,
    special_token_ids=(0, 1, 2, 3, 4),
  )
  params = loss_fn.init_params(model.params, jax.random.key(0))
  frozen = loss_fn.frozen_params(model.params, params["language_model"])
  batch = models.random_batch(0, batch=8)

  def run(microbatches):
    whole = dataclasses.replace(loss_fn, microbatches=microbatches)
    (loss, parts), grads = jax.jit(
      jax.value_and_grad(models.called(whole), has_aux=True)
    )(params, batch, jax.random.key(3), frozen)
    return jax.device_get((loss, (grads, parts)))

  whole, parts = run(Chunks()), run(Chunks(4))
  assert whole[1][1]["replaced_token_detection"] > 0.1
  assert_close(parts, whole)


def every_term(mesh=None, **blocks):
  """Computes value and gradient of all terms at once, and each by itself."""
  rng = np.random.default_rng(0)
  student = models.tiny_model(1, pooling="cls", num_layers=2)
  stacks, teacher_params = stacks_lib.stack_teachers([models.tiny_model(5)], [1])
  # Those that want hard negatives and scores are in tests/objective/test_candidates.py.
  of_candidates = {"negatives", "scores", "all_scores"}
  names = [n for n, t in losses.TERMS.items() if not of_candidates & {*t.required}]
  names.sort()
  loss_fn = Objective(
    losses.parse(
      # The weights are so different that none hides behind another.
      " + ".join(f"{i + 1} * {name}" for i, name in enumerate(names)),
      {
        "sscl": {"layers": (1,)},
        "fraternal_twins": {"queue_size": 24},
      },
    ),
    config=student.config,
    pooling="cls",
    stacks=stacks,
    mask_token_id=4,
    special_token_ids=(0, 1, 2, 3, 4),
    **blocks,
  )
  head = loss_fn.init_params(student.params, jax.random.key(3))["language_model"]
  params = loss_fn.init_params(student.params, jax.random.key(0))
  frozen = {"teachers": teacher_params}
  frozen |= loss_fn.frozen_params(student.params, head)
  near = models.random_batch(9, batch=16)
  batch = models.random_batch(0, batch=16) | {
    "clusters": rng.integers(0, 3, (16, 2)).astype(np.int32),
    "confidence": rng.random((16, 2)).astype(np.float32),
    "sentence_id": np.arange(16, dtype=np.int32),
    "retrieved_id": rng.permutation(16).astype(np.int32),
    "retrieved_input_ids": near["input_ids"][:, 0],
    "retrieved_mask": near["attention_mask"][:, 0],
  }
  carry = loss_fn.init_carry()
  carry["queue"] = rng.normal(size=carry["queue"].shape).astype(np.float32)
  carry["queued"] = np.asarray(20, np.int32)
  if mesh is not None:
    batch = mesh_lib.put_batch(batch, mesh_lib.over_batch(mesh))
    params, frozen, carry = mesh_lib.put_params((params, frozen, carry), mesh)
  run = jax.jit(
    jax.value_and_grad(models.called(loss_fn), has_aux=True), static_argnums=4
  )
  with mesh_lib.traced_over(mesh):
    (loss, parts), grads = run(
      params, batch, jax.random.key(3), frozen, None, carry, 0.5
    )
  return names, jax.device_get((loss, parts, grads))


def test_every_term_is_the_same_in_blocks_in_microbatches_and_on_eight_devices():
  names, (loss, parts, grads) = every_term()
  mesh = mesh_lib.make_mesh(data=4, fsdp=2)
  blocks = dict(microbatches=Chunks(2, groups=8), row_chunks=Chunks(2, groups=8))
  _, (_, in_parts, theirs) = every_term(mesh, **blocks)
  for name in names:
    assert np.isfinite(parts[name]), name
    assert in_parts[name] == pytest.approx(parts[name], rel=1e-4, abs=1e-5), name
  expected = sum((i + 1) * parts[name] for i, name in enumerate(names))
  assert loss == pytest.approx(expected, rel=1e-5)
  # The queue moves on by a batch: the newest are this one's positives.
  assert parts["carry"]["queued"] == 24
  np.testing.assert_allclose(
    in_parts["carry"]["queue"], parts["carry"]["queue"], atol=1e-5
  )
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), theirs, grads
  )

"""What is served of a student, and the terms that look at it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.chunks import Chunks
from dcse_jax.model.packing import Packing
from dcse_jax.objective.inputs import Size
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers import stacks as stacks_lib
from tests import models

STUDENT = models.tiny_model(1, num_layers=1)
TEACHERS = [models.tiny_model(seed, num_layers=1) for seed in (5, 6)]
BATCH = models.random_batch(0, batch=16)


def make(objective="embedding_distillation", teachers=2, **fields):
  """Makes an objective with teachers as wide as the student, and what it is given."""
  every = TEACHERS[:teachers]
  stacks, params = stacks_lib.stack_teachers(every, [3, 1][:teachers])
  fields = dict(pooling="mean", stacks=stacks, config=STUDENT.config) | fields
  loss_fn = Objective(losses.parse(objective), **fields)
  return loss_fn, {"teachers": params}


def run(loss_fn, frozen, packing=None, mesh=None, batch=BATCH):
  """Computes the loss, its parts, and the gradients."""
  params = loss_fn.init_params(STUDENT.params, jax.random.key(0))
  if mesh is not None:
    batch = mesh_lib.put_batch(batch, mesh_lib.over_batch(mesh))
    params, frozen = mesh_lib.put_params(jax.device_get((params, frozen)), mesh)

  @jax.jit
  def value_and_grad(params, batch, frozen):
    given = StepInputs(batch, jax.random.key(3), frozen, packing)
    return jax.value_and_grad(lambda p: loss_fn(p, given), has_aux=True)(params)

  with mesh_lib.traced_over(mesh):
    (loss, parts), grads = value_and_grad(params, batch, frozen)
  return jax.device_get((loss, parts, grads))


@functools.cache
def mapped():
  """Runs with two teachers, which side by side are twice as wide as the student."""
  return run(*make("embedding_distillation + 2 * spread"))


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_teacher_as_wide_as_the_student_needs_no_map():
  params = make(teachers=1)[0].init_params(STUDENT.params, jax.random.key(0))
  assert list(params) == ["encoder"]


def test_teachers_of_another_width_are_met_by_a_map_that_is_trained_along():
  loss_fn, frozen = make()
  params = loss_fn.init_params(STUDENT.params, jax.random.key(0))
  assert params["teacher_map"]["kernel"].shape == (16, 32)
  loss, _, grads = mapped()
  assert np.asarray(grads["teacher_map"]["kernel"]).any()
  # The same by hand: the embedding under the same dropout, the map, and the mean over
  # sentences of 1 - cosine with the teachers' unit embeddings by their shares.
  encode = functools.partial(
    encoder_lib.encode,
    config=STUDENT.config,
    input_ids=BATCH["input_ids"][:, 0],
    attention_mask=BATCH["attention_mask"][:, 0],
    pooling="mean",
  )
  rng = jax.random.fold_in(jax.random.key(3), 8)
  served = np.asarray(encode(params["encoder"], rng=rng), np.float64)
  ours = served @ params["teacher_map"]["kernel"] + params["teacher_map"]["bias"]
  teachers = [encode(teacher.params) for teacher in TEACHERS]
  shares = np.sqrt([0.75, 0.25])
  joint = np.concatenate([s * unit(t) for s, t in zip(shares, teachers)], axis=1)
  distance = 1 - (unit(ours) * joint).sum(axis=1).mean()
  # Squared cosines with the others, without the sentence itself.
  square = (unit(served) @ unit(served).T) ** 2
  apart = (square.sum() - 16) / (16 * 15)
  assert loss == pytest.approx(float(distance + 2 * apart), rel=1e-5)


@pytest.mark.parametrize("objective", ["spread", "spread + info_nce"])
def test_what_is_served_has_no_projection_unless_its_head_is_kept(objective):
  values = {}
  for keep_head in (False, True):
    loss_fn, _ = make(objective, pooling="cls", keep_head=keep_head, stacks=())
    params = loss_fn.init_params(STUDENT.params, jax.random.key(0))
    given = StepInputs(BATCH, jax.random.key(3))
    _, parts = jax.jit(lambda params, loss_fn=loss_fn: loss_fn(params, given))(params)
    values[keep_head] = float(parts["spread"])
  # Contrast of views that are pooled by [CLS] is what trains a projection.
  assert (values[True] != values[False]) == ("projection" in params)
  assert ("projection" in params) == ("info_nce" in objective)


def test_the_squared_distance_is_twice_one_less_the_cosine():
  a, b = jax.random.normal(jax.random.key(0), (2, 5, 8))
  fn = losses.TERMS["embedding_distillation"].fn
  square = np.square(unit(np.asarray(a)) - unit(np.asarray(b))).sum(axis=1)
  np.testing.assert_allclose(fn(a, b, measure="l2"), square, rtol=1e-5)
  np.testing.assert_allclose(fn(a, b), square / 2, rtol=1e-5)


def test_spread_of_points_on_the_sphere_is_one_over_the_dimension():
  # Every one of D orthogonal directions twice over, there and back.
  points = jnp.concatenate([jnp.eye(8), -jnp.eye(8)])
  fn = losses.TERMS["spread"].fn
  np.testing.assert_allclose(fn(points, points), np.full(16, 1 / 15), rtol=1e-6)
  many = jax.random.normal(jax.random.key(0), (4096, 8))
  assert np.mean(fn(many, many)) == pytest.approx(1 / 8, rel=0.01)


def assert_as_mapped(ours):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), ours, mapped()
  )


def test_a_map_is_the_same_in_microbatches_and_blocks_on_eight_devices():
  loss_fn, frozen = make(
    "embedding_distillation + 2 * spread",
    microbatches=Chunks(2, groups=8),
    row_chunks=Chunks(2, groups=8),
  )
  mesh = mesh_lib.make_mesh(data=4, fsdp=2)
  assert_as_mapped(run(loss_fn, frozen, mesh=mesh))


def test_a_map_is_the_same_without_padding():
  tokens = int(BATCH["attention_mask"].sum())
  assert tokens < BATCH["attention_mask"].size
  assert_as_mapped(
    run(*make("embedding_distillation + 2 * spread"), packing=Packing(tokens))
  )


def test_cached_teachers_are_matched_as_those_that_run():
  loss_fn, frozen = make("embedding_distillation + 2 * spread")
  embeddings = [
    encoder_lib.encode(
      teacher.params,
      teacher.config,
      BATCH["input_ids"][:, 0],
      BATCH["attention_mask"][:, 0],
      pooling="mean",
    )
    for teacher in TEACHERS
  ]
  cached = stacks_lib.CachedTeachers((16, 16), (0.75, 0.25))
  loss_fn = dataclasses.replace(loss_fn, stacks=(cached,))
  batch = BATCH | {"teacher_embeddings": np.concatenate(embeddings, axis=1)}
  ours = run(loss_fn, {"teachers": ((),)}, batch=batch)
  assert_as_mapped(ours)


def test_matching_encodes_a_sentence_once_and_counts_it_once():
  size = Size(batch=16, columns=1, length=8, squared_length=64, max_length=12)
  once, _ = make()
  twice, _ = make("embedding_distillation + distillation")
  encode = lambda loss_fn: (
    loss_fn.flops(size) - dataclasses.replace(loss_fn, stacks=()).flops(size)
  )
  # Teachers, the map and the pass over the student cost the same in both, since nothing
  # wants a second view; the anchors are compared with each other.
  assert encode(once) == pytest.approx(encode(twice))
  bare = [dataclasses.replace(x, stacks=()).flops(size) for x in (once, twice)]
  products = 3 * 2 * 16**2 * 16
  assert bare[1] - products == pytest.approx(bare[0])

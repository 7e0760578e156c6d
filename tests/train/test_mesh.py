"""The mesh: the same training however the devices are arranged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax.ahead import abstract_step
from dcse_jax.ahead import hlo
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from tests.recipes import TINY
from tests.recipes import from_files
from tests.recipes import load_config
from tests.train import test_train

MESHES = {"1": (1, 1, 1), "8 data": (8, 8, 1), "4 data, 2 fsdp": (8, 4, 2)}


def make_mesh(name):
  devices, data, fsdp = MESHES[name]
  return mesh_lib.make_mesh(jax.devices()[:devices], data=data, fsdp=fsdp)


@functools.cache
def train(name):
  return test_train.run_steps(num_steps=5, mesh=make_mesh(name))


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_five_steps_agree_however_the_devices_are_arranged(name):
  (_, one, ours), (_, many, theirs) = train("1"), train(name)
  for a, b in zip(ours, theirs):
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    # The norm of all gradients together.
    assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)
  one, many = jax.device_get(one.params), jax.device_get(many.params)
  for params in (one, many):
    del params["encoder"]["layers"]["key"]["bias"]  # Its gradient is rounding.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max()
    ),
    one,
    many,
  )


def test_parameters_moments_and_teachers_lie_in_parts_over_fsdp():
  trainer, state, _ = train("4 data, 2 fsdp")
  moments = state.opt_state[1][0]
  up = lambda params: params["encoder"]["layers"]["up"]["kernel"]
  for tree in (state.params, moments.mu, moments.nu):
    # Two layers of [16, 32]: half of the rows on each device.
    assert up(tree).sharding.shard_shape(up(tree).shape) == (2, 8, 32)
  teacher = trainer.frozen["teachers"][0]["layers"]["up"]["kernel"]
  assert teacher.sharding.shard_shape(teacher.shape) == (2, 1, 8, 32)
  # Vocabularies seldom divide: the embeddings' width does.
  word = state.params["encoder"]["embeddings"]["word"]["embedding"]
  assert word.sharding.shard_shape(word.shape) == (word.shape[0], 8)
  bias = state.params["encoder"]["layers"]["up"]["bias"]
  assert bias.sharding.is_fully_replicated


def test_fsdp_gathers_matrices_and_leaves_activations_where_they_are():
  # Sentences enough for one layer's activations to outweigh all parameters.
  config = load_config("simcse")
  config.update(model="", encoder=TINY, batch_size=2048, max_length=32)
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  step = abstract_step.make_abstract_step(config, "simcse", mesh)
  program = step.step_fn.lower(*step.arguments, None).compile().as_text()
  moved = hlo.Program(program, 8).collectives().values()
  # Two views, in float32, on all devices together.
  activations = 2 * 2048 * 32 * TINY["hidden_size"] * 4
  assert sum(collective.bytes for collective in moved) < activations


def test_what_fsdp_does_not_divide_is_everywhere():
  mesh = mesh_lib.make_mesh(jax.devices()[:3], data=1, fsdp=3)
  tree = {"kernel": jnp.zeros((16, 9)), "mykernel": jnp.zeros((9, 9))}
  found = mesh_lib.by_rules(tree, mesh)
  assert all(s.is_fully_replicated for s in found.values())


def test_a_recipe_trains_on_any_mesh_and_in_parts_to_the_same_scores(files):
  config = from_files(files, "simcse", batch_size=16)
  config.rounds.simcse.seeds = (1,)
  (plain,) = recipe_lib.run(config, str(files / "plain"))
  config.mesh.fsdp, config.microbatches = 2, 2
  (parts,) = recipe_lib.run(config, str(files / "parts"))
  assert parts["dev"] == pytest.approx(plain["dev"], abs=0.05)
  # Neither changes the models, so the workdir stays the same.
  config.mesh.fsdp, config.microbatches = 4, 1
  assert recipe_lib.run(config, str(files / "parts")) == [parts]


@pytest.mark.parametrize(
  "data, fsdp, message",
  [
    (3, 2, r"mesh.data=3, mesh.fsdp=2: .*number of devices, 8"),
    (-1, 3, r"mesh.data=-1, mesh.fsdp=3"),
    (-1, 0, "mesh.fsdp=0: must be a whole number, 1 or more"),
    (0, 1, "mesh.data=0: name a number of devices"),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(files, data, fsdp, message):
  config = from_files(files, "simcse")
  config.mesh.update(data=data, fsdp=fsdp)
  with pytest.raises(UserError, match=message):
    recipe_lib.run(config, str(files / "run"))

"""Prepares a round's training: all that its models start and learn from."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dcse_jax import config as config_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.model import model as model_lib
from dcse_jax.recipe import compose
from dcse_jax.recipe import inputs as inputs_lib
from dcse_jax.recipe import mining
from dcse_jax.recipe import monitor
from dcse_jax.recipe import probes as probes_lib
from dcse_jax.recipe import round as round_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime import workdir as workdir_lib
from dcse_jax.teachers import teaching as teaching_lib
from dcse_jax.train import pruning


def prepare(
  name: str,
  config: config_lib.ConfigDict,
  *,
  workdir: workdir_lib.Workdir,
  seeds: Sequence[int],
  inputs: inputs_lib.Inputs,
  start: model_lib.Model,
  teachers: Sequence[teaching_lib.Teacher | teaching_lib.EmbeddedTeacher],
  mesh: Mesh,
  later_steps: float = 0,
) -> round_lib.Round:
  """Prepares a round's training: tokenises, embeds, measures and prunes.

  Args:
    name: the round's.
    config: the round's.
    workdir: the run's.
    seeds: those of the models to train.
    inputs: text and sets of the recipe.
    start: the encoder that each model starts from.
    teachers: the teachers it learns from; there may be none.
    mesh: the devices.
    later_steps: how many of this round's steps the later rounds are worth.
  """
  tokens = inputs.tokens(config)

  def make_probe(seed):
    return probes_lib.make_probe(
      inputs, config, round_lib.make_batches(config, tokens, seed)
    )

  probes = {seed: make_probe(seed) for seed in seeds}
  held_out: dict[int, probes_lib.HeldOut] = {}
  teaching = teaching_lib.Teaching()
  # The spread has one probe, whichever seeds are left to train.
  first = config.seeds[0]
  if teachers:
    on_train = probes_lib.write_spread(
      workdir.folder / name / "teachers.json",
      teachers,
      lambda: probes.get(first) or make_probe(first),
    )
    terms = config_lib.terms(config)
    held_out = probes_lib.measure(
      name,
      start,
      terms,
      teachers,
      probes,
      {first: on_train},
      keep_head=config.keep_head,
    )
    teaching = _teach(config, teachers, tokens, workdir.cache)
  loss_fn = compose.make_objective(config, start, teaching.stacks, groups=mesh.size)
  if config.sparsity:
    # It is the same for every seed, whichever this command trains.
    params = pruning.sparse(
      loss_fn,
      start.params,
      round_lib.make_batches(config, tokens, first),
      jax.random.key(config.seed),
      config.sparsity,
    )
    if processes.are_several():  # Rounding may differ between processes.
      params = multihost_utils.broadcast_one_to_all(params)
    start = dataclasses.replace(start, params=params)
  score = functools.partial(monitor.Scorer, start, keep_head=config.keep_head)
  return round_lib.Round(
    name,
    config,
    workdir=workdir,
    inputs=inputs,
    start=start,
    mesh=mesh,
    tokens=tokens,
    scorer=score([*inputs.dev, *inputs.test]),
    dev=score(inputs.dev),
    probes=probes,
    held_out=held_out,
    teaching=teaching,
    loss_fn=loss_fn,
    miner=mining.make_miner(config, tokens, inputs.corpus(config)),
    later_steps=later_steps,
  )


def _teach(
  config: config_lib.ConfigDict,
  teachers: Sequence[teaching_lib.Teacher | teaching_lib.EmbeddedTeacher],
  tokens: tokens_lib.TokenCache,
  cache: pathlib.Path,
) -> teaching_lib.Teaching:
  if config.teacher_cache:
    return teaching_lib.cached(
      teachers, cache, dtype=config.teacher_cache, compute_dtype=config.dtype
    )
  return teaching_lib.online(teachers, tokens, config.dtype)

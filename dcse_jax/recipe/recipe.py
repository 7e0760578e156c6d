"""The self-training recipe: rounds of training, each on the models of earlier ones.

Everything that a run reads is read and checked before training is compiled. A
finished model leaves `WORKDIR/ROUND/SEED/result.json`, written last; the same
command, run again, continues where it was.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import json
import logging
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from dcse_jax import config as config_lib
from dcse_jax.eval import registry
from dcse_jax.eval import tables
from dcse_jax.hub import folder
from dcse_jax.hub.model_card import make_card
from dcse_jax.recipe import finished
from dcse_jax.recipe import inputs as inputs_lib
from dcse_jax.recipe import origin
from dcse_jax.recipe import preparing
from dcse_jax.recipe import reading
from dcse_jax.recipe import round as round_lib
from dcse_jax.recipe import start as start_lib
from dcse_jax.recipe import time_left
from dcse_jax.recipe import trainer as trainer_lib
from dcse_jax.recipe import validate
from dcse_jax.runtime import compilation
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime import workdir as workdir_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import read_json
from dcse_jax.runtime.files import write_json
from dcse_jax.runtime.locks import locked
from dcse_jax.teachers import cache as teacher_cache
from dcse_jax.teachers import teaching
from dcse_jax.train import loggers

_log = logging.getLogger(__name__)


def run(
  config: config_lib.ConfigDict, workdir: str, *, accept_changes: bool = False
) -> list[dict[str, Any]]:
  """Runs the recipe, or what is left of it.

  Args:
    config: see `config.default`.
    workdir: holds all that the run writes, a folder or gs://BUCKET/PATH; only one run
      may use it at a time.
    accept_changes: whether to continue in a workdir whose rounds come from another
      config, text, model, teachers or sets. What is finished stays as it is.

  Returns:
    A row for each model in order of training: name, round, seed, dev, test; the last
    two are mean Spearman in percent, None without such sets.

  Raises:
    UserError: there is bad input, found before any training is compiled; another run
      is in the workdir; or something cannot be read or written.
  """
  validate.check(config)
  place = workdir_lib.Workdir(workdir)
  # If there are several processes the first one locks for all.
  with locked(place.folder) if processes.is_first() else contextlib.nullcontext():
    if place.is_shared and len(processes.sharing(place.folder)) < jax.process_count():
      raise UserError(
        f"--workdir={workdir} is not one folder for all processes: name one on a file "
        "system that they share, or gs://BUCKET/PATH"
      )
    with place.synced():
      return train(read(config, place, accept_changes=accept_changes))


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A config in a workdir, with its inputs read and checked: see `read`.

  Attributes:
    config: the recipe's.
    place: the workdir.
    rounds: the config of each round, in order.
    origins: what each round's models come from.
    inputs: its text, sets and models.
    mesh: the devices.
  """

  config: config_lib.ConfigDict
  place: workdir_lib.Workdir
  rounds: dict[str, config_lib.ConfigDict]
  origins: origin.Origins
  inputs: inputs_lib.Inputs
  mesh: Mesh

  @property
  def workdir(self) -> pathlib.Path:
    """The workdir's folder."""
    return self.place.folder


def read(
  config: config_lib.ConfigDict,
  place: workdir_lib.Workdir,
  *,
  accept_changes: bool = False,
) -> Recipe:
  """Reads and checks all that a recipe needs, before anything long begins.

  Args:
    config: has been checked.
    place: the workdir.
    accept_changes: see `run`.

  Raises:
    UserError: there is bad input, or the workdir comes from something else.
  """
  config = config.copy_and_resolve_references()
  rounds = {name: config_lib.of_round(config, name) for name in config.recipe}
  mesh = mesh_lib.make_mesh(**config.mesh)
  compilation.use_cache(place.cache / "compiled")
  # A recipe may grow or shrink; only the rounds that are there must be the same.
  origins = origin.of_rounds(rounds)
  origin.check(place.folder, origins, "material", accept_changes)
  for name, round_config in rounds.items():
    trainer_lib.check_batch(round_config, name, mesh)
    if processes.is_first():
      loggers.check(round_config.logger)
  as_given = json.loads(config.to_json_best_effort())
  inputs = reading.read(config, rounds, place.folder)
  origin.add_content(origins, rounds, inputs)
  origin.check(place.folder, origins, "content", accept_changes)
  recipe = Recipe(config, place, rounds, origins, inputs, mesh)
  _check_disk(recipe)
  # It is only written once the inputs are known to be good: a command that is refused
  # must not bind the workdir to its mistake.
  if processes.is_first():
    write_json(place.folder / "config.json", {"config": as_given})
  return recipe


def train(recipe: Recipe) -> list[dict[str, Any]]:
  """Trains what is not trained yet; writes results.json and export/.

  Returns:
    A row for each model: see `run`.
  """
  for name in recipe.rounds:
    signals.check()
    if todo := _todo(recipe, name):
      _run_round(recipe, name, todo)
  rows = [
    {**_result(recipe, name, seed), "name": round_lib.model_name(name, seed, c.seeds)}
    for name, c in recipe.rounds.items()
    for seed in c.seeds
  ]
  columns = ("name", "round", "seed", "dev", "test")
  models = [{key: row[key] for key in columns} for row in rows]
  best = _best(recipe, list(recipe.rounds)[-1])
  if processes.is_first():
    _export(recipe, best)
    write_json(recipe.workdir / "results.json", {"models": models})
    print(_format_results(rows, recipe.config))
    print(
      f"best model of the last round: {recipe.place.address(recipe.workdir / 'export')}"
    )
  processes.wait()
  return models


def _todo(recipe: Recipe, name: str) -> list[int]:
  """Lists the seeds of a round that are not trained yet."""
  return [seed for seed in recipe.rounds[name].seeds if not _result(recipe, name, seed)]


def _folder(recipe: Recipe, name: str, seed: int) -> pathlib.Path:
  return recipe.workdir / name / str(seed)


def _result(recipe: Recipe, name: str, seed: int) -> dict[str, Any] | None:
  path = _folder(recipe, name, seed) / "result.json"
  return processes.agree(read_json(path) if path.exists() else None)


def _best(recipe: Recipe, name: str) -> pathlib.Path:
  """Returns the folder of a finished round's best model on dev."""
  results = {seed: _result(recipe, name, seed) for seed in recipe.rounds[name].seeds}
  return _folder(recipe, name, finished.best_seed(results))


def _run_round(recipe: Recipe, name: str, seeds: Sequence[int]) -> None:
  config = recipe.rounds[name]
  if processes.is_first():
    write_json(recipe.workdir / name / "origin.json", recipe.origins[name])
  start = recipe.inputs.start
  if config.start:
    start = folder.load(
      str(_best(recipe, config.start) / "model"), default_pooling=config.pooling
    )
    start = dataclasses.replace(start, head=None)
    start = start_lib.with_prompts(start, recipe.config.prompts, config.start)
  preparing.prepare(
    name,
    config,
    workdir=recipe.place,
    seeds=seeds,
    inputs=recipe.inputs,
    start=start,
    teachers=_teachers(recipe, config),
    mesh=recipe.mesh,
    later_steps=_later_steps(recipe, name),
  ).train()


def _later_steps(recipe: Recipe, name: str) -> float:
  """Estimates how many of a round's steps the rounds after it are worth."""
  later = list(recipe.rounds)[list(recipe.rounds).index(name) + 1 :]
  work = [
    time_left.work(recipe.rounds[each], len(_todo(recipe, each))) for each in later
  ]
  return sum(work) / time_left.tokens_of_step(recipe.rounds[name])


def _teachers(
  recipe: Recipe, config: config_lib.ConfigDict
) -> list[teaching.Teacher | teaching.EmbeddedTeacher]:
  """Loads every teacher of a round."""
  teachers = []
  members = origin.members(recipe.rounds, config)
  shares = config.teacher_weights or [len(each) for each in members]
  for each, share in zip(members, shares):
    for member in each:
      if member in recipe.inputs.embeddings:
        rows = recipe.inputs.example_rows(member, config)
        teachers.append(teaching.EmbeddedTeacher(member, share / len(each), rows))
        continue
      if member in config.teachers:
        name, model = member, recipe.inputs.outside[member]
      else:
        name = round_lib.model_name(*member, recipe.rounds[member[0]].seeds)
        model = folder.load(str(_folder(recipe, *member) / "model"))
        model = start_lib.with_prompts(model, recipe.config.prompts, name)
      tokens = recipe.inputs.teacher_tokens(member, config)
      teachers.append(teaching.Teacher(name, model, share / len(each), tokens))
  return teachers


def _export(recipe: Recipe, best: pathlib.Path) -> None:
  """Writes a model of a round, with a card, to export/, unless it is there."""
  path = recipe.workdir / "export"
  if digests_lib.are_alike(path, best / "model") and not digests_lib.find_damage(path):
    return
  model, training = finished.load(best)
  card = make_card(model, f"{best.parent.name}-{best.name}", training)
  folder.save(
    model,
    path,
    lambda path: path.joinpath("README.md").write_text(card, encoding="utf-8"),
    overwrite=True,
  )


def _check_disk(recipe: Recipe) -> None:
  """Refuses teacher caches that the disk has no room for."""
  cached = {name: c for name, c in recipe.rounds.items() if c.teacher_cache}
  if not any(_todo(recipe, name) for name in cached):
    return
  need = {}
  # Finished rounds count too: their files are among those that are there.
  for config in cached.values():
    members = itertools.chain(*origin.members(recipe.rounds, config))
    for member in (each for each in members if each not in recipe.inputs.embeddings):
      model = recipe.inputs.outside.get(member, recipe.inputs.start)
      tokens = recipe.inputs.teacher_tokens(member, config)
      # Rounds share the files of a teacher that they have in common.
      key = (member, tokens.key, config.teacher_cache, config.dtype)
      need[key] = teacher_cache.cache_bytes(
        len(tokens), model.embedding_size, config.teacher_cache
      )
  cache, total = recipe.place.cache, sum(need.values())
  _log.info("teacher caches: %.2f GB in all, in %s", total / 1e9, cache)
  missing = total - teacher_cache.bytes_there(cache, need.values())
  teacher_cache.check_disk(cache, missing, "the teacher cache")


def _format_results(rows: Sequence[dict], config: config_lib.ConfigDict) -> str:
  """Lays out the closing table: dev, each test set if there are several, their mean."""
  tests = config.test if len(config.test) > 1 else ()
  header = ["model", "dev", *tests, "test"]
  body = [
    [row["name"], row["dev"], *(row["sets"].get(t) for t in tests), row["test"]]
    for row in rows
  ]
  cells = [header] + [
    [line[0], *("-" if v is None else f"{v:.2f}" for v in line[1:])] for line in body
  ]
  title = f"{registry.measures([*config.dev, *config.test])} x 100"
  return tables.aligned(title, cells)

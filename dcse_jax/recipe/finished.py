"""The models of a workdir, WORKDIR/ROUND/SEED, finished or under way."""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

from dcse_jax.eval import registry
from dcse_jax.hub import folder
from dcse_jax.hub.model_card import Training
from dcse_jax.model import heads
from dcse_jax.model import model as model_lib
from dcse_jax.model.family import with_pooler
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import read_json
from dcse_jax.train import checkpoint


def find(source: pathlib.Path) -> tuple[pathlib.Path, int | None] | None:
  """Finds the folder of a trained model, WORKDIR/ROUND/SEED, and a checkpoint's step.

  Args:
    source: a workdir, one of its rounds or seeds, or a checkpoint.

  Returns:
    The folder and the step, which is None unless source names one; None in place of
    both if source is none of these.

  Raises:
    UserError: the workdir or round has no finished model.
  """
  if source.parent.name == "checkpoints" and source.name.isdigit():
    return source.parent.parent, int(source.name)
  if source.name == "checkpoints":
    return source.parent, None
  if (source / "checkpoints").is_dir() or (source / "result.json").exists():
    return source, None
  path = source / "config.json"
  config = read_json(path).get("config", {}) if path.exists() else {}
  if "recipe" in config:
    source = source / config["recipe"][-1]
  elif not (source / "origin.json").exists():
    return None
  results = {}
  for seed in _seeds(source):
    if (path := source / str(seed) / "result.json").exists():
      results[seed] = read_json(path)
  if not results:
    raise UserError(
      f"{source} holds no finished model yet: name one of its seeds, such as "
      f"{source}/42, for the best checkpoint so far"
    )
  return source / str(best_seed(results)), None


def best_seed(results: Mapping[int, Mapping[str, Any]]) -> int:
  """Chooses the model that stands for a round: the best on dev.

  Args:
    results: what `result.json` holds for each seed, in the order of the config.

  Returns:
    Its seed; the first one among equal scores, or if there are no dev sets.
  """
  dev = {seed: result["dev"] for seed, result in results.items()}
  return max(dev, key=lambda seed: -math.inf if dev[seed] is None else dev[seed])


def _seeds(round_folder: pathlib.Path) -> list[int]:
  """Lists a round's seeds in the order of the workdir's config, or ascending."""
  path = round_folder.parent / "config.json"
  rounds = read_json(path)["config"]["rounds"] if path.exists() else {}
  if round_folder.name in rounds:
    return rounds[round_folder.name]["seeds"]
  names = (each.name for each in round_folder.iterdir())
  return sorted(int(name) for name in names if name.isdigit())


def load(
  seed_folder: pathlib.Path, step: int | None = None, *, keep_head: bool = False
) -> tuple[model_lib.Model, Training]:
  """Loads a model of a run, finished or under way.

  Args:
    seed_folder: WORKDIR/ROUND/SEED.
    step: the checkpoint's; None takes the finished model or else the best checkpoint.
    keep_head: whether to make what was trained after the pooling (the training-only
      projection, the map to the teachers) a head of the model, as `config.keep_head`
      does.

  Raises:
    UserError: there is no such checkpoint, or no head to keep.
  """
  config = read_json(seed_folder.parent / "origin.json")["config"]
  result, progress = seed_folder / "result.json", {}
  is_finished = result.exists() and step is None
  if is_finished:
    model = folder.load(str(seed_folder / "model"))
  if not is_finished or keep_head:
    params, progress = checkpoint.read_params(seed_folder / "checkpoints", step)
  if not is_finished:
    model = folder.load(str(seed_folder.parent / "start"), weights=False)
    shape = with_pooler(model.config, "pooler" in params["encoder"])
    model = dataclasses.replace(model, config=shape, params=params["encoder"])
  # A finished model has what its config keeps already.
  if keep_head or (config.get("keep_head") and not is_finished):
    head = heads.trained_head(params)
    if head is None and keep_head:
      raise UserError(
        f"{seed_folder} was trained without a head to keep (a projection, which "
        'config.pooling="cls" has, or a map to its teachers): leave out --keep_head'
      )
    model = dataclasses.replace(model, head=head)
  scores = read_json(result)["sets"] if is_finished and not keep_head else {}
  scores = {name: scores[name] for name in scores if registry.is_set(name)}
  training = Training(
    name=f"{seed_folder.parent.name}/{seed_folder.name}",
    config=config,
    seed=int(seed_folder.name),
    scores=scores,
    step=None if is_finished else progress["step"],
  )
  return model, training

"""The self-training recipe: rounds of training, each on the models of earlier ones.

Everything that a run reads is read and checked before training is compiled. A
finished model leaves `WORKDIR/ROUND/SEED/result.json`, written last; the same
command run again goes on where it was.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax import folder
from dcse_jax import inputs as inputs_lib
from dcse_jax import objective
from dcse_jax import optimizer
from dcse_jax import sharding
from dcse_jax import sts
from dcse_jax import teachers as teachers_lib
from dcse_jax import train as train_lib
from dcse_jax.data import batches as batches_lib
from dcse_jax.encode import encode_tokens
from dcse_jax.errors import UserError
from dcse_jax.files import make_folder
from dcse_jax.files import read_json
from dcse_jax.files import write_json


def run(config: config_lib.ConfigDict, workdir: str) -> list[dict[str, Any]]:
  """Runs the recipe, or what is left of it.

  Args:
    config: as `config.default` describes.
    workdir: holds all that the run writes.

  Returns:
    A row a model in order of training: name, round, seed, dev, test; the last
    two mean Spearman in percent, None without such sets.

  Raises:
    UserError: bad input, found before any training is compiled.
  """
  config_lib.check(config)
  return Recipe(config, pathlib.Path(workdir)).run()


class Recipe:
  """One config in one workdir, with its inputs read and checked."""

  def __init__(self, config: config_lib.ConfigDict, workdir: pathlib.Path):
    self.config, self.workdir = config.copy_and_resolve_references(), workdir
    self.rounds = {name: config_lib.of_round(config, name) for name in config.recipe}
    self.mesh = sharding.make_mesh()
    make_folder(workdir)
    ours = {"config": json.loads(self.config.to_json_best_effort())}
    self._check_workdir(ours["config"], "config", "config")
    for name, round_config in self.rounds.items():
      if round_config.batch_size % self.mesh.size:
        raise UserError(
          f"batch_size={round_config.batch_size} of round {name} does not "
          f"divide among {self.mesh.size} devices: use a multiple of "
          f"{self.mesh.size}"
        )
    self.inputs = inputs_lib.Inputs(self.config, self.rounds, workdir)
    ours["text"] = {
      name: self.inputs.tokens(round_config).key
      for name, round_config in self.rounds.items()
    }
    self._check_workdir(ours["text"], "text", "text or tokenizer")
    # Not before the inputs are known to be good: a command that was refused
    # must not bind the workdir to its mistake.
    write_json(self.workdir / "config.json", ours)

  def _check_workdir(self, ours: dict[str, Any], part: str, what: str) -> None:
    """Refuses a workdir that another config or text made."""
    path = self.workdir / "config.json"
    if not path.exists():
      return
    theirs = read_json(path)[part]
    names = sorted(
      name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    if names:
      raise UserError(
        f"{self.workdir} belongs to a run with another {what} (differing: "
        f"{', '.join(names)}): name another --workdir or restore it"
      )

  def run(self) -> list[dict[str, Any]]:
    """Trains what is not trained yet; writes results.json and export/."""
    for name, round_config in self.rounds.items():
      todo = [s for s in round_config.seeds if not self._result(name, s)]
      if todo:
        self._run_round(name, round_config, todo)
    rows = [
      self._result(name, seed)
      for name, round_config in self.rounds.items()
      for seed in round_config.seeds
    ]
    self._export(list(self.rounds)[-1])
    columns = ("name", "round", "seed", "dev", "test")
    models = [{key: row[key] for key in columns} for row in rows]
    write_json(self.workdir / "results.json", {"models": models})
    print(_format_results(rows, self.config.test))
    print(f"best model of the last round: {self.workdir / 'export'}")
    return models

  def _folder(self, name: str, seed: int) -> pathlib.Path:
    return self.workdir / name / str(seed)

  def _result(self, name: str, seed: int) -> dict[str, Any] | None:
    path = self._folder(name, seed) / "result.json"
    return read_json(path) if path.exists() else None

  def _best(self, name: str) -> pathlib.Path:
    """The folder of a finished round's best model on dev."""
    seeds = self.rounds[name].seeds
    results = [self._result(name, seed) for seed in seeds]
    scores = [result["dev"] or 0.0 for result in results]
    return self._folder(name, seeds[int(np.argmax(scores))])

  def _run_round(self, name, config, seeds: Sequence[int]) -> None:
    start = self.inputs.start
    if config.start:
      start = folder.load(
        str(self._best(config.start) / "model"), default_pooling=config.pooling
      )
    cache = self.inputs.tokens(config)
    stacks, teacher_params = (), ()
    if config.teachers:
      stacks, teacher_params = teachers_lib.stack_teachers(*self._teachers(config))
    init_fn, loss_fn = objective.make_objective(config, start, stacks)
    schedule = optimizer.make_schedule(
      learning_rate=config.learning_rate,
      schedule=config.schedule,
      warmup_steps=config.warmup_steps,
      num_steps=config.num_train_steps,
    )
    trainer = train_lib.make_trainer(
      loss_fn,
      optimizer.make_optimizer(
        schedule,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
      ),
      schedule,
      mesh=self.mesh,
      teacher_params=teacher_params,
      batch_size=config.batch_size,
      num_steps=config.num_train_steps,
      log_every=config.log_every,
      eval_every=config.eval_every,
    )
    sets = self.inputs.sets
    dev = {key: sets[key] for key in config.dev} if sets else {}
    score_dev = _make_scorer(start, dev)

    def evaluate(params):
      scores = score_dev(params["encoder"])
      named = {f"eval/{key.lower()}_spearman": v for key, v in scores.items()}
      return {**named, "score": float(np.mean(list(scores.values())))}

    for seed in seeds:
      rng = jax.random.fold_in(jax.random.key(config.seed), seed)
      init_rng, train_rng = jax.random.split(rng)
      best = train_lib.train(
        trainer,
        init_fn(init_rng),
        batches_lib.make_batches(
          cache,
          batch_size=config.batch_size,
          seed=_data_seed(config.seed, seed),
          host=jax.process_index(),
          num_hosts=jax.process_count(),
        ),
        rng=train_rng,
        evaluate=evaluate if dev else None,
        folder=self._folder(name, seed),
        name=_model_name(name, seed, config.seeds),
        config=json.loads(config.to_json_best_effort()),
      )
      self._finish(name, seed, config, start, best["encoder"])

  def _finish(self, name, seed, config, start, params) -> None:
    """Writes a model's folder and, last, its result."""
    scores = _make_scorer(start, self.inputs.sets)(params)
    result = dict(
      name=_model_name(name, seed, config.seeds),
      round=name,
      seed=seed,
      dev=_mean(scores, config.dev),
      test=_mean(scores, config.test),
      sets=scores,
    )
    path = self._folder(name, seed)
    model = dataclasses.replace(start, params=jax.device_get(params))
    folder.save(model, path / "model")
    write_json(path / "result.json", result)

  def _teachers(self, config) -> tuple[list[folder.Model], list[float]]:
    """Every teacher of a round and its weight."""
    models, weights = [], []
    shares = config.teacher_weights or [None] * len(config.teachers)
    for name, share in zip(config.teachers, shares):
      if name in self.rounds:
        members = [
          folder.load(str(self._folder(name, seed) / "model"))
          for seed in self.rounds[name].seeds
        ]
      else:
        members = [self.inputs.outside(name)]
      models += members
      weights += [1.0 if share is None else share / len(members)] * len(members)
    return models, weights

  def _export(self, name: str) -> None:
    best, export = self._best(name), self.workdir / "export"
    beside = self.workdir / ".export.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(best / "model", beside)
    shutil.rmtree(export, ignore_errors=True)
    beside.rename(export)


def _data_seed(recipe_seed: int, seed: int) -> int:
  state = np.random.SeedSequence([recipe_seed, seed]).generate_state(1)
  return int(state[0])


def _model_name(name: str, seed: int, seeds: Sequence[int]) -> str:
  return name if len(seeds) == 1 else f"{name}-{seed}"


def _mean(scores: dict[str, float], names: Sequence[str]) -> float | None:
  present = [scores[name] for name in names if name in scores]
  return float(np.mean(present)) if present else None


def _make_scorer(
  model: folder.Model, sets: dict[str, sts.StsSet]
) -> Callable[[Any], dict[str, float]]:
  """Encoder parameters to Spearman by set; tokenises once."""
  tokens: list[list[int]] = []

  def score(params):
    if not sets:
      return {}

    def embed(sentences):
      if not tokens:
        tokens.extend(folder.tokenize(model.tokenizer, sentences, model.max_length))
      return encode_tokens(params, model.config, tokens, pooling=model.pooling)

    scores = sts.score_sts(embed, sets)
    return {name: scores[name] for name in sets}

  return score


def _format_results(rows: Sequence[dict], tests: Sequence[str]) -> str:
  """The closing table: dev, each test set if there are several, their mean."""
  tests = tests if len(tests) > 1 else ()
  header = ["model", "dev", *tests, "test"]
  body = [
    [row["name"], row["dev"], *(row["sets"].get(t) for t in tests), row["test"]]
    for row in rows
  ]
  cells = [header] + [
    [line[0], *("-" if v is None else f"{v:.2f}" for v in line[1:])] for line in body
  ]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = ["Spearman x 100"]
  for line in cells:
    first = line[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
    lines.append("  ".join((first, *rest)))
  return "\n".join(lines)

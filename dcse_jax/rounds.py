"""The self-training recipe: rounds of training, each on the models of earlier ones.

Everything that a run reads is read and checked before training is compiled. A
finished model leaves `WORKDIR/ROUND/SEED/result.json`, written last; the same
command run again goes on where it was.
"""

from collections.abc import Sequence
import dataclasses
import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax import diagnostics
from dcse_jax import folder
from dcse_jax import inputs as inputs_lib
from dcse_jax import monitor
from dcse_jax import objective
from dcse_jax import optimizer
from dcse_jax import sharding
from dcse_jax import teacher_cache
from dcse_jax import teaching as teaching_lib
from dcse_jax import train as train_lib
from dcse_jax.data import batches as batches_lib
from dcse_jax.errors import UserError
from dcse_jax.files import make_folder
from dcse_jax.files import read_json
from dcse_jax.files import write_json

_log = logging.getLogger(__name__)


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
    # What each round's models come from. A recipe may grow or shrink: a round
    # that is there must only be the same.
    self._origins = {name: {"config": _json(c)} for name, c in self.rounds.items()}
    self._check_workdir("config")
    for name, round_config in self.rounds.items():
      if round_config.batch_size % self.mesh.size:
        raise UserError(
          f"batch_size={round_config.batch_size} of round {name} does not "
          f"divide among {self.mesh.size} devices: use a multiple of "
          f"{self.mesh.size}"
        )
    recipe = json.loads(self.config.to_json_best_effort())
    self.inputs = inputs_lib.Inputs(self.config, self.rounds, workdir)
    for name, round_config in self.rounds.items():
      self._origins[name]["text or tokenizer"] = self.inputs.tokens(round_config).key
    self._check_workdir("text or tokenizer")
    self._check_disk()
    # Not before the inputs are known to be good: a command that was refused
    # must not bind the workdir to its mistake.
    write_json(self.workdir / "config.json", {"config": recipe})

  def _check_workdir(self, part: str) -> None:
    """Refuses a workdir where another config or text made a round."""
    for name, origin in self._origins.items():
      path = self.workdir / name / "origin.json"
      if not path.exists():
        continue
      ours, theirs = origin[part], read_json(path)[part]
      if ours == theirs:
        continue
      fields = ""
      if part == "config":
        names = ours.keys() | theirs.keys()
        fields = sorted(f for f in names if ours.get(f) != theirs.get(f))
        fields = f" (differing: {', '.join(fields)})"
      raise UserError(
        f"{path.parent} belongs to a run with another {part}{fields}: name "
        "another --workdir or restore it"
      )

  def _check_disk(self) -> None:
    """Refuses teacher caches that the disk has no room for."""
    need = {}
    for name, config in self.rounds.items():
      if not config.teacher_cache or not self._todo(name):
        continue
      rows = len(self.inputs.tokens(config))
      for teacher in config.teachers:
        members = config_lib.members(self.rounds, teacher)
        width = self.inputs.start.config.hidden_size
        if not members:
          width = self.inputs.outside(teacher).config.hidden_size
        # Rounds share the files of a teacher that they have in common.
        for member in members or [teacher]:
          key = (member, config.text, config.max_length, config.teacher_cache)
          need[key] = teacher_cache.cache_bytes(rows, width, config.teacher_cache)
    if need:
      cache = self.workdir / "cache"
      there = sum(
        file.stat().st_blocks * 512 for file in cache.glob("*teacher-*/embeddings.bin")
      )
      total = sum(need.values())
      _log.info("teacher caches: %.2f GB in all, in %s", total / 1e9, cache)
      teacher_cache.check_disk(cache, total - there, "the teacher cache")

  def run(self) -> list[dict[str, Any]]:
    """Trains what is not trained yet; writes results.json and export/."""
    for name, round_config in self.rounds.items():
      if todo := self._todo(name):
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

  def _todo(self, name: str) -> list[int]:
    """The seeds of a round that are not trained yet."""
    return [seed for seed in self.rounds[name].seeds if not self._result(name, seed)]

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
    write_json(self.workdir / name / "origin.json", self._origins[name])
    start = self.inputs.start
    if config.start:
      start = folder.load(
        str(self._best(config.start) / "model"), default_pooling=config.pooling
      )
    cache = self.inputs.tokens(config)
    probe = self._probe(name, config)
    teachers = self._teachers(config)
    teaching = teaching_lib.Teaching()
    distillation = None
    if teachers:
      distillation = self._distillation(name, config, start, probe, teachers)
      teaching = self._teaching(config, teachers)
    del teachers  # As many models in memory as there are teachers.
    init_fn, loss_fn = objective.make_objective(config, start, teaching.stacks)
    schedule = optimizer.make_schedule(
      learning_rate=config.learning_rate,
      schedule=config.schedule,
      warmup_steps=config.warmup_steps,
      num_steps=config.num_train_steps,
    )
    groups = [seeds] if config.parallel_seeds else [[seed] for seed in seeds]
    trainer = train_lib.make_trainer(
      loss_fn,
      optimizer.make_optimizer(
        schedule,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
      ),
      schedule,
      mesh=self.mesh,
      teacher_params=teaching.params,
      num_models=len(groups[0]),
      batch_size=config.batch_size,
      num_steps=config.num_train_steps,
      log_every=config.log_every,
      eval_every=config.eval_every,
    )
    sets = self.inputs.sets
    dev = monitor.Scorer(start, {key: sets[key] for key in config.dev if key in sets})

    def evaluate(params):
      metrics = distillation.metrics(params) if distillation else {}
      return metrics | (dev.metrics(params["encoder"]) if sets else {})

    def make_run(seed):
      rng = jax.random.fold_in(jax.random.key(config.seed), seed)
      init_rng, train_rng = jax.random.split(rng)
      return train_lib.Run(
        name=_model_name(name, seed, config.seeds),
        folder=self._folder(name, seed),
        params=init_fn(init_rng),
        batches=self._batches(
          config,
          seed,
          cache,
          teaching.sources,
          jax.process_index(),
          jax.process_count(),
        ),
        rng=train_rng,
      )

    for group in groups:
      best = train_lib.train(
        trainer, list(map(make_run, group)), evaluate=evaluate, config=_json(config)
      )
      for seed, params in zip(group, best):
        self._finish(name, seed, config, start, probe, params["encoder"])

  def _batches(self, config, seed, cache, sources=(), host=0, num_hosts=1):
    return batches_lib.make_batches(
      cache,
      batch_size=config.batch_size,
      seed=_data_seed(config.seed, seed),
      others=sources,
      host=host,
      num_hosts=num_hosts,
    )

  def _finish(self, name, seed, config, start, probe, params) -> None:
    """Writes a model's folder and, last, its result."""
    scores = monitor.Scorer(start, self.inputs.sets).spearman(params)
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
    write_json(path / "diagnostics.json", probe.histograms(model))
    folder.save(model, path / "model")
    write_json(path / "result.json", result)

  def _probe(self, name, config) -> monitor.Probe:
    """The first sentences that the round's first seed trains on, and dev sentences."""
    cache = self.inputs.tokens(config)
    batches = self._batches(config, config.seeds[0], cache)
    size = monitor.probe_size(len(cache), config.batch_size)
    rows = [next(batches)["example_id"] for _ in range(size // config.batch_size)]
    held_out = monitor.dev_sentences(self.inputs.sets, config.dev)
    return monitor.Probe(
      train=self.inputs.sentences(config, np.concatenate(rows)),
      held_out=held_out[: monitor.probe_size(len(held_out), config.batch_size)],
      batch_size=config.batch_size,
      max_length=config.max_length,
    )

  def _teachers(self, config) -> list[teaching_lib.Teacher]:
    """Every teacher of a round."""
    teachers = []
    shares = config.teacher_weights or [None] * len(config.teachers)
    for name, share in zip(config.teachers, shares):
      members = config_lib.members(self.rounds, name)
      if members:
        tokens = self.inputs.tokens(config)
        models = {
          _model_name(each, seed, self.rounds[each].seeds): folder.load(
            str(self._folder(each, seed) / "model")
          )
          for each, seed in members
        }
      else:
        models = {name: self.inputs.outside(name)}
        tokens = self.inputs.teacher_tokens(models[name], config)
      weight = 1.0 if share is None else share / len(models)
      teachers += [
        teaching_lib.Teacher(key, model, weight, tokens)
        for key, model in models.items()
      ]
    return teachers

  def _teaching(self, config, teachers) -> teaching_lib.Teaching:
    if config.teacher_cache:
      return teaching_lib.cached(
        teachers,
        self.workdir / "cache",
        dtype=config.teacher_cache,
        compute_dtype=config.dtype,
      )
    return teaching_lib.online(teachers, self.inputs.tokens(config), config.dtype)

  def _distillation(self, name, config, start, probe, teachers):
    """Measures students against the teachers, and writes how these differ."""
    embedded = {
      split: [probe.embed(teacher.model, split) for teacher in teachers]
      for split in probe.splits()
    }
    if len(teachers) > 1:
      spread = diagnostics.teacher_spread(embedded["train"])
      names = [teacher.name for teacher in teachers]
      write_json(self.workdir / name / "teachers.json", {"teachers": names, **spread})
    weights = [teacher.weight for teacher in teachers]
    return monitor.Distillation(
      start,
      probe,
      {
        split: diagnostics.average_similarities(embeddings, weights)
        for split, embeddings in embedded.items()
      },
      student_temperature=config.student_temperature,
      teacher_temperature=config.teacher_temperature,
      divergence=config.divergence,
    )

  def _export(self, name: str) -> None:
    best, export = self._best(name), self.workdir / "export"
    beside = self.workdir / ".export.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(best / "model", beside)
    shutil.rmtree(export, ignore_errors=True)
    beside.rename(export)


def _json(config: config_lib.ConfigDict) -> dict[str, Any]:
  fields = json.loads(config.to_json_best_effort())
  return {key: value for key, value in fields.items() if key != "recipe"}


def _data_seed(recipe_seed: int, seed: int) -> int:
  state = np.random.SeedSequence([recipe_seed, seed]).generate_state(1)
  return int(state[0])


def _model_name(name: str, seed: int, seeds: Sequence[int]) -> str:
  return name if len(seeds) == 1 else f"{name}-{seed}"


def _mean(scores: dict[str, float], names: Sequence[str]) -> float | None:
  present = [scores[name] for name in names if name in scores]
  return float(np.mean(present)) if present else None


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

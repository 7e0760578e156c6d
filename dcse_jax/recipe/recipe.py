"""The self-training recipe: rounds of training, each on the models of earlier ones.

Everything that a run reads is read and checked before training is compiled. A
finished model leaves `WORKDIR/ROUND/SEED/result.json`, written last; the same
command run again goes on where it was.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
from typing import Any

import jax

from dcse_jax import config as config_lib
from dcse_jax.eval import sts
from dcse_jax.hub import folder
from dcse_jax.hub.model_card import make_card
from dcse_jax.model import model as model_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.recipe import finished
from dcse_jax.recipe import inputs as inputs_lib
from dcse_jax.recipe import round as round_lib
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

_log = logging.getLogger(__name__)


# Fields without an influence on the models, or of which the content has it: see
# `_content`.
_IMMATERIAL = (
  "log_every",
  "max_skipped_steps",
  "mesh",
  "microbatches",
  "model",
  "profile_steps",
  "recipe",
  "row_blocks",
  "seeds",
  "sts",
  "teachers",
  "text",
)


def run(
  config: config_lib.ConfigDict, workdir: str, *, accept_changes: bool = False
) -> list[dict[str, Any]]:
  """Runs the recipe, or what is left of it.

  Args:
    config: as `config.default` describes.
    workdir: holds all that the run writes, a folder or gs://BUCKET/PATH; of one run
      at a time.
    accept_changes: goes on in a workdir whose rounds come from another config,
      text, model, teachers or sets. What is finished stays as it is.

  Returns:
    A row a model in order of training: name, round, seed, dev, test; the last
    two mean Spearman in percent, None without such sets.

  Raises:
    UserError: bad input, found before any training is compiled; another run in
      the workdir; or something that cannot be read or written.
  """
  config_lib.check(config)
  place = workdir_lib.Workdir(workdir)
  # Of several processes the first stands for all.
  with locked(place.folder) if processes.is_first() else contextlib.nullcontext():
    if place.is_shared and len(processes.sharing(place.folder)) < jax.process_count():
      raise UserError(
        f"--workdir={workdir} is not one folder for all processes: name one on a file "
        "system that they share, or gs://BUCKET/PATH"
      )
    with place.synced():
      return Recipe(config, place, accept_changes=accept_changes).run()


class Recipe:
  """One config in one workdir, with its inputs read and checked."""

  def __init__(
    self,
    config: config_lib.ConfigDict,
    workdir: workdir_lib.Workdir,
    *,
    accept_changes: bool = False,
  ):
    self.config = config.copy_and_resolve_references()
    self._place, self.workdir = workdir, workdir.folder
    self.rounds = {name: config_lib.of_round(config, name) for name in config.recipe}
    self.mesh = mesh_lib.make_mesh(**self.config.mesh)
    compilation.use_cache(workdir.cache / "compiled")
    # A recipe may grow or shrink: rounds that are there must only be the same.
    self._origins: dict[str, dict[str, Any]] = {}
    for name, round_config in self.rounds.items():
      self._origins[name] = self._origin(round_config)
    self._check_workdir("material", accept_changes)
    for name, round_config in self.rounds.items():
      round_lib.check_batch(round_config, name, self.mesh)
    recipe = json.loads(self.config.to_json_best_effort())
    self.inputs = inputs_lib.Inputs(self.config, self.rounds, self.workdir)
    digests = self._digests()
    for name, round_config in self.rounds.items():
      self._origins[name]["content"] = self._content(round_config, digests)
    self._check_workdir("content", accept_changes)
    self._check_disk()
    # Not before the inputs are known to be good: a command that was refused
    # must not bind the workdir to its mistake.
    if processes.is_first():
      write_json(self.workdir / "config.json", {"config": recipe})

  def _origin(self, config: config_lib.ConfigDict) -> dict[str, Any]:
    """What a round's models come from, but for their seeds, JSON.

    `config` is for people, `material` decides whether another command would make
    the same models.
    """
    fields = config_lib.used(config)
    fields["teachers"] = self._members(config)
    material = {key: fields[key] for key in fields if key not in _IMMATERIAL}
    members = [
      m for m in itertools.chain(*fields["teachers"]) if not isinstance(m, str)
    ]
    if "pooling" in material:
      material["pooling"] = pooling_lib.recorded(material["pooling"])
    if config.start:
      fields["start"] = config_lib.members(self.rounds, config.start)
      material["start"] = fields["start"]
      members += fields["start"]
    for parent, _ in members:
      material[f"round {parent}"] = _digest(self._origins[parent]["material"])
    del fields["recipe"], fields["seeds"]
    # Tuples are lists when they come back from the file.
    return json.loads(
      json.dumps({"config": fields, "material": material}, sort_keys=True)
    )

  def _digests(self) -> dict[str, str]:
    """Of the models that come from elsewhere, by name; the start's is empty."""
    members = (itertools.chain(*self._members(c)) for c in self.rounds.values())
    names = {m for m in itertools.chain(*members) if isinstance(m, str)}
    digests = {name: model_lib.digest(self.inputs.outside(name)) for name in names}
    return {**digests, "": model_lib.digest(self.inputs.start)}

  def _content(self, config: config_lib.ConfigDict, digests) -> dict[str, Any]:
    """Digests of what a round reads, so that it may lie elsewhere, JSON."""
    members = itertools.chain(*self._members(config))
    content = {
      "text or tokenizer": self.inputs.tokens(config).key,
      "model": digests[""],
      "teachers": [digests[m] if isinstance(m, str) else m for m in members],
      "sets": {
        name: sts.digest(self.inputs.sets[name])
        for name in (*config.dev, *config.test)
        if name in self.inputs.sets
      },
    }
    return json.loads(json.dumps(content))

  def _check_workdir(self, part: str, accept_changes: bool) -> None:
    """Refuses a workdir where something else made a round, or says so.

    A field that is newer than the workdir had its default there.
    """
    for name, origin in self._origins.items():
      path = self.workdir / name / "origin.json"
      if not path.exists():
        continue
      ours, theirs = origin[part], read_json(path).get(part, {})
      if part == "material":
        defaults = {k: v for k, v in config_lib.defaults().items() if k in ours}
        theirs = defaults | theirs | self._parents(theirs)
      changes = [
        _change(field, theirs.get(field), ours.get(field))
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field)
      ]
      if not changes:
        continue
      what = f"{path.parent} comes from something else: {', '.join(changes)}"
      if not accept_changes:
        raise UserError(
          f"{what}: name another --workdir, restore it, or go on with the change by "
          "--accept_changes"
        )
      _log.warning("%s; going on with the change", what)

  def _parents(self, material: dict[str, Any]) -> dict[str, str]:
    """The digests of parents in a material that an earlier version wrote, as now.

    They were of all fields, and so of those alone that there were.
    """
    renewed = {}
    for name in self._origins:
      path = self.workdir / name / "origin.json"
      if f"round {name}" in material and path.exists():
        parent = read_json(path).get("material", {})
        before = hashlib.sha256(json.dumps(parent).encode()).hexdigest()
        if material[f"round {name}"] == before:
          renewed[f"round {name}"] = _digest(parent)
    return renewed

  def _check_disk(self) -> None:
    """Refuses teacher caches that the disk has no room for."""
    cached = {name: c for name, c in self.rounds.items() if c.teacher_cache}
    if not any(map(self._todo, cached)):
      return
    need = {}
    # Finished rounds, too: their files are among those that are there.
    for config in cached.values():
      for member in itertools.chain(*self._members(config)):
        model, tokens = self.inputs.start, self.inputs.tokens(config)
        if member in config.teachers:
          model = self.inputs.outside(member)
          tokens = self.inputs.teacher_tokens(model, config)
        # Rounds share the files of a teacher that they have in common.
        key = (member, tokens.key, config.teacher_cache, config.dtype)
        need[key] = teacher_cache.cache_bytes(
          len(tokens), model.pooled_size, config.teacher_cache
        )
    cache, total = self._place.cache, sum(need.values())
    _log.info("teacher caches: %.2f GB in all, in %s", total / 1e9, cache)
    missing = total - teacher_cache.bytes_there(cache, need.values())
    teacher_cache.check_disk(cache, missing, "the teacher cache")

  def run(self) -> list[dict[str, Any]]:
    """Trains what is not trained yet; writes results.json and export/."""
    for name, round_config in self.rounds.items():
      signals.check()
      if todo := self._todo(name):
        self._run_round(name, todo)
    rows = [
      {**self._result(name, seed), "name": round_lib.model_name(name, seed, c.seeds)}
      for name, c in self.rounds.items()
      for seed in c.seeds
    ]
    columns = ("name", "round", "seed", "dev", "test")
    models = [{key: row[key] for key in columns} for row in rows]
    best = self._best(list(self.rounds)[-1])
    if processes.is_first():
      self._export(best)
      write_json(self.workdir / "results.json", {"models": models})
      print(_format_results(rows, self.config.test))
      print(
        f"best model of the last round: {self._place.address(self.workdir / 'export')}"
      )
    processes.wait()
    return models

  def _todo(self, name: str) -> list[int]:
    """The seeds of a round that are not trained yet."""
    return [seed for seed in self.rounds[name].seeds if not self._result(name, seed)]

  def _folder(self, name: str, seed: int) -> pathlib.Path:
    return self.workdir / name / str(seed)

  def _result(self, name: str, seed: int) -> dict[str, Any] | None:
    path = self._folder(name, seed) / "result.json"
    return processes.agree(read_json(path) if path.exists() else None)

  def _best(self, name: str) -> pathlib.Path:
    """The folder of a finished round's best model on dev."""
    results = {seed: self._result(name, seed) for seed in self.rounds[name].seeds}
    return self._folder(name, finished.best_seed(results))

  def _run_round(self, name: str, seeds: Sequence[int]) -> None:
    config = self.rounds[name]
    if processes.is_first():
      write_json(self.workdir / name / "origin.json", self._origins[name])
    start = self.inputs.start
    if config.start:
      start = folder.load(
        str(self._best(config.start) / "model"), default_pooling=config.pooling
      )
      start = dataclasses.replace(start, head=None)
    round_lib.Round(
      name,
      config,
      workdir=self._place,
      seeds=seeds,
      inputs=self.inputs,
      start=start,
      teachers=self._teachers(config),
      mesh=self.mesh,
    ).train()

  def _members(self, config) -> list[list[Any]]:
    """For each name in a round's teachers, its models' (round, seed) or itself."""
    return [config_lib.members(self.rounds, name) or [name] for name in config.teachers]

  def _teachers(self, config) -> list[teaching.Teacher]:
    """Every teacher of a round, loaded."""
    teachers = []
    members = self._members(config)
    shares = config.teacher_weights or [len(each) for each in members]
    for each, share in zip(members, shares):
      for member in each:
        if member in config.teachers:
          name, model = member, self.inputs.outside(member)
          tokens = self.inputs.teacher_tokens(model, config)
        else:
          name = round_lib.model_name(*member, self.rounds[member[0]].seeds)
          model = folder.load(str(self._folder(*member) / "model"))
          tokens = self.inputs.tokens(config)
        teachers.append(teaching.Teacher(name, model, share / len(each), tokens))
    return teachers

  def _export(self, best: pathlib.Path) -> None:
    """Writes a model of a round, with a card, unless it is there."""
    path = self.workdir / "export"
    if digests_lib.are_alike(path, best / "model") and not digests_lib.find_damage(
      path
    ):
      return
    model, training = finished.load(best)
    card = make_card(model, f"{best.parent.name}-{best.name}", training)
    folder.save(
      model,
      path,
      lambda path: path.joinpath("README.md").write_text(card, encoding="utf-8"),
      overwrite=True,
    )


def _digest(material: dict[str, Any]) -> str:
  """A name for what a round comes from: fields at their defaults have no part in it."""
  defaults = config_lib.defaults()
  changed = {k: v for k, v in material.items() if k not in defaults or v != defaults[k]}
  return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()


def _change(field: str, before: Any, now: Any) -> str:
  """One difference, for people; of digests only what they are of."""
  plain = (str, int, float, bool)
  is_digest = field in ("model", "text or tokenizer") or field.startswith("round ")
  if is_digest or not isinstance(before, plain) or not isinstance(now, plain):
    return f"another {field}"
  return f"{field} was {before!r} and is {now!r}"


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

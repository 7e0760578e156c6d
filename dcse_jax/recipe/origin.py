"""What a round's models come from, and whether another command would differ."""

from collections.abc import Mapping
import hashlib
import itertools
import json
import logging
import pathlib
from typing import Any

from dcse_jax import config as config_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.recipe import inputs as inputs_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import read_json

_log = logging.getLogger(__name__)

Rounds = Mapping[str, config_lib.ConfigDict]
# What each round comes from, by the round's name.
Origins = dict[str, dict[str, Any]]

# Fields that have no influence on the models, or whose influence is in the content:
# see `add_content`.
_IMMATERIAL = (
  "counted",
  "log_every",
  "logger",
  "max_skipped_steps",
  "mesh",
  "microbatches",
  "mine_corpus",
  "model",
  "profile_steps",
  "recipe",
  "row_blocks",
  "seeds",
  "sts",
  "teachers",
  "text",
)


def members(rounds: Rounds, config: config_lib.ConfigDict) -> list[list[Any]]:
  """Lists for each name in a round's teachers its models' (round, seed), or itself."""
  return [config_lib.members(rounds, name) or [name] for name in config.teachers]


def of_rounds(rounds: Rounds) -> Origins:
  """Returns what the models of each round come from, except for their seeds, JSON.

  `config` is for people; `material` decides whether another command would make
  the same models.
  """
  origins: Origins = {}
  for name, config in rounds.items():
    origins[name] = _origin(rounds, config, origins)
  return origins


def add_content(origins: Origins, rounds: Rounds, inputs: inputs_lib.Inputs) -> None:
  """Adds `content`: digests of what each round reads, wherever the files are."""
  digests = _digests(rounds, inputs)
  for name, config in rounds.items():
    origins[name]["content"] = _content(rounds, config, inputs, digests)


def check(
  workdir: pathlib.Path, origins: Origins, part: str, accept_changes: bool
) -> None:
  """Refuses a workdir where a round comes from something else, or warns.

  A field that is newer than the workdir had its default there.

  Args:
    workdir: the run's.
    origins: those of the rounds to run.
    part: `material` or `content`.
    accept_changes: whether to warn of what differs, and continue.

  Raises:
    UserError: something differs; the error names it.
  """
  defaults = config_lib.defaults()
  for name, origin in origins.items():
    path = workdir / name / "origin.json"
    if not path.exists():
      continue
    ours, theirs = origin[part], read_json(path).get(part, {})
    if part == "material":
      before = {k: v for k, v in defaults.items() if k in ours}
      theirs = before | theirs | _parents(workdir, origins, theirs)
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


def _parents(
  workdir: pathlib.Path, origins: Origins, material: dict[str, Any]
) -> dict[str, str]:
  """Renews the digests of parents in a material that an earlier version wrote.

  Those were digests of all fields that there were then.
  """
  renewed = {}
  for name in origins:
    path = workdir / name / "origin.json"
    if f"round {name}" in material and path.exists():
      parent = read_json(path).get("material", {})
      before = hashlib.sha256(json.dumps(parent).encode()).hexdigest()
      if material[f"round {name}"] == before:
        renewed[f"round {name}"] = _digest(parent)
  return renewed


def _origin(
  rounds: Rounds, config: config_lib.ConfigDict, origins: Origins
) -> dict[str, Any]:
  """Returns what one round's models come from; origins has the rounds before."""
  fields = config_lib.used(config)
  fields["teachers"] = members(rounds, config)
  material = {key: fields[key] for key in fields if key not in _IMMATERIAL}
  models = [m for m in itertools.chain(*fields["teachers"]) if not isinstance(m, str)]
  if "pooling" in material:
    material["pooling"] = pooling_lib.recorded(material["pooling"])
  if config.start:
    fields["start"] = config_lib.members(rounds, config.start)
    material["start"] = fields["start"]
    models += fields["start"]
  for parent, _ in models:
    material[f"round {parent}"] = _digest(origins[parent]["material"])
  del fields["recipe"], fields["seeds"]
  # JSON turns tuples into lists, as they are when read from the file.
  return json.loads(
    json.dumps({"config": fields, "material": material}, sort_keys=True)
  )


def _digests(rounds: Rounds, inputs: inputs_lib.Inputs) -> dict[str, str]:
  """Digests the models from elsewhere, by name; the start's name is empty."""
  each = (itertools.chain(*members(rounds, c)) for c in rounds.values())
  names = {m for m in itertools.chain(*each) if isinstance(m, str)}
  digests = {
    name: inputs.embeddings[name].digest
    if name in inputs.embeddings
    else model_lib.digest(inputs.outside[name])
    for name in names
  }
  return {**digests, "": model_lib.digest(inputs.start)}


def _content(
  rounds: Rounds,
  config: config_lib.ConfigDict,
  inputs: inputs_lib.Inputs,
  digests: Mapping[str, str],
) -> dict[str, Any]:
  """Returns digests of what one round reads, JSON."""
  teachers = itertools.chain(*members(rounds, config))
  content = {
    "text or tokenizer": inputs.tokens(config).key,
    "model": digests[""],
    "teachers": [digests[m] if isinstance(m, str) else m for m in teachers],
    "sets": {
      name: digest
      for each in (*inputs.dev, *inputs.test)
      for name, digest in each.digests.items()
    },
  }
  if corpus := inputs.corpus(config):
    content["corpus of negatives"] = corpus.key
  return json.loads(json.dumps(content))


def _digest(material: dict[str, Any]) -> str:
  """Digests what a round comes from; fields at their defaults have no part in it."""
  defaults = config_lib.defaults()
  changed = {k: v for k, v in material.items() if k not in defaults or v != defaults[k]}
  return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()


def _change(field: str, before: Any, now: Any) -> str:
  """Describes a difference for people; digests themselves are not shown."""
  plain = (str, int, float, bool)
  is_digest = field in ("model", "text or tokenizer") or field.startswith("round ")
  if is_digest or not isinstance(before, plain) or not isinstance(now, plain):
    return f"another {field}"
  return f"{field} was {before!r} and is {now!r}"

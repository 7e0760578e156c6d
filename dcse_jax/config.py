"""Every field of a config, what it means, and its default.

A file of `configs/` begins with `default()` and sets what its paper sets. A
field that a run may leave out has a value that says so: "", 0 or ().
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any

import ml_collections

from dcse_jax import losses
from dcse_jax.eval import sts_sets
from dcse_jax.losses.terms import POSITIVE
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import Weighted
from dcse_jax.model.encoder import NEW
from dcse_jax.model.pooling import POOLINGS
from dcse_jax.objective.inputs import OFFERED
from dcse_jax.runtime.errors import UserError

ConfigDict = ml_collections.ConfigDict

# What a round cannot have for itself.
_OF_RECIPE = (
  "model",
  "encoder",
  "pooling",
  "num_layers",
  "synthetic_sentences",
  "synthetic_pairs",
  "sts",
  "dev",
  "test",
  "seed",
  "mesh",
  "recipe",
  "rounds",
)
# What a workdir holds beside the rounds.
_FOLDERS = ("cache", "data", "export", "report")
_COUNT, _COUNT_OR_NONE = Range(1, whole=True), Range(0, whole=True)
_SHARE_BELOW_1 = Range(0, 1, below=True)
# What each number and each word of a few may be; the settings of terms have their
# ranges beside the terms.
_RANGES = {
  "pooling": Choice(tuple(POOLINGS)),
  "schedule": Choice(("linear", "cosine")),
  "dtype": Choice(("float32", "bfloat16")),
  "teacher_cache": Choice(("", "float16", "bfloat16", "float32")),
  "encoder.family": Choice(tuple(NEW)),
  "encoder.vocab_size": _COUNT,
  "encoder.hidden_size": _COUNT,
  "encoder.num_layers": _COUNT,
  "encoder.num_heads": _COUNT,
  "encoder.intermediate_size": _COUNT,
  "encoder.initializer_range": POSITIVE,
  "num_layers": _COUNT_OR_NONE,
  "synthetic_sentences": _COUNT_OR_NONE,
  "synthetic_pairs": _COUNT_OR_NONE,
  "max_length": _COUNT,
  "switch_case": _SHARE_BELOW_1,
  "batch_size": Range(2, whole=True),
  "microbatches": _COUNT,
  "row_blocks": _COUNT,
  "num_train_steps": _COUNT,
  "learning_rate": POSITIVE,
  "schedule_steps": _COUNT_OR_NONE,
  "warmup_steps": _COUNT_OR_NONE,
  "weight_decay": Range(0),
  "clip_norm": POSITIVE,
  "sparsity": _SHARE_BELOW_1,
  "max_skipped_steps": _COUNT_OR_NONE,
  "mesh.data": Range(-1, whole=True),
  "mesh.fsdp": _COUNT,
  # JAX keeps 32 bits of a seed: a larger one would be another's equal.
  "seed": Range(0, 2**32 - 1, whole=True),
  "log_every": _COUNT,
  "eval_every": _COUNT,
  # A round has these.
  "seeds": Range(0, 2**32 - 1, whole=True, several=True),
}


def _validate_tuple(field: str, value: Any) -> str:
  if not isinstance(value, (tuple, list)):
    return "must be a tuple"
  # The others hold numbers, and are checked by what they are for.
  if field in ("teacher_weights", "profile_steps"):
    return ""
  return "" if all(isinstance(each, str) for each in value) else "must hold strings"


# What is wrong with a value of a field whose default has this type; "" if nothing is.
_TYPES = {
  str: lambda field, value: "" if isinstance(value, str) else "must be a string",
  bool: lambda field, value: "" if isinstance(value, bool) else "must be True or False",
  tuple: _validate_tuple,
}


def choose(variant: str, variants: Mapping[str, Any]) -> Any:
  """The value of a config file's variant.

  Raises:
    UserError: no such variant, naming those there are.
  """
  if variant not in variants:
    raise UserError(
      f"unknown variant {variant!r} of the config: use one of "
      + ", ".join(name or "none" for name in variants)
    )
  return variants[variant]


def default() -> ConfigDict:
  """A config with every field at its default; SimCSE's values where it has one."""
  config = ConfigDict()

  # The encoder that training starts from: a folder or hub id, or ID@REVISION with
  # a branch, tag or commit, as teachers are named too. Empty: a new one of shape
  # `encoder`, with a WordPiece tokenizer trained on `text`.
  config.model = ""
  config.encoder = ConfigDict(
    dict(
      family="bert",  # Or another of `model.encoder.NEW`: "modernbert", ...
      vocab_size=8000,
      hidden_size=256,
      num_layers=4,
      num_heads=4,
      intermediate_size=1024,
      initializer_range=0.02,
    )
  )
  # How states become an embedding, where the model's folder does not say
  # itself. "cls" trains through a projection that evaluation drops.
  config.pooling = "cls"
  # Keeps that projection in what is evaluated and exported, as a dense layer.
  config.keep_head = False
  config.num_layers = 0  # How many of the first layers are kept; 0 keeps all.

  # Text: .txt, .csv, .tsv or .jsonl, also .gz, or tfds:NAME:SPLIT:FEATURE.
  # A table's columns: one, sentences; two, anchor and positive; three, hard negatives.
  config.text = ""
  config.columns = ()
  # In place of `text` and `sts`: sentences and scored pairs made on the spot.
  config.synthetic_sentences = 0
  config.synthetic_pairs = 0
  config.max_length = 32  # Tokens of a training sentence.
  # For text of one column and a cased model: the positive is the sentence with the case
  # of the first letter of this share of its words switched. 0 switches none.
  config.switch_case = 0.0

  # A folder of STS sets, NAME.tsv. The mean over `dev` chooses the best parameters;
  # `test` is scored once with these. Both name sets of the folder, transfer:DIR for
  # the mean over transfer tasks (of `dev` without their test sets), or
  # masked_words:FILE for the share of masked words guessed. Names of sets count for
  # nothing without the folder; where nothing is left the last parameters are kept.
  config.sts = ""
  config.dev = ("STSB-dev",)
  config.test = ()

  # A weighted sum of terms, such as "info_nce + 0.1 * masked_language_model". The
  # settings of each term are config.TERM.SETTING; `dcse_jax/losses` documents them.
  config.objective = "info_nce"
  for term in losses.TERMS.values():
    config[term.name] = ConfigDict(dict(term.settings))

  # Embeds the text by every teacher once, into files of this type, in place of
  # running the teachers at every step: "float16" takes two bytes a sentence and
  # dimension. Pays where a sentence is met more than once, or by more students.
  config.teacher_cache = ""

  # Optimisation: AdamW, with clipping by global norm.
  config.batch_size = 64
  # So many parts of a batch are encoded one after the other: with the memory of one,
  # a third more work, and the gradient of the whole.
  config.microbatches = 1
  # So many blocks of its rows are compared with the whole batch one after the other:
  # memory for similarities falls from B * B to B * B / row_blocks. Pays from some
  # thousands of sentences.
  config.row_blocks = 1
  config.num_train_steps = 15_625
  config.learning_rate = 3e-5
  config.schedule = "linear"
  # Steps after which the learning rate would be 0; 0 is num_train_steps. More of them
  # stop a longer training before its end.
  config.schedule_steps = 0
  config.warmup_steps = 0
  config.weight_decay = 0.0
  config.clip_norm = 1.0
  # This share of the elements of the layers' matrices, that which does least for
  # alignment and uniformity, is zero from the start and stays so.
  config.sparsity = 0.0
  config.dtype = "float32"  # Of matrix products; all else is float32.

  # A step whose loss or gradient is not finite changes nothing, and its batch is
  # written to ROUND/SEED/skipped.jsonl; at more of them a model's run stops.
  config.max_skipped_steps = 0

  # Trains a round's models as one program, each as it would be alone: pays where
  # one model leaves the device half idle.
  config.parallel_seeds = False

  # How the devices of all hosts are arranged. Batches lie over both axes; parameters,
  # optimizer and teachers are divided over "fsdp", whole over "data". -1: the rest.
  config.mesh = ConfigDict(dict(data=-1, fsdp=1))

  # The first step to trace for xprof, and the first not to, as in (10, 20); of each
  # model, or of those that train together, into ROUND/SEED/profile. None if empty.
  config.profile_steps = ()

  config.seed = 0  # Of the whole recipe; every model's own is mixed in.
  config.log_every = 25
  config.eval_every = 125  # Evaluates and saves a checkpoint.

  # The recipe: names of `rounds` in the order of training; the last is the
  # result. Each round trains one model a seed, from `model` again, and may set
  # for itself any field above but those of the whole recipe (`_OF_RECIPE`).
  config.recipe = ()
  config.rounds = ConfigDict()
  return config


def simcse(variant: str) -> ConfigDict:
  """`default` with the encoder of a variant, trained for one epoch of a million.

  Args:
    variant: "bert-base", "bert-large", "roberta-base" or "roberta-large"; batch
      and learning rate are those that Gao et al., SimCSE, 2021, found for it
      (arXiv:2104.08821).
  """
  config = default()
  config.model, config.batch_size, config.learning_rate = choose(
    variant,
    {
      "bert-base": ("bert-base-uncased", 64, 3e-5),
      "bert-large": ("bert-large-uncased", 64, 1e-5),
      "roberta-base": ("roberta-base", 512, 1e-5),
      "roberta-large": ("roberta-large", 512, 3e-5),
    },
  )
  config.num_train_steps = 1_000_000 // config.batch_size
  config.test = sts_sets.SEVEN_TEST_SETS
  return config


def round_config(
  seeds: Sequence[int],
  *,
  start: str = "",
  teachers: Sequence[str] = (),
  teacher_weights: Sequence[float] = (),
  **fields: Any,
) -> ConfigDict:
  """One round of a recipe.

  Args:
    seeds: one model is trained for each.
    start: the earlier round whose best model it starts from; "" starts from the
      config's `model`.
    teachers: whose similarities are averaged: the name of an earlier round
      stands for all its models, ROUND/SEED for one of them, any other for a
      folder or hub id.
    teacher_weights: one for each name in `teachers`, shared among its models;
      all models weigh the same if empty.
    **fields: fields of the config that differ in this round.
  """
  return ConfigDict(
    dict(
      seeds=tuple(seeds),
      start=start,
      teachers=tuple(teachers),
      teacher_weights=tuple(teacher_weights),
      **fields,
    )
  )


def of_round(config: ConfigDict, name: str) -> ConfigDict:
  """The config of one round: the recipe's fields, overridden by its own."""
  merged = config.copy_and_resolve_references()
  with merged.unlocked():
    del merged.rounds
    merged.update(config.rounds[name])
  return merged


def terms(config: ConfigDict) -> tuple[Weighted, ...]:
  """The objective of a round, with the settings of its terms.

  Raises:
    UserError: it is not a sum of known terms, each once.
  """
  try:
    return losses.parse(config.objective, config)
  except ValueError as error:
    raise UserError(f"objective={config.objective!r}: {error}") from error


def used(config: ConfigDict) -> dict[str, Any]:
  """A round's fields, JSON, with TERM.SETTING for the terms of its objective alone."""
  fields = _with_family(json.loads(config.to_json_best_effort()))
  settings = {name: fields.pop(name) for name in losses.TERMS}
  for each in terms(config):
    name = each.term.name
    fields |= {f"{name}.{key}": value for key, value in settings[name].items()}
  return fields


def _with_family(fields: dict[str, Any]) -> dict[str, Any]:
  """Names the family beside the encoder, of which there was but one once."""
  encoder = dict(fields["encoder"])
  family = encoder.pop("family", "bert")
  return {**fields, "encoder": encoder, "encoder.family": family}


def defaults() -> dict[str, Any]:
  """Every field at its default, JSON, named as `used` names them."""
  fields = _with_family(json.loads(default().to_json_best_effort()))
  for name in losses.TERMS:
    settings = fields.pop(name)
    fields |= {f"{name}.{key}": value for key, value in settings.items()}
  return fields


def members(rounds: Mapping[str, ConfigDict], name: str) -> list[tuple[str, int]]:
  """The models of a recipe that the name of a teacher stands for.

  Args:
    rounds: configs by name.
    name: a round's, or ROUND/SEED.

  Returns:
    Pairs of round and seed; none for a name of an outside teacher.

  Raises:
    UserError: the round has no such seed.
  """
  name, _, seed = name.partition("/")
  if name not in rounds:
    return []
  seeds = tuple(rounds[name].seeds)
  if not seed:
    return [(name, each) for each in seeds]
  if seed not in map(str, seeds):
    raise UserError(f"teacher {name}/{seed}: round {name} has the seeds {seeds}")
  return [(name, int(seed))]


def check(config: ConfigDict) -> None:
  """Refuses values that no run can use.

  Raises:
    UserError: naming the field, the value and what it may be.
  """
  known = default()
  for name in config:
    if name not in known:
      raise UserError(f"unknown config field {name!r}: see dcse_jax/config.py")
  _check_fields(config, known, "config")
  _check_encoder(config.encoder)
  _check_mesh(config.mesh)
  if config.synthetic_sentences and (config.text or config.sts):
    raise UserError(
      "synthetic_sentences makes up text and sets: leave config.text and "
      "config.sts empty, or set synthetic_sentences=0"
    )
  if not config.recipe:
    raise UserError("config.recipe is empty: name one round or more")
  for i, name in enumerate(config.recipe):
    if name not in config.rounds or name in config.recipe[:i]:
      raise UserError(
        f"config.recipe={config.recipe}: name each of "
        f"{', '.join(config.rounds)} once at most"
      )
    if name in _FOLDERS:
      raise UserError(
        f"no round can be called {name!r}: its workdir has a folder of that name"
      )
    for field in config.rounds[name]:
      if field not in known and field not in round_config(()):
        raise UserError(f"rounds.{name}: unknown field {field!r}")
      if field in _OF_RECIPE:
        raise UserError(
          f"rounds.{name}.{field}: {field} is of the whole recipe; set config.{field}"
        )
    later = set(config.rounds) - set(config.recipe[:i])
    _check_round(name, of_round(config, name), config.recipe[:i], later)
    for teacher in of_round(config, name).teachers:
      for member, _ in members(config.rounds, teacher):
        if of_round(config, member).keep_head:
          raise UserError(
            f"rounds.{name}.teachers: {teacher} keeps its head (keep_head=True), which "
            "a teacher may not have: train it without"
          )


def _check_fields(config: ConfigDict, known: ConfigDict, where: str) -> None:
  """Refuses a value that is outside of its field's range, or of another type."""
  for field in config:
    if field in losses.TERMS or field not in known:
      continue
    if isinstance(known[field], ConfigDict):
      for name, value in config[field].items():
        _check_range(f"{field}.{name}", value, where)
    elif field in _RANGES:
      _check_range(field, config[field], where)
    elif problem := _TYPES[type(known[field])](field, config[field]):
      raise UserError(f"{where}.{field}={config[field]!r}: {problem}")


def _check_range(field: str, value: Any, where: str) -> None:
  if field in _RANGES and (problem := _RANGES[field].validate(value)):
    raise UserError(f"{where}.{field}={value!r}: {problem}")


def _check_mesh(mesh: ConfigDict) -> None:
  if set(mesh) != {"data", "fsdp"}:
    raise UserError(f"config.mesh has the axes {', '.join(mesh)}: name data and fsdp")
  if mesh.data == 0:
    raise UserError("config.mesh.data=0: name a number of devices, or -1 for the rest")


def _check_encoder(encoder: ConfigDict) -> None:
  known = default().encoder
  # An encoder without a family is a BERT.
  if {"family", *encoder} != set(known):
    raise UserError(
      f"config.encoder has the fields {', '.join(encoder)}: it needs "
      + ", ".join(known)
    )
  is_paired = encoder.get("family", "bert") != "bert"
  if encoder.hidden_size % (encoder.num_heads * (1 + is_paired)):
    pairs = ", in pairs" if is_paired else ""
    raise UserError(
      f"encoder.hidden_size={encoder.hidden_size} does not divide among "
      f"encoder.num_heads={encoder.num_heads}{pairs}"
    )


def _check_round(
  name: str, config: ConfigDict, earlier: Sequence[str], later: set[str]
) -> None:
  _check_fields(config, round_config((), **default()), f"rounds.{name}")
  if 0 < config.schedule_steps < config.num_train_steps:
    raise UserError(
      f"rounds.{name}: schedule_steps={config.schedule_steps} is below num_train_steps="
      f"{config.num_train_steps}: the rate would be 0 before the end; set it to 0"
    )
  if config.warmup_steps >= config.num_train_steps:
    raise UserError(
      f"rounds.{name}: warmup_steps={config.warmup_steps} of num_train_steps="
      f"{config.num_train_steps} would never reach the learning rate: warm up for less"
    )
  if config.start and config.start not in earlier:
    raise UserError(
      f"rounds.{name}.start={config.start!r}: name an earlier round "
      f"({', '.join(earlier) or 'there is none'})"
    )
  if unready := later.intersection(t.partition("/")[0] for t in config.teachers):
    raise UserError(
      f"rounds.{name}.teachers={config.teachers}: {', '.join(unready)} does not "
      f"come before {name} in config.recipe={config.recipe}"
    )
  weights = config.teacher_weights
  if weights and (
    len(weights) != len(config.teachers) or any(map(POSITIVE.validate, weights))
  ):
    raise UserError(
      f"rounds.{name}.teacher_weights={weights}: give one above 0 for each of "
      f"the {len(config.teachers)} names in teachers"
    )
  profile = config.profile_steps
  if profile and (
    any(map(_COUNT_OR_NONE.validate, profile))
    or len(profile) != 2
    or not profile[0] < profile[1]
  ):
    raise UserError(
      f"profile_steps={profile} in round {name}: give the first step to trace and the "
      "first not to, as in (10, 20)"
    )
  _check_terms(name, config)


def _check_terms(name: str, config: ConfigDict) -> None:
  for term in losses.TERMS.values():
    if unknown := set(config[term.name]) - set(term.settings):
      raise UserError(
        f"rounds.{name}: unknown field {term.name}.{unknown.pop()}; {term.name} has "
        + (", ".join(term.settings) or "none")
      )
  asked = set()
  for each in terms(config):
    term, where = each.term.name, f"in round {name}"
    asked.update(each.term.inputs)
    required = {name.removeprefix("all_") for name in each.term.required}
    if unknown := [n for n in each.term.inputs if n not in OFFERED]:
      raise UserError(
        f"{term} asks for {', '.join(unknown)}, which no step offers: it may ask for "
        + ", ".join(OFFERED)
      )
    if problem := each.term.validate(each.settings, config.batch_size):
      raise UserError(f"{term}.{problem} ({where})")
    if "teacher" in required and not config.teachers:
      raise UserError(
        f"{term} {where} needs teachers: name them, or leave it out of objective="
        f"{config.objective!r}"
      )
  if config.teachers and not asked & {"teacher", "all_teacher"}:
    raise UserError(
      f"round {name} has teachers, and no term of objective={config.objective!r} "
      'learns from them: add one, as in "info_nce + distillation"'
    )

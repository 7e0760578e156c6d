"""The values that a config's fields may have; a run refuses all others at once."""

from collections.abc import Sequence
from typing import Any

from dcse_jax import losses
from dcse_jax.config import ConfigDict
from dcse_jax.config import counted
from dcse_jax.config import default
from dcse_jax.config import of_round
from dcse_jax.config import round_config
from dcse_jax.config import terms
from dcse_jax.data import splitting
from dcse_jax.losses.terms import POSITIVE
from dcse_jax.losses.terms import Choice
from dcse_jax.losses.terms import Range
from dcse_jax.model.encoder import NEW
from dcse_jax.model.pooling import POOLINGS
from dcse_jax.model.rotary import RotaryConfig
from dcse_jax.objective.inputs import OFFERED
from dcse_jax.runtime.errors import UserError
from dcse_jax.train.loggers import LOGGERS

# Fields that a round cannot have for itself.
_OF_RECIPE = (
  "model",
  "tokenizer",
  "encoder",
  "pooling",
  "prompts",
  "counted",
  "token_vectors",
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
# Folders of a workdir that are not rounds.
_FOLDERS = ("cache", "data", "export", "report")
_COUNT, _COUNT_OR_NONE = Range(1, whole=True), Range(0, whole=True)
_WIDTHS = Range(1, whole=True, several=True)
_SHARE_BELOW_1 = Range(0, 1, below=True)
_COUNTED = {
  "size": _COUNT_OR_NONE,
  "spelling_size": _COUNT_OR_NONE,
  "spelling_weight": POSITIVE,
  "width": _COUNT_OR_NONE,
  "window": _COUNT,
  "min_count": _COUNT,
  "most": Range(3, whole=True),
  "context_power": Range(0),
  "smooth": POSITIVE,
  "seed": Range(0, 2**32 - 1, whole=True),
}
# The range of each number, and the choices of each word; the settings of terms have
# their ranges beside the terms.
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
  "dropout": Range(-1, 1, below=True),
  "max_length": _COUNT,
  "switch_case": _SHARE_BELOW_1,
  "mine_every": _COUNT_OR_NONE,
  "mine_num_negatives": _COUNT,
  "mine_relative_margin": Range(),
  "batch_size": Range(2, whole=True),
  "bucket_batches": _COUNT_OR_NONE,
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
  # JAX keeps 32 bits of a seed: a larger one would equal another.
  "seed": Range(0, 2**32 - 1, whole=True),
  "log_every": _COUNT,
  "eval_every": _COUNT,
  "patience": _COUNT_OR_NONE,
  # This is a field of rounds.
  "seeds": Range(0, 2**32 - 1, whole=True, several=True),
}


def _validate_tuple(field: str, value: Any) -> str:
  if not isinstance(value, (tuple, list)):
    return "must be a tuple"
  # These hold numbers, and are checked where they are used.
  numbers = ("teacher_weights", "profile_steps", "matryoshka", "matryoshka_weights")
  if field in (*numbers, "crop"):
    return ""
  return "" if all(isinstance(each, str) for each in value) else "must hold strings"


def _validate_string(field: str, value: Any) -> str:
  if field == "text" and isinstance(value, (tuple, list)):
    return _validate_tuple(field, value)
  if not isinstance(value, str):
    return "must be a string"
  return splitting.fault(value) if field == "split" else ""


# Says what is wrong with a value, by the type of the field's default; "" if nothing.
_TYPES = {
  str: _validate_string,
  bool: lambda field, value: "" if isinstance(value, bool) else "must be True or False",
  tuple: _validate_tuple,
}


def check(config: ConfigDict) -> None:
  """Refuses values that no run can use.

  Raises:
    UserError: it names the field, the value and what it may be.
  """
  known = default()
  for name in config:
    if name not in known:
      raise UserError(f"unknown config field {name!r}: see dcse_jax/config.py")
  _check_fields(config, known, "config")
  if -1 < config.dropout < 0:
    raise UserError(f"config.dropout={config.dropout:g}: use -1, or a rate in [0, 1)")
  _check_encoder(config.encoder)
  _check_counted(config)
  _check_mesh(config.mesh)
  if config.synthetic_sentences and (config.text or config.sts):
    raise UserError(
      "synthetic_sentences makes up text and sets: leave config.text and "
      "config.sts empty, or set synthetic_sentences=0"
    )
  if config.model and config.tokenizer:
    raise UserError(
      f"config.tokenizer={config.tokenizer!r} is of a new encoder, and {config.model} "
      "has its own: leave one of them empty"
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


def _check_fields(config: ConfigDict, known: ConfigDict, where: str) -> None:
  """Refuses a value that is outside of its field's range, or has another type."""
  for field in config:
    if field in losses.TERMS or field not in known:
      continue
    if field == "counted":
      continue  # Its fields are names: see `_check_counted`.
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


def _check_counted(config: ConfigDict) -> None:
  """Refuses counted teachers of unknown or useless settings, or named as rounds are."""
  for name, settings in config.counted.items():
    if name in config.rounds:
      raise UserError(f"config.counted.{name}: a round has this name: choose another")
    for setting, value in settings.items():
      if setting not in _COUNTED:
        raise UserError(
          f"config.counted.{name}.{setting}: unknown setting; there are "
          + ", ".join(_COUNTED)
        )
      if problem := _COUNTED[setting].validate(value):
        raise UserError(f"config.counted.{name}.{setting}={value!r}: {problem}")
    every = counted(**settings)
    numbers = every.size + every.spelling_size
    if every.width > numbers:
      raise UserError(
        f"config.counted.{name}.width={every.width}: there are size and spelling_size "
        f"together, at most {numbers}"
      )
    if not numbers:
      raise UserError(
        f"config.counted.{name}: size=0 and spelling_size=0 leave nothing: give one"
      )
  if not config.token_vectors:
    return
  if config.token_vectors not in config.counted:
    raise UserError(
      f"config.token_vectors={config.token_vectors!r}: name one of config.counted "
      f"({', '.join(config.counted) or 'there is none'})"
    )
  family = config.encoder.get("family", "bert")
  if config.model or family != "bert":
    raise UserError(
      f"config.token_vectors={config.token_vectors!r} is of a new BERT, and this encoder "
      f"is {config.model or 'a new ' + family}: leave it out"
    )


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
  fields = {"family": "bert", **encoder}
  shape = NEW[fields.pop("family")](max_tokens=1, pad_token_id=0, **fields)
  is_paired = isinstance(shape, RotaryConfig)
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
  widths, weights = config.matryoshka, config.matryoshka_weights
  if widths and (problem := _WIDTHS.validate(widths)):
    raise UserError(f"matryoshka={widths} in round {name}: {problem}")
  if weights and (len(weights) != len(widths) or any(map(POSITIVE.validate, weights))):
    raise UserError(
      f"matryoshka_weights={weights} in round {name}: give one above 0 for each of "
      f"matryoshka={widths}"
    )
  shares = config.crop
  if shares and (
    any(map(POSITIVE.validate, shares))
    or len(shares) != 2
    or not shares[0] <= shares[1] <= 1
  ):
    raise UserError(
      f"crop={shares} in round {name}: give the least and the most share of a sentence's "
      "words, as in (0.4, 0.8)"
    )
  if shares and config.switch_case:
    raise UserError(
      f"crop={shares} and switch_case={config.switch_case:g} in round {name} both make "
      "the positives: set one of them"
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
  for each in config.logger:
    if each not in LOGGERS or config.logger.count(each) > 1:
      raise UserError(
        f"logger={config.logger} in round {name}: name some of {', '.join(LOGGERS)}, "
        "each once"
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

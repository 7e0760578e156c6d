"""What a config may say, and what is refused before anything is read."""

import math

import ml_collections
import pytest

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term
from dcse_jax.recipe import validate
from dcse_jax.runtime.errors import UserError
from tests import processes
from tests import recipes


def base():
  """A config of one round whose objective is every term, with teachers."""
  config = config_lib.default()
  config.objective = " + ".join(sorted(losses.TERMS))
  config.recipe = ("base",)
  config.rounds.base = config_lib.round_config((0,), teachers=("other",))
  return config


def numbers(config, prefix=""):
  """Lists the dotted names of all fields that are numbers, or tuples of numbers."""
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from numbers(value, f"{prefix}{name}.")
    elif type(value) in (int, float):
      yield f"{prefix}{name}"
    elif isinstance(value, tuple) and value and type(value[0]) is int:
      yield f"{prefix}{name}"


def get(config, name):
  for part in name.split("."):
    config = config[part]
  return config


def set_(config, name, value):
  *path, last = name.split(".")
  for part in path:
    config = config[part]
  with config.unlocked(), config.ignore_type():
    config[last] = value


# What each may least be, and what it may not be any more, as far as it has ends; the
# fields that are missing here have the range of counts, from 1.
OUTSIDE = {
  "bucket_batches": (-1,),
  "dropout": (-0.5, -2.0, 1.0),
  "encoder.initializer_range": (0.0, -1.0),
  "num_layers": (-1,),
  "synthetic_sentences": (-1,),
  "synthetic_pairs": (-1,),
  "switch_case": (-0.1, 1.0),
  "crop": ((0.5,), (0.0, 0.5), (0.8, 0.4), (0.5, 1.5), ("a", "b"), (0.1, 0.2, 0.3)),
  "mine_every": (-1,),
  "mine_relative_margin": (),
  "batch_size": (1,),
  "learning_rate": (0.0, -1.0),
  "schedule_steps": (-1, 15_624),
  "warmup_steps": (-5, 15_625, 20_000),
  "weight_decay": (-0.1,),
  "clip_norm": (0.0,),
  "patience": (-1,),
  "sparsity": (-0.1, 1.0),
  "max_skipped_steps": (-1,),
  "mesh.data": (-2, 0),
  "seed": (-1, 2**32),
  "rounds.base.seeds": ((-1,), (2**32,), (1.5,), (True,), ("a",), (), (1, 1)),
  "adap_acse.margin": (-0.1, 1.6),
  "adap_acse.similarity_threshold": (-1.1, 1.1),
  "core_tuning.alpha": (0.0, 1001.0),
  "debcse.least_propensity": (0.0, 1.1),
  "distillation.group_probability": (-0.1, 1.1),
  "distillation.group_size": (-1,),
  "distillation.group_top": (-1, 64),
  "focal_info_nce.margin": (-0.1, 2.1),
  "fraternal_twins.margin": (-0.1, 2.1),
  "gist.margin": (-0.1, 2.1),
  "incremental_false_negatives.num_clusters": ((1,), (), (2.5,)),
  "info_nce.negative_weight": (),
  "relaxed_contrastive.similarity_threshold": (-1.1, 1.1),
  "relaxed_contrastive.teacher_threshold": (-1.1, 1.1),
  "replaced_token_detection.mask_probability": (0.0, 1.0),
  "sscl.layers": ((0,), (), (3, 3)),
}


@pytest.mark.parametrize("name", numbers(base()))
def test_a_number_outside_of_its_fields_range_is_refused_by_name(name):
  value = get(base(), name)
  outside = OUTSIDE.get(name, (0,))
  if not isinstance(value, tuple):
    outside = (*outside, math.nan, math.inf, -math.inf, "many")
  if type(value) is int:
    outside = (*outside, value + 0.5, True)
  for wrong in outside:
    config = base()
    set_(config, name, wrong)
    with pytest.raises(UserError, match=name.split(".")[-1]) as error:
      validate.check(config)
    assert "\n" not in str(error.value)


def test_every_config_of_the_repository_is_within_its_ranges():
  for path in sorted((processes.ROOT / "configs").glob("*.py")):
    validate.check(recipes.load_config(path.stem))


@pytest.mark.parametrize(
  "field, value", [("text", 3), ("columns", "sentence"), ("dev", (1,)), ("sts", None)]
)
def test_a_value_of_another_type_is_refused_by_name(field, value):
  config = base()
  set_(config, field, value)
  with pytest.raises(UserError, match=f"config.{field}="):
    validate.check(config)


def test_a_warm_up_may_last_until_the_last_step_but_one():
  config = base()
  config.warmup_steps, config.num_train_steps = 9, 10
  validate.check(config)


@pytest.mark.parametrize(
  "objective, weights",
  [
    ("1e+0 * info_nce", [1.0]),
    ("1E+1*info_nce+2.5e-1 * distillation", [10.0, 0.25]),
    ("info_nce + 1.e+1*distillation", [1.0, 10.0]),
    (".5*info_nce+distillation", [0.5, 1.0]),
  ],
)
def test_weights_are_numbers_as_python_writes_them(objective, weights):
  assert [each.weight for each in losses.parse(objective)] == weights


def test_a_term_that_asks_for_what_no_step_offers_is_refused_with_what_there_is(
  monkeypatch,
):
  with monkeypatch.context() as patch:
    patch.setattr(losses.terms, "TERMS", dict(losses.TERMS))

    @term(margin=Range(0, 1))
    def misspelt(anchor, all_positives, *, margin=0.5):
      return anchor[:, 0] * all_positives[:, 0] * margin

    made = losses.terms.TERMS["misspelt"]
  monkeypatch.setitem(losses.TERMS, "misspelt", made)
  config = config_lib.default()
  config.objective = "misspelt"
  config.recipe = ("base",)
  config.rounds.base = config_lib.round_config((0,))
  with pytest.raises(UserError, match="misspelt asks for anchor, which.* anchors, "):
    validate.check(config)


def test_a_setting_without_a_range_is_an_error_where_the_term_is_written():
  with pytest.raises(TypeError, match="unranged: give the range of each of margin"):

    @term()
    def unranged(anchors, *, margin=0.5):
      return anchors[:, 0] * margin


def test_an_unknown_field_is_named_as_it_was_written(tmp_path):
  result = processes.run(
    "dcse_jax.main",
    "--config=configs/simcse.py",
    "--config.learnig_rate=1",
    f"--workdir={tmp_path}",
  )
  assert result.returncode == 2
  (line,) = result.stderr.strip().splitlines()
  assert line == (
    "error: unknown config field 'learnig_rate': did you mean \"learning_rate\"? "
    "dcse_jax/config.py lists them"
  )


def test_an_encoder_without_a_family_is_a_bert_and_makes_the_same_models():
  config, old = config_lib.default(), config_lib.default()
  old.encoder = {k: v for k, v in config.encoder.items() if k != "family"}
  assert config_lib.used(old) == config_lib.used(config)
  # What an earlier workdir holds of an encoder is equal to what this one says.
  assert "family" not in config_lib.used(config)["encoder"]
  assert config_lib.used(config)["encoder.family"] == "bert"
  assert config_lib.defaults()["encoder"] == config_lib.used(config)["encoder"]


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(family="gpt"), "config.encoder.family='gpt'.*modernbert"),
    (
      dict(family="modernbert", hidden_size=12),
      "hidden_size=12.*num_heads=4, in pairs",
    ),
    (dict(hidden_size=10), "hidden_size=10.*num_heads=4$"),
  ],
)
def test_an_encoder_that_no_family_has_is_refused(fields, message):
  config = recipes.load_config("simcse")
  config.encoder.update(fields)
  with pytest.raises(UserError, match=message):
    validate.check(config)

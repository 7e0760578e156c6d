"""Teachers that a recipe counts from its own text."""

import numpy as np
import pytest

from dcse_jax.counting import static
from dcse_jax.data import text as text_lib
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.hub import folder
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.recipe import validate
from dcse_jax.runtime import workdir
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import recipes

NEAR = dict(size=8, spelling_size=0, min_count=1)
SPELLED = dict(size=0, spelling_size=4, min_count=1)


@pytest.fixture
def config(files):
  config = recipes.from_files(files, "distil", num_layers=0)
  config.counted.near, config.counted.spelled = NEAR, SPELLED
  config.rounds.student.teachers = ("near", "spelled")
  return config


def test_counted_teachers_teach_as_the_folders_of_words_do(config, files, tmp_path):
  (sentences,) = text_lib.read_text(config.text).columns
  for name, settings in (("near", NEAR), ("spelled", SPELLED)):
    folder.save(static.count_words(list(sentences), **settings), tmp_path / name)
  recipe_lib.run(config, str(tmp_path / "counted"))
  config.rounds.student.teachers = (str(tmp_path / "near"), str(tmp_path / "spelled"))
  config.counted = {}
  recipe_lib.run(config, str(tmp_path / "folders"))
  found, expected = (
    models.read_metrics(tmp_path / name / "student/1/metrics.jsonl")
    for name in ("counted", "folders")
  )
  assert "train/loss" in found[0] and found == expected


def test_a_teacher_is_counted_once(config, tmp_path, monkeypatch):
  place = workdir.Workdir(str(tmp_path))
  first = recipe_lib.read(config, place).inputs.outside
  monkeypatch.delattr(static, "count_words")
  again = recipe_lib.read(config, place).inputs.outside
  for name in ("near", "spelled"):
    tables = [m[name].params["embeddings"]["word"]["embedding"] for m in (first, again)]
    np.testing.assert_array_equal(*tables)


def test_other_settings_are_another_teacher(config, tmp_path):
  recipe_lib.run(config, str(tmp_path))
  config.counted.near.window = 2
  with pytest.raises(UserError, match="student comes from something else.*teachers"):
    recipe_lib.run(config, str(tmp_path))


@pytest.mark.parametrize(
  "name, settings, error",
  [
    ("student", {}, "config.counted.student: a round has this name"),
    ("near", dict(depth=3), "near.depth: unknown setting; there are size, "),
    ("near", dict(size=8, spelling_size=0, width=9), "near.width=9: .* at most 8"),
    ("near", dict(size=-1), r"near.size=-1: must be a whole number, 0 or more"),
    ("near", dict(size=0, spelling_size=0), "near: size=0 and .* leave nothing"),
  ],
)
def test_what_cannot_be_counted_is_refused(config, name, settings, error):
  config.counted = {name: settings}
  config.rounds.student.teachers = (name,)
  with pytest.raises(UserError, match=error):
    validate.check(config)


def test_every_setting_of_counting_may_be_changed_by_a_command():
  config = recipes.tiny(recipes.load_config("scratch"))
  config.update_from_flattened_dict({"counted.words.window": 3, "token_vectors": ""})
  validate.check(config)
  assert config.counted.words.window == 3


def test_a_text_of_too_few_words_is_refused(config, tmp_path):
  config.counted.near.size = 10**6
  with pytest.raises(UserError, match="teacher near: the text has only .* too few"):
    recipe_lib.read(config, workdir.Workdir(str(tmp_path)))


def test_a_new_encoder_begins_with_the_embeddings_of_counted_words(files, tmp_path):
  config = recipes.tiny(recipes.load_config("scratch"))
  config.text, config.sts = str(files / "text.txt"), ""
  config.counted = {"words": dict(size=20, spelling_size=44, min_count=1, smooth=1.0)}
  config.encoder = dict(
    family="bert",
    vocab_size=2000,
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    intermediate_size=64,
    initializer_range=0.01,
  )
  inputs = recipe_lib.read(config, workdir.Workdir(str(tmp_path))).inputs
  folder.save(inputs.outside["words"], tmp_path / "words")
  folder.save(inputs.start, tmp_path / "start")
  wanted, found = (
    SentenceEncoder(tmp_path / name).encode(
      models.SENTENCES[:40], normalize_embeddings=True
    )
    for name in ("words", "start")
  )
  # Words that the tokenizer divides, and layers that are not yet nothing, are what differs.
  assert (wanted * found).sum(axis=1).mean() > 0.9
  assert np.abs(found[:, -1]).max() < 1e-6


@pytest.mark.parametrize(
  "fields, error",
  [
    (dict(token_vectors="far"), r"config.token_vectors='far': name one of .*\(near"),
    (dict(token_vectors="near"), "is of a new BERT, and this encoder is .*model"),
    (dict(token_vectors="near", model=""), r"vectors of 8 numbers and the encoder 16"),
  ],
)
def test_token_vectors_must_fit_a_new_bert(config, tmp_path, fields, error):
  config.update(fields)
  with pytest.raises(UserError, match=error):
    validate.check(config)
    recipe_lib.read(config, workdir.Workdir(str(tmp_path)))

"""A new encoder that reads as its teacher does."""

import pytest

from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.recipe import validate
from dcse_jax.runtime import workdir
from dcse_jax.runtime.errors import UserError
from tests import recipes


@pytest.fixture
def config(files):
  config = recipes.tiny(recipes.load_config("distil", "new"))
  teacher = str(files / "model")
  config.tokenizer = teacher
  config.text, config.sts = str(files / "text.txt"), str(files / "sts")
  config.test = ("X-test",)
  config.encoder.update(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16)
  config.rounds.student.teachers = (teacher,)
  return config


def test_a_new_encoder_with_its_teachers_tokenizer_reads_the_same_tokens(
  config, files, tmp_path
):
  recipe = recipe_lib.read(config, workdir.Workdir(str(tmp_path)))
  teacher = str(files / "model")
  start, student = recipe.inputs.start, recipe.rounds["student"]
  assert (
    start.tokenizer.get_vocab() == recipe.inputs.outside[teacher].tokenizer.get_vocab()
  )
  assert start.config.vocab_size == len(start.tokenizer)
  assert start.config.hidden_size == 8
  # The teacher needs no tokens of its own.
  ours, theirs = (
    recipe.inputs.tokens(student),
    recipe.inputs.teacher_tokens(teacher, student),
  )
  assert theirs is ours


def test_a_model_has_its_own_tokenizer(config):
  wrong = config.copy_and_resolve_references()
  wrong.model = wrong.tokenizer
  with pytest.raises(UserError, match="config.tokenizer=.* is of a new encoder"):
    validate.check(wrong)

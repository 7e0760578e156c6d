"""Teachers of pairs and triplets: each column has embeddings where a term asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.inputs.teacher import Teacher
from dcse_jax.objective.objective import Objective
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import stacks as stacks_lib
from tests import models
from tests import recipes


def test_a_guide_embeds_every_column_that_there_is():
  model = models.tiny_model(5, num_layers=1)
  stacks, params = stacks_lib.stack_teachers([model], [1])
  objective = Objective(
    losses.parse("gist"), config=model.config, pooling="mean", stacks=stacks
  )
  batch = models.random_batch(0, batch=4, columns=3)
  key = jax.random.key(0)

  def offered(columns):
    part = {n: x[:, columns] for n, x in batch.items() if n != "example_id"}
    inputs = StepInputs(part, key, {"teachers": params})
    return Teacher().join(objective, {}, inputs, {})

  every = offered([0, 1, 2])
  assert list(every) == ["teacher", "teacher_positives", "teacher_negatives"]
  assert list(offered([0])) == ["teacher"]
  for i, found in enumerate(every.values()):
    np.testing.assert_allclose(found, offered([i])["teacher"], atol=1e-6)
  gaps = jnp.abs(every["teacher"] - every["teacher_positives"])
  assert gaps.max() > 0.1


def test_a_cache_of_anchors_is_no_guide_of_pairs(tmp_path):
  models.write_tiny_folder(tmp_path / "model", num_layers=1)
  models.write_sts(tmp_path / "sts", "STSB-dev")
  models.write_sts(tmp_path / "sts", "X-test")
  pairs = zip(models.SENTENCES[:20], models.SENTENCES[20:40])
  rows = ["a\tb", *("\t".join(pair) for pair in pairs)]
  (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
  config = recipes.from_files(
    tmp_path,
    text=str(tmp_path / "pairs.tsv"),
    columns=("a", "b"),
    recipe=("student",),
    teacher_cache="float16",
  )
  config.rounds.student.objective = "gist"
  config.rounds.student.teachers = (str(tmp_path / "model"),)
  with pytest.raises(UserError, match="keeps embeddings of anchors"):
    recipe_lib.run(config, str(tmp_path / "run"))

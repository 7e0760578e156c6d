"""Objectives of rows with several hard negatives and scores."""

import json

import jax
import numpy as np
import pytest

from dcse_jax import losses
from dcse_jax.ahead import abstract_step
from dcse_jax.model.chunks import Chunks
from dcse_jax.model.packing import Packing
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import stacks as stacks_lib
from tests import models
from tests import recipes

OBJECTIVE = (
  "info_nce + score_distillation + candidate_distillation + gist + cosent + angle"
)
BATCH, COLUMNS = 16, 4


def given():
  """Draws a batch in which every other row lacks its second hard negative."""
  rng = np.random.default_rng(0)
  has_negative = np.ones((BATCH, COLUMNS - 2), bool)
  has_negative[::2, 1] = False
  scores = rng.normal(size=(BATCH, COLUMNS - 1)).astype(np.float32)
  batch = models.random_batch(0, batch=BATCH, columns=COLUMNS)
  return batch | {"scores": scores, "has_negative": has_negative}


def value_and_gradient(batch, packing=None, mesh=None, **fields):
  student = models.tiny_model(1, num_layers=1)
  stacks, teachers = stacks_lib.stack_teachers(
    [models.tiny_model(5, num_layers=1)], [1]
  )
  loss_fn = Objective(
    losses.parse(OBJECTIVE), student.config, "mean", stacks=stacks, **fields
  )
  params, frozen = {"encoder": student.params}, {"teachers": teachers}
  if mesh is not None:
    batch = mesh_lib.put_batch(batch, mesh_lib.over_batch(mesh))
    params, frozen = mesh_lib.put_params(jax.device_get((params, frozen)), mesh)

  @jax.jit
  def compute(params, batch, frozen):
    inputs = StepInputs(batch, jax.random.key(3), frozen, packing)
    return jax.value_and_grad(lambda p: loss_fn(p, inputs)[0])(params)

  with mesh_lib.traced_over(mesh):
    return jax.device_get(compute(params, batch, frozen))


@pytest.mark.slow
def test_several_negatives_are_the_same_packed_in_parts_and_on_eight_devices():
  batch = given()
  expected = value_and_gradient(batch)
  others = [
    value_and_gradient(batch, Packing(int(batch["attention_mask"].sum()))),
    value_and_gradient(
      batch,
      mesh=mesh_lib.make_mesh(data=4, fsdp=2),
      microbatches=Chunks(2, groups=8),
      row_chunks=Chunks(2, groups=8),
    ),
  ]
  for other in others:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
      other,
      expected,
    )


@pytest.fixture
def files(tmp_path):
  models.write_tiny_folder(tmp_path / "model", num_layers=1)
  models.write_sts(tmp_path / "sts", "STSB-dev")
  models.write_sts(tmp_path / "sts", "X-test")
  sentences = iter(models.SENTENCES[:48])
  with (tmp_path / "rows.jsonl").open("w") as file:
    for i in range(12):
      row = [next(sentences) for _ in range(4)][: 3 + i % 2]
      scores = [float(3 - k) for k in range(len(row) - 1)]
      row = {"q": row[0], "p": row[1], "n": row[2:], "s": scores}
      file.write(json.dumps(row) + "\n")
  return tmp_path


def make_config(files, **fields):
  config = recipes.from_files(
    files,
    name="simcse",
    text=str(files / "rows.jsonl"),
    columns=("q", "p", "n"),
    score_columns=("s",),
    objective="info_nce + 0.1 * score_distillation",
    pooling="mean",
  )
  for name, value in fields.items():
    config[name] = value
  return config


def test_a_run_learns_from_scores_and_its_step_is_known_ahead(files):
  config = make_config(files)
  ahead = abstract_step.make_abstract_step(
    config, "simcse", mesh_lib.make_mesh(jax.devices()[:1])
  ).arguments[1]
  assert ahead["scores"].shape == (8, 3)
  assert ahead["has_negative"].shape == (8, 2)
  recipe_lib.run(config, str(files / "run"))
  metrics = models.read_metrics(files / "run" / "simcse" / "42" / "metrics.jsonl")
  key = "train/score_distillation"
  values = [row[key] for row in metrics if key in row]
  assert len(values) == 2 and np.isfinite(values).all() and min(values) > 0


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"objective": "info_nce"}, "no term of objective='info_nce' takes scores"),
    ({"score_columns": ()}, "name the columns that hold them in score_columns"),
    ({"columns": ("q", "p"), "score_columns": ()}, "score_distillation takes hard neg"),
    ({"objective": "cosent"}, "no term of objective=.cosent. takes hard negatives"),
  ],
  ids=str,
)
def test_terms_and_columns_that_do_not_fit_are_refused(files, fields, message):
  with pytest.raises(UserError, match=message):
    recipe_lib.run(make_config(files, **fields), str(files / "run"))

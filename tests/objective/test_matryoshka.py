"""Matryoshka: every term over embeddings cut to several widths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dcse_jax import losses
from dcse_jax.model.chunks import Chunks
from dcse_jax.objective.inputs import Start
from dcse_jax.objective.matryoshka import sum_over_widths
from dcse_jax.objective.objective import Objective
from dcse_jax.objective.objective import compare
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import stacks as stacks_lib
from tests import models
from tests import recipes

WIDTHS = ((16, 1.0), (8, 0.5), (3, 2.0))


class Given(torch.nn.Module):
  """A model whose embeddings are its input."""

  def get_embedding_dimension(self):
    return 16

  def forward(self, features):
    return {"sentence_embedding": features["given"]}


def test_the_sum_over_widths_is_sentence_transformers_matryoshka_loss():
  from sentence_transformers.sentence_transformer import losses as their_losses

  rng = np.random.default_rng(0)
  names = ("anchors", "positives")
  arrays = {name: rng.normal(size=(6, 16)).astype(np.float32) for name in names}
  given = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
  model = Given()
  widths, weights = zip(*WIDTHS)
  theirs = their_losses.MatryoshkaLoss(
    model,
    their_losses.MultipleNegativesRankingLoss(model, scale=20.0),
    list(widths),
    list(weights),
  )([{"given": x} for x in given.values()], None)
  theirs.backward()
  terms = losses.parse("info_nce", {"info_nce": {"temperature": 0.05}})

  def ours(offered):
    compared = lambda terms, offered, of_step: compare(
      terms, offered, jax.random.key(0), of_step=of_step
    )
    return jnp.mean(sum_over_widths(compared, terms, offered, {}, WIDTHS)["info_nce"])

  value, gradient = jax.value_and_grad(ours)(arrays)
  assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
  for name in names:
    np.testing.assert_allclose(gradient[name], given[name].grad, atol=1e-5)


@functools.cache
def made(pooling="mean", terms="2 * distillation + info_nce"):
  student = models.tiny_model(1, pooling=pooling, num_layers=1)
  stacks, teachers = stacks_lib.stack_teachers(
    [models.tiny_model(5, num_layers=1)], [1]
  )
  loss_fn = Objective(
    losses.parse(terms),
    config=student.config,
    pooling=pooling,
    stacks=stacks,
    widths=WIDTHS,
  )
  return loss_fn, loss_fn.init_params(student.params, jax.random.key(0)), teachers


def value_and_grad(**changes):
  loss_fn, params, teachers = made()
  run = jax.value_and_grad(
    models.called(dataclasses.replace(loss_fn, **changes)), has_aux=True
  )
  batch = models.random_batch(0, batch=8)
  (loss, parts), gradient = jax.jit(run)(
    params, batch, jax.random.key(3), {"teachers": teachers}
  )
  return jax.device_get((loss, parts, gradient))


def test_what_takes_no_embedding_of_the_students_counts_once():
  rng = np.random.default_rng(0)
  draw = lambda: rng.normal(size=(6, 16)).astype(np.float32)
  offered = {name: draw() for name in ("anchors", "positives", "student", "teacher")}
  terms = losses.parse("info_nce + embedding_distillation")
  compared = lambda terms, offered, of_step: compare(
    terms, offered, jax.random.key(0), of_step=of_step
  )
  values = sum_over_widths(compared, terms, offered, {}, ((16, 1.0), (16, 2.0)))
  plain = compared(terms, offered, {})
  np.testing.assert_allclose(values["info_nce"], 3 * plain["info_nce"], rtol=1e-6)
  name = "embedding_distillation"
  np.testing.assert_array_equal(values[name], plain[name])


def test_microbatches_and_blocks_give_the_sum_over_widths_of_the_whole():
  loss, parts, gradient = value_and_grad()
  expected = 2 * parts["distillation"] + parts["info_nce"]
  assert loss == pytest.approx(expected, rel=1e-6)
  in_parts = value_and_grad(microbatches=Chunks(2), row_chunks=Chunks(4))
  assert in_parts[0] == pytest.approx(loss, rel=1e-5)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale),
    in_parts[2],
    gradient,
  )


@pytest.mark.parametrize(
  "pooling, terms, size, problem",
  [
    ("mean", "info_nce", 12, "embeddings have 12 numbers"),
    ("cls", "info_nce", 16, "the projection's, which is dropped: set keep_head"),
    ("mean", "pnr", 16, "number by number"),
  ],
)
def test_what_cannot_be_cut_is_refused(pooling, terms, size, problem):
  start = Start("m", size, True, False, 1)
  found = made(pooling, terms)[0].validate(start)
  assert problem in found and "matryoshka=(16, 8, 3)" in found


@pytest.mark.parametrize(
  "fields, problem",
  [
    (dict(matryoshka=(8, 8)), "matryoshka=.* each a whole number, 1 or more and once"),
    (dict(matryoshka=(8, 4), matryoshka_weights=(1.0,)), "one above 0 for each of"),
  ],
)
def test_widths_and_weights_that_do_not_fit_are_refused(tmp_path, fields, problem):
  config = recipes.from_files(tmp_path, "simcse", **fields)
  with pytest.raises(UserError, match=problem):
    recipe_lib.run(config, str(tmp_path / "run"))

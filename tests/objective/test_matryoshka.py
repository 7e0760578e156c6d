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
from tests.losses import test_objectives
from tests.model import test_chunks

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


# What of a step's offers a term compares by its first numbers.
CUT = ("anchors", "positives", "undropped", "predictions", "layers", "queue", "served")
TERMS = [name for name, missing in test_objectives.CASES + test_objectives.WHOLE]


def cut_offers(name, offered, width):
  """Cuts what a term takes; teachers that are predicted, each by itself."""
  cut = {n: x[..., :width] if n in CUT else x for n, x in offered.items()}
  if name == "pnr":
    weights = (1.0, 3.0)
    each = np.split(np.asarray(offered["teacher"]), 2, axis=1)
    cut["teacher"] = losses.join_teachers([x[:, :width] for x in each], weights)
  return cut


@pytest.mark.parametrize("name", dict.fromkeys(TERMS))
def test_every_term_is_summed_over_truncated_embeddings_in_blocks_too(name):
  offered = test_objectives.offers(features=8)
  (each,) = losses.parse(name)
  widths = ((8, 1.0), (5, 0.5), (2, 2.0))
  rng = jax.random.key(0)
  of_step = {n: offered[n] for n in ("queue", "is_queued")} | {"progress": 0.0}
  of_rows = {n: x for n, x in offered.items() if n not in (*of_step, "rng")}

  def ours(chunks):
    compared = lambda terms, offered, of_step: compare(
      terms, offered, rng, of_step=of_step, row_chunks=chunks
    )
    return sum_over_widths(compared, [each], of_rows, of_step, widths)[name]

  offered["rng"] = jax.random.split(rng, 1)[0]
  values = {
    width: test_objectives.evaluate(name, cut_offers(name, offered, width))
    for width, _ in widths
  }
  expected = sum(weight * values[width] for width, weight in widths)
  if name == "embedding_distillation":  # It compares whole embeddings with a teacher's.
    expected = values[8]
  else:
    assert np.abs(values[2] - values[8]).max() > 1e-4
  for chunks in (Chunks(), Chunks(2)):
    np.testing.assert_allclose(ours(chunks), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_all_terms_over_widths_are_the_same_in_microbatches_and_blocks():
  names, (loss, parts, gradient) = test_chunks.every_term(widths=WIDTHS)
  blocks = dict(microbatches=Chunks(2), row_chunks=Chunks(4))
  _, (_, in_parts, theirs) = test_chunks.every_term(widths=WIDTHS, **blocks)
  for name in names:
    assert in_parts[name] == pytest.approx(parts[name], rel=1e-4, abs=1e-5), name
  expected = sum((i + 1) * parts[name] for i, name in enumerate(names))
  assert loss == pytest.approx(expected, rel=1e-5)
  # One width is a term as it is without; those that draw do so in another order.
  _, (_, plain, _) = test_chunks.every_term()
  _, (_, whole, _) = test_chunks.every_term(widths=((16, 1.0),))
  for name in names:
    if "rng" not in losses.TERMS[name].inputs:
      assert whole[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-5), name
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), theirs, gradient
  )


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

"""Terms that sentence-transformers has, too: its values and its gradients."""

import jax
import numpy as np
import pytest
import torch

from dcse_jax import losses
from tests import models

NAMES = ("anchors", "positives", "negatives")
GUIDES = ("teacher", "teacher_positives", "teacher_negatives")


class Given(torch.nn.Module):
  """A model whose embeddings of a column are given."""

  max_seq_length = 8

  def __init__(self, name, tokenizer=None):
    super().__init__()
    self.name, self.tokenizer = name, tokenizer

  def forward(self, features):
    return {"sentence_embedding": features[self.name]}


def draw(columns, *, batch=8, size=6):
  """Draws embeddings, and a guide's of the same sentences."""
  rng = np.random.default_rng(columns)
  arrays = {}
  base = rng.normal(size=(batch, size))
  for name in NAMES[:columns]:
    arrays[name] = (base + rng.normal(size=(batch, size))).astype(np.float32)
  for name in GUIDES[:columns]:
    arrays[name] = (base + rng.normal(size=(batch, size))).astype(np.float32)
  return arrays


def theirs(make_loss, arrays, columns):
  trained = {n: torch.tensor(arrays[n], requires_grad=True) for n in NAMES[:columns]}
  features = [
    {"trained": trained[name], "guide": torch.tensor(arrays[guide])}
    for name, guide in zip(NAMES[:columns], GUIDES)
  ]
  loss = make_loss()(features, None)
  loss.backward()
  return loss.item(), {name: x.grad.numpy() for name, x in trained.items()}


def ours(name, arrays, columns, **settings):
  term = losses.TERMS[name]

  def loss(trained):
    given = {**arrays, **trained}
    given |= {f"all_{n}": x for n, x in given.items()}
    inputs = {n: given.get(n) for n in term.inputs}
    return term.fn(**inputs, **settings).mean()

  value, gradient = jax.value_and_grad(loss)({n: arrays[n] for n in NAMES[:columns]})
  return float(value), gradient


def assert_same(found, expected):
  assert found[0] == pytest.approx(expected[0], rel=1e-5)
  for name, gradient in expected[1].items():
    np.testing.assert_allclose(found[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize(
  "settings",
  [
    dict(temperature=0.1),
    dict(temperature=0.1, margin=0.3),
    dict(temperature=0.1, margin=0.4, margin_strategy="relative"),
  ],
  ids=str,
)
def test_gist_is_their_gist_embed_loss(columns, settings):
  from sentence_transformers.sentence_transformer import losses as their_losses

  arrays, tokenizer = draw(columns), models.tiny_model().tokenizer
  make_loss = lambda: their_losses.GISTEmbedLoss(
    Given("trained", tokenizer), Given("guide", tokenizer), **settings
  )
  expected = theirs(make_loss, arrays, columns)
  assert_same(ours("gist", arrays, columns, **settings), expected)


@pytest.mark.parametrize("columns", [2, 3])
def test_symmetric_info_nce_is_their_ranking_loss_in_both_directions(columns):
  from sentence_transformers.sentence_transformer import losses as their_losses

  arrays = draw(columns)
  make_loss = lambda: their_losses.MultipleNegativesRankingLoss(
    Given("trained"),
    scale=10.0,
    directions=("query_to_doc", "doc_to_query"),
    partition_mode="per_direction",
  )
  expected = theirs(make_loss, arrays, columns)
  assert_same(ours("symmetric_info_nce", arrays, columns, temperature=0.1), expected)


def several_negatives(*, batch=6, size=6, number=3):
  """Draws anchors, positives, several hard negatives a row, and their scores."""
  rng = np.random.default_rng(number)
  draw = lambda *shape: rng.normal(size=(batch, *shape)).astype(np.float32)
  arrays = {"anchors": draw(size), "positives": draw(size)}
  return arrays | {"negatives": draw(number, size), "scores": draw(1 + number)}


def by_column(make_loss, arrays, labels=None):
  """Computes their loss, which has a column for each hard negative."""
  trained = {n: torch.tensor(arrays[n], requires_grad=True) for n in NAMES}
  negatives = trained["negatives"].unbind(1)
  columns = [trained["anchors"], trained["positives"], *negatives]
  labels = None if labels is None else torch.tensor(labels)
  loss = make_loss()([{"trained": x} for x in columns], labels)
  loss.backward()
  return loss.item(), {name: x.grad.numpy() for name, x in trained.items()}


def test_info_nce_takes_several_negatives_as_their_ranking_loss_does():
  from sentence_transformers.sentence_transformer import losses as their_losses

  arrays = several_negatives()
  make_loss = lambda: their_losses.MultipleNegativesRankingLoss(Given("trained"), 10.0)
  expected = by_column(make_loss, arrays)
  assert_same(ours("info_nce", arrays, 3, temperature=0.1), expected)


def test_score_distillation_is_their_margin_mse():
  from sentence_transformers.sentence_transformer import losses as their_losses

  arrays = several_negatives()
  make_loss = lambda: their_losses.MarginMSELoss(Given("trained"))
  margins = arrays["scores"][:, :1] - arrays["scores"][:, 1:]
  expected = by_column(make_loss, arrays, margins)
  settings = dict(measure="margin_mse", similarity="dot", student_temperature=1.0)
  assert_same(ours("score_distillation", arrays, 3, **settings), expected)


def test_score_distillation_is_their_divergence_but_for_the_squared_temperature():
  from sentence_transformers.sentence_transformer import losses as their_losses

  arrays, temperature = several_negatives(), 2.0
  make_loss = lambda: their_losses.DistillKLDivLoss(
    Given("trained"), temperature=temperature
  )
  loss, gradient = by_column(make_loss, arrays, arrays["scores"])
  settings = dict(
    similarity="dot", student_temperature=temperature, teacher_temperature=temperature
  )
  factor = 1 / temperature**2
  expected = loss * factor, {name: x * factor for name, x in gradient.items()}
  assert_same(ours("score_distillation", arrays, 3, **settings), expected)


@pytest.mark.parametrize(
  "name, theirs_name", [("cosent", "CoSENTLoss"), ("angle", "AnglELoss")]
)
def test_losses_of_scored_pairs_are_theirs(name, theirs_name):
  from sentence_transformers.sentence_transformer import losses as their_losses

  arrays = draw(2) | {"scores": np.float32([[5], [1], [3], [3], [0], [4], [2], [1]])}
  make_loss = lambda: getattr(their_losses, theirs_name)(Given("trained"), scale=10.0)
  labels = torch.tensor(arrays["scores"][:, 0])
  trained = {n: torch.tensor(arrays[n], requires_grad=True) for n in NAMES[:2]}
  loss = make_loss()([{"trained": x} for x in trained.values()], labels)
  loss.backward()
  expected = loss.item(), {name: x.grad.numpy() for name, x in trained.items()}
  assert_same(ours(name, arrays, 2, temperature=0.1), expected)

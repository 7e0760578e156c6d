"""Faster ways to compute the same: packing, few tokens in the last layer, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses
from dcse_jax.model import dropout as dropout_lib
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import ops
from dcse_jax.model import packing as packing_lib
from dcse_jax.model.packing import Packing
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.train import step as step_lib
from tests import models
from tests.train.test_train import make_trainer

STUDENT = models.tiny_model(1, dropout=0.2, attention_dropout=0.2)
TEACHERS = [models.tiny_model(seed) for seed in (5, 6)]
BATCH = models.random_batch(3, batch=16)


def distilling(pooling):
  """Makes a loss with two teachers, and parameters to take its gradient at."""
  stacks, teacher_params = stacks_lib.stack_teachers(TEACHERS, [1, 2])
  loss_fn = Objective(
    losses.parse(
      "info_nce + distillation", {"distillation": {"group_probability": 0.3}}
    ),
    config=STUDENT.config,
    pooling=pooling,
    stacks=stacks,
  )
  params = loss_fn.init_params(STUDENT.params, jax.random.key(0))
  return loss_fn, params, {"teachers": teacher_params}


def pretraining():
  loss_fn = models.language_model_loss(STUDENT)
  return loss_fn, loss_fn.init_params(STUDENT.params, jax.random.key(0)), {}


OBJECTIVES = {
  "cls": lambda: distilling("cls"),
  "mean_first_last": lambda: distilling("mean_first_last"),
  "masked language model": pretraining,
}


def loss_and_gradient(objective, packing, batch=BATCH):
  loss_fn, params, teacher_params = OBJECTIVES[objective]()
  (loss, _), gradient = jax.jit(
    jax.value_and_grad(models.called(loss_fn), has_aux=True), static_argnums=4
  )(params, batch, jax.random.key(7), teacher_params, packing)
  return loss, gradient


def assert_same(one, other):
  """Asserts equal losses to 1e-5, and gradients to 1e-5 of the largest."""
  np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[1]))
  assert scale > 0.01
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), one[1], other[1]
  )


@pytest.mark.parametrize(
  "objective, groups",
  [("cls", 1), ("mean_first_last", 4), ("masked language model", 2)],
)
def test_packed_tokens_train_as_padded_ones_do_dropout_included(objective, groups):
  num_tokens = BATCH["attention_mask"].sum(axis=(1, 2))
  packing = Packing(packing_lib.count_tokens(num_tokens, groups) + 3, groups)
  # There is padding to leave out.
  assert packing.tokens * groups < BATCH["attention_mask"].size
  packed = loss_and_gradient(objective, packing)
  assert_same(loss_and_gradient(objective, None), packed)


@pytest.mark.parametrize("objective", ["cls", "masked language model"])
def test_what_an_accelerator_runs_is_what_a_cpu_runs(objective):
  on_cpu = loss_and_gradient(objective, Packing(150))
  # Layers in a loop, nothing kept from fusion. The loss is traced anew.
  with backend.traced_for("gpu"):
    assert_same(on_cpu, loss_and_gradient(objective, Packing(150)))


def test_packed_tokens_on_eight_devices_train_as_on_one():
  loss_fn, params, teacher_params = distilling("cls")
  results = []
  for devices in (1, 8):
    trainer = make_trainer(loss_fn, devices=devices, teacher_params=teacher_params)
    state = step_lib.init_state(
      jax.tree.map(jnp.array, params), trainer.tx, jax.random.key(2)
    )
    num_tokens = BATCH["attention_mask"].sum(axis=(1, 2))
    packing = Packing(packing_lib.count_tokens(num_tokens, devices), devices)
    batch = mesh_lib.put_batch(BATCH, mesh_lib.over_batch(trainer.mesh))
    for _ in range(2):
      state, values = trainer.step_fn(state, batch, trainer.frozen, packing)
    results.append(jax.device_get(values))
  for name in results[0]:
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5)


@pytest.mark.parametrize("packing", [None, Packing(150)])
def test_the_last_layer_for_few_tokens_gives_their_full_states(packing):
  ids, mask = BATCH["input_ids"][:, 0], BATCH["attention_mask"][:, 0]
  positions = np.stack([np.zeros(16, int), mask.sum(axis=1) - 1], axis=1)
  rng = jax.random.key(3)  # With dropout: its masks are the same too.

  def few(params):
    return encoder_lib.states_at(
      params, STUDENT.config, ids, mask, positions, rng=rng, packing=packing
    )

  def full(params):
    *_, last = encoder_lib.hidden_states(params, STUDENT.config, ids, mask, rng=rng)
    return jnp.take_along_axis(last, positions[..., None], axis=1)

  weights = jax.random.normal(jax.random.key(1), (16, 2, 16))
  measure = lambda states: lambda params: jnp.sum(weights * states(params))
  assert_same(
    jax.jit(jax.value_and_grad(measure(few)))(STUDENT.params),
    jax.jit(jax.value_and_grad(measure(full)))(STUDENT.params),
  )


def test_packings_hold_most_batches_and_none_is_larger_than_padding():
  # 10 or 30 tokens, as likely: 64 rows have 1,280 on average, with a standard
  # deviation of 80.
  num_tokens = np.tile([10, 30], 500)
  make = functools.partial(packing_lib.make_packings, batch_size=64, padded=32)
  small, large = make(num_tokens, num_steps=5000)
  assert 1280 < small.tokens < 1280 + 80 and 1280 + 200 < large.tokens < 1280 + 330
  rng = np.random.default_rng(1)
  fitting = [
    packing_lib.choose_packing(
      (small, large), packing_lib.count_tokens(rng.choice(num_tokens, 64), 1)
    )
    for _ in range(500)
  ]
  assert 0.55 < fitting.count(small) / 500 < 0.85
  assert fitting.count(None) <= 5
  # A short training is not worth the time that more programs take to compile.
  assert make(num_tokens, num_steps=500) == (large,)
  assert make(num_tokens, num_steps=50) == ()
  # Full rows have no padding to leave out.
  assert make(np.full(99, 32), num_steps=5000) == ()
  assert packing_lib.choose_packing((), 5) is None
  assert packing_lib.choose_packing((Packing(8),), 9) is None
  assert packing_lib.choose_packing((Packing(8),), 8) == Packing(8)


def test_buckets_have_few_packings_and_each_batch_the_shortest_that_holds_it():
  # As many sentences of each length from 1 to 256, in two columns of one length.
  longest = np.tile(np.arange(1, 257), 4)
  make = functools.partial(
    packing_lib.make_bucket_packings,
    2 * longest,
    longest,
    batch_size=16,
    columns=2,
    max_length=256,
    together=64,
    groups=4,
  )
  packings = make(num_steps=5000)
  # As many batches of each length: steps of a sixth of 256, 43, cost the least.
  assert [p.length for p in packings] == [64, 96, 128, 192, 224, 256]
  assert all(p.tokens <= 2 * 16 * p.length / 4 for p in packings)
  assert len(make(num_steps=300)) == 3 and make(num_steps=99) == ()
  ids = np.arange(4 * 2 * 256).reshape(4, 2, 256)
  batch = dict(input_ids=ids, attention_mask=ids > 0, other=ids)
  sizes = dict(num_tokens=np.asarray([100, 150]), longest=np.asarray([70, 60]))
  cut, packing = packing_lib.fit(packings, batch | sizes)
  assert packing == packings[1] and set(cut) == set(batch)
  np.testing.assert_array_equal(cut["input_ids"], ids[:, :, :96])
  assert cut["attention_mask"].shape[-1] == 96 and cut["other"].shape[-1] == 256
  # More tokens than any holds, and a sentence longer than any.
  for large in (dict(num_tokens=np.asarray(9999)), dict(longest=np.asarray(257))):
    whole, packing = packing_lib.fit(packings, batch | sizes | large)
    assert packing is None and whole["input_ids"].shape == ids.shape


def test_a_batch_cut_to_its_longest_sentence_has_the_same_embeddings():
  length = int(BATCH["attention_mask"].sum(axis=2).max())
  longer = {
    name: np.pad(array, [(0, 0), (0, 0), (0, 8)]) if array.ndim == 3 else array
    for name, array in BATCH.items()
  }
  sizes = dict(num_tokens=np.asarray(1), longest=np.asarray(length))
  packing = Packing(16 * length, 1, length)
  cut, _ = packing_lib.fit((packing,), longer | sizes)
  assert cut["input_ids"].shape[-1] == length < longer["input_ids"].shape[-1]

  def embed(batch, packing):
    ids, mask = batch["input_ids"][:, 0], batch["attention_mask"][:, 0]
    return encoder_lib.encode(
      STUDENT.params, STUDENT.config, ids, mask, pooling="mean", packing=packing
    )

  embed = jax.jit(embed, static_argnums=1)
  np.testing.assert_allclose(embed(cut, packing), embed(longer, None), atol=1e-5)


def mask_of(rate, key, rows, width=256):
  ones = jnp.ones((len(rows), width))
  kept = dropout_lib.dropout(ones, rate, key, jnp.asarray(rows))
  return np.asarray(kept != 0, float)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
  key, _ = dropout_lib.make_keys(jax.random.key(0), (2,))
  x = jax.random.normal(jax.random.key(1), (2000, 256))
  dropped = np.asarray(dropout_lib.dropout(x, rate, key, jnp.arange(2000)))
  kept = dropped != 0
  np.testing.assert_allclose(dropped[kept], np.asarray(x)[kept] / (1 - rate), rtol=1e-6)
  # Five standard deviations of a mean of n Bernoulli variables.
  assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
  # Sums over rows and over columns scatter as binomials do.
  for axis in (0, 1):
    count = kept.shape[axis]
    variance = kept.sum(axis=axis).var() / (count * rate * (1 - rate))
    assert abs(variance - 1) < 5 * np.sqrt(2 / kept.shape[1 - axis])
  assert dropout_lib.dropout(x, rate, None, jnp.arange(2000)) is x
  assert dropout_lib.dropout(x, 0.0, key, jnp.arange(2000)) is x


def test_dropout_masks_of_rows_keys_and_neighbours_are_independent():
  keys = dropout_lib.make_keys(jax.random.key(0), (2, 3))
  rows = np.arange(4000)
  first = mask_of(0.5, keys[0, 0], rows) - 0.5
  others = {
    "the next row": mask_of(0.5, keys[0, 0], rows + 1) - 0.5,
    "the other view, 4,000 rows on": mask_of(0.5, keys[0, 0], rows + 4000) - 0.5,
    "another site": mask_of(0.5, keys[0, 1], rows) - 0.5,
    "another layer": mask_of(0.5, keys[1, 0], rows) - 0.5,
    "the next feature": np.roll(first, 1, axis=1),
    "the feature 32 on": np.roll(first, 32, axis=1),
  }
  for name, other in others.items():
    # Products of independent signs: mean 0, variance 1/16 each.
    assert abs((first * other).mean()) < 5 * 0.25 / np.sqrt(first.size), name
  # No bit of a row's mask decides another's: all 16 patterns of four
  # neighbours are as frequent (chi-square, 15 degrees of freedom).
  patterns = (first > 0).reshape(-1, 4) @ [1, 2, 4, 8]
  expected = len(patterns) / 16
  chi_square = ((np.bincount(patterns, minlength=16) - expected) ** 2 / expected).sum()
  assert chi_square < 15 + 5 * np.sqrt(2 * 15)


def test_backward_passes_of_our_own_are_those_of_autodiff():
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  norm = lambda x, w, b: (
    (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b
  )
  cases = [
    (ops.linear, lambda x, w, b: x @ w + b, [(2, 5, 6), (6, 4), (4,)]),
    (ops.linear, lambda x, w, b: x @ w + b, [(2, 5, 4), (4, 6), (6,)]),
    (lambda *a: ops.layer_norm(*a, 1e-5), norm, [(2, 5, 6), (6,), (6,)]),
    (
      ops.attention_scores,
      lambda q, k: jnp.einsum("nqhd,nkhd->nhqk", q, k),
      [(2, 3, 2, 4), (2, 5, 2, 4)],
    ),
  ]
  for ours, plain, shapes in cases:
    arguments = [draw(i, *shape) for i, shape in enumerate(shapes)]
    g = draw(9, *jax.eval_shape(plain, *arguments).shape)

    @functools.partial(jax.jit, static_argnums=0)
    def run(function, g, arguments):
      out, backward = jax.vjp(function, *arguments)
      return out, *backward(g)

    for one, other in zip(run(ours, g, arguments), run(plain, g, arguments)):
      np.testing.assert_allclose(one, other, atol=1e-5)

"""The losses: published values, closed forms, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses
from tests import processes

FIXTURES = processes.ROOT.parent / "shared" / "fixtures"
SIZES = ("small", "odd", "batch64")
RULES = {
  "group_p0.1_reversed": dict(probability=0.1),
  "group_p0.3_reversed": dict(probability=0.3),
  "group_p0.05_reversed": dict(probability=0.05),
  "group_size4_reversed": dict(size=4),
  "top6_reversed": dict(top=6),
}


@pytest.fixture(params=SIZES)
def published(request):
  path = FIXTURES / f"{request.param}.npz"
  if not path.exists():
    pytest.skip("the published losses' reference values are not at hand")
  return dict(np.load(path))


def random_embeddings(seed, batch=6, features=5):
  return jax.random.normal(jax.random.key(seed), (batch, features))


def assert_published(published, name, loss_fn, gradients_of):
  """Compares loss and gradients to 1e-5 of the largest entry."""
  arguments = [jnp.asarray(published[key]) for key in gradients_of]
  loss, gradients = jax.value_and_grad(loss_fn, range(len(arguments)))(*arguments)
  np.testing.assert_allclose(loss, published[f"{name}/loss"], rtol=1e-5)
  for key, gradient in zip(gradients_of, gradients):
    expected = published[f"{name}/grad_{key}"]
    np.testing.assert_allclose(
      gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def average_similarity(embeddings, weights=None):
  joint = losses.join_teachers(embeddings, weights)
  return losses.cosine_similarity(joint, joint)


def distill(published, z1, teacher):
  return losses.similarity_divergence(
    losses.cosine_similarity(z1, z1),
    teacher,
    student_temperature=float(published["student_temp"]),
    teacher_temperature=float(published["teacher_temp"]),
  ).mean()


def contrast(published, z1, z2):
  return losses.info_nce(z1, z2, temperature=float(published["temp"])).mean()


def test_info_nce_matches_the_published_values_and_gradients(published):
  assert_published(
    published,
    "info_nce",
    lambda z1, z2: contrast(published, z1, z2),
    ("z1", "z2"),
  )


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_hard_negatives_match_the_published_values(published, weight):
  def loss_fn(z1, z3):
    return losses.info_nce(
      z1,
      published["z2"],
      temperature=float(published["temp"]),
      all_negatives=z3,
      negative_weight=weight,
    ).mean()

  assert_published(published, f"hard_negative_w{weight}", loss_fn, ("z1", "z3"))


@pytest.mark.parametrize("margin", [0.3, 0.1])
def test_focal_info_nce_matches_the_published_values(published, margin):
  def loss_fn(z1, z2):
    return losses.focal_info_nce(
      z1, z2, temperature=float(published["temp"]), margin=margin
    ).mean()

  assert_published(published, f"focal_m{margin}", loss_fn, ("z1", "z2"))


def test_average_similarity_matches_the_published_teacher_logits(published):
  np.testing.assert_allclose(
    average_similarity(list(published["teachers"])),
    published["teacher_logits"],
    atol=1e-6,
  )


def test_plain_distillation_matches_the_published_values(published):
  teacher = average_similarity(list(published["teachers"]))
  assert_published(
    published,
    "vanilla_distill",
    lambda z1, z2: contrast(published, z1, z2) + distill(published, z1, teacher),
    ("z1", "z2"),
  )
  assert_published(
    published,
    "distill_only",
    lambda z1: distill(published, z1, teacher),
    ("z1",),
  )


def groups_of_ranks(published, name, others):
  """Returns the group of each rank, from the published boundaries or the rule."""
  rule = RULES[name]
  batch = len(published["z1"])
  if "probability" in rule:
    ends = published[f"group_p{rule['probability']}/ends"]
    return np.stack(
      [np.searchsorted(row, np.arange(others), side="right") for row in ends]
    )
  if "size" in rule:
    return np.tile(np.arange(others) // rule["size"], (batch, 1))
  ranks = np.arange(others)
  return np.tile(np.where(ranks < rule["top"], 0, ranks), (batch, 1))


@pytest.mark.parametrize("name", RULES)
def test_group_shuffle_permutes_inside_the_published_groups_only(published, name):
  teacher = np.asarray(published["teacher_logits"])
  batch, others = len(teacher), len(teacher) - 1
  order = published["sorted_order"]
  ranked = np.take_along_axis(teacher, order, axis=1)
  groups = groups_of_ranks(published, name, others)

  # The published value belongs to the groups reversed in place of shuffled, so
  # it pins the groups' boundaries themselves.
  reversed_rank = np.empty_like(order)
  for row in range(batch):
    for group in np.unique(groups[row]):
      ranks = np.flatnonzero(groups[row] == group)
      reversed_rank[row, ranks] = ranks[::-1]
  reversed_teacher = teacher.copy()
  np.put_along_axis(
    reversed_teacher,
    order,
    np.take_along_axis(ranked, reversed_rank, axis=1),
    axis=1,
  )
  assert_published(
    published,
    name,
    lambda z1, z2: (
      contrast(published, z1, z2) + distill(published, z1, reversed_teacher)
    ),
    ("z1", "z2"),
  )

  shuffled = losses.group_shuffle(teacher, jax.random.key(3), **RULES[name])
  np.testing.assert_array_equal(np.diag(shuffled), np.diag(teacher))
  shuffled = np.take_along_axis(np.asarray(shuffled), order, axis=1)
  for row in range(batch):
    for group in np.unique(groups[row]):
      ranks = groups[row] == group
      np.testing.assert_array_equal(
        np.sort(shuffled[row, ranks]), np.sort(ranked[row, ranks])
      )


@pytest.mark.parametrize("rule", [dict(probability=1.0), dict(size=4)])
def test_group_shuffle_draws_every_permutation_of_a_group_equally_often(rule):
  # One row of 4 others is one group under both rules: 4! = 24 orders.
  similarity = jnp.asarray([[1.0, 0.4, 0.3, 0.2, 0.1]] * 5)
  keys = jax.random.split(jax.random.key(0), 4800)
  draws = jax.jit(
    jax.vmap(lambda key: losses.group_shuffle(similarity, key, **rule)[0, 1:])
  )(keys)
  _, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
  assert len(counts) == 24
  # Each count is Binomial(4800, 1/24): mean 200, standard deviation 13.8.
  assert counts.min() > 200 - 5 * 13.8 and counts.max() < 200 + 5 * 13.8


def test_group_shuffle_permutes_rows_independently_of_each_other():
  similarity = jnp.tile(jnp.linspace(1.0, 0.0, 32), (32, 1))
  shuffled = np.asarray(
    losses.group_shuffle(similarity, jax.random.key(0), probability=1.0)
  )
  # Rows 0 and 1 without columns 0 and 1 hold the same values in 30! orders.
  assert not np.array_equal(shuffled[2, 3:], shuffled[1, 3:])


def test_group_shuffle_leaves_groups_of_one_as_they_are():
  # With 9 equal others each has 1/9 of the probability, more than p = 0.1: one
  # rank to a group.
  similarity = jnp.tile(jnp.linspace(0.001, 0.0, 10), (10, 1))
  shuffled = losses.group_shuffle(similarity, jax.random.key(0), probability=0.1)
  np.testing.assert_array_equal(shuffled, similarity)


def test_group_shuffle_stays_in_its_groups_in_a_batch_with_little_room_for_noise():
  # 512 columns and 128 groups leave too few of 32 bits to sort by one key.
  similarity = jax.random.uniform(jax.random.key(0), (512, 512))
  shuffled = losses.group_shuffle(similarity, jax.random.key(1), size=4)
  row = np.delete(np.asarray(similarity)[7], 7)
  order = np.argsort(-row)
  moved = np.delete(np.asarray(shuffled)[7], 7)[order]
  groups = row[order][:508].reshape(-1, 4)
  np.testing.assert_array_equal(-np.sort(-moved[:508].reshape(-1, 4)), groups)
  # A group keeps its order once in 4! = 24 times: about 5 of 127 do.
  assert (moved[:508].reshape(-1, 4) != groups).any(axis=1).sum() > 100


def test_group_shuffle_wants_exactly_one_rule():
  similarity = jnp.eye(4)
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="exactly one"):
    losses.group_shuffle(similarity, key)
  with pytest.raises(ValueError, match="exactly one"):
    losses.group_shuffle(similarity, key, probability=0.1, size=3)
  with pytest.raises(ValueError, match="probability"):
    losses.group_shuffle(similarity, key, probability=0.0)
  with pytest.raises(ValueError, match="top"):
    losses.group_shuffle(similarity, key, top=4)


def test_info_nce_of_orthogonal_pairs_has_its_closed_form():
  # Own cosine 1, all others 0: -log(e^(1/t) / (e^(1/t) + B - 1)).
  loss = losses.info_nce(jnp.eye(4), 2.0 * jnp.eye(4), temperature=0.5)
  expected = -np.log(np.exp(2.0) / (np.exp(2.0) + 3.0))
  np.testing.assert_allclose(loss, np.full(4, expected), rtol=1e-6)


def test_focal_info_nce_without_margin_is_info_nce_of_squared_cosines():
  a, b = random_embeddings(0), random_embeddings(1)
  similarity = np.asarray(losses.cosine_similarity(a, b), np.float64)
  logits = similarity**2 / 0.1
  expected = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
  np.testing.assert_allclose(
    losses.focal_info_nce(a, b, temperature=0.1, margin=0.0),
    expected,
    rtol=1e-5,
  )


@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_divergence_from_itself_is_zero_and_from_others_positive(divergence):
  same = losses.cosine_similarity(random_embeddings(0), random_embeddings(0))
  other = losses.cosine_similarity(random_embeddings(1), random_embeddings(1))
  settings = dict(
    student_temperature=0.1, teacher_temperature=0.1, divergence=divergence
  )
  zero = losses.similarity_divergence(same, same, **settings)
  np.testing.assert_allclose(zero, np.zeros(6), atol=1e-6)
  assert (np.asarray(losses.similarity_divergence(same, other, **settings)) > 0).all()


def test_js_is_symmetric_and_at_most_log_two():
  a = losses.cosine_similarity(random_embeddings(0), random_embeddings(0))
  b = losses.cosine_similarity(random_embeddings(1), random_embeddings(1))
  settings = dict(student_temperature=0.01, teacher_temperature=0.01, divergence="js")
  forward = losses.similarity_divergence(a, b, **settings)
  np.testing.assert_allclose(
    forward, losses.similarity_divergence(b, a, **settings), rtol=1e-4, atol=1e-6
  )
  assert (np.asarray(forward) <= np.log(2) + 1e-6).all()


def test_kl_and_cross_entropy_have_the_same_gradient_for_the_student():
  student = losses.cosine_similarity(random_embeddings(0), random_embeddings(0))
  teacher = losses.cosine_similarity(random_embeddings(1), random_embeddings(1))

  def gradient(divergence):
    return jax.grad(
      lambda s: losses.similarity_divergence(
        s,
        teacher,
        student_temperature=0.1,
        teacher_temperature=0.05,
        divergence=divergence,
      ).sum()
    )(student)

  np.testing.assert_allclose(
    gradient("kl"), gradient("cross_entropy"), rtol=1e-4, atol=1e-6
  )


def test_average_similarity_weighs_teachers_by_their_share():
  small, large = random_embeddings(0, features=4), random_embeddings(1, features=9)
  expected = 0.33 * losses.cosine_similarity(small, small)
  expected += 0.67 * losses.cosine_similarity(large, large)
  for weights in ([0.33, 0.67], [33.0, 67.0]):
    np.testing.assert_allclose(
      average_similarity([small, large], weights=weights),
      expected,
      atol=1e-6,
    )


def test_masked_language_model_of_equal_scores_is_log_of_the_vocabulary():
  logits = jnp.zeros((2, 3, 7))
  labels = jnp.asarray([[1, 2, 3], [4, -100, -100]])
  mask = jnp.asarray([[True, False, True], [False, False, False]])
  loss = losses.masked_language_model(logits, labels, mask)
  np.testing.assert_allclose(loss, [np.log(7.0), 0.0], rtol=1e-6)


EVERY_LOSS = {
  "info_nce": lambda a, b: losses.info_nce(
    a, b, temperature=0.01, all_negatives=b, negative_weight=1.0
  ),
  "focal": lambda a, b: losses.focal_info_nce(a, b, temperature=0.01, margin=0.3),
  **{
    divergence: lambda a, b, divergence=divergence: losses.similarity_divergence(
      losses.cosine_similarity(a, a),
      losses.group_shuffle(
        average_similarity([b, b]),
        jax.random.key(0),
        probability=0.1,
      ),
      student_temperature=0.001,
      teacher_temperature=0.001,
      divergence=divergence,
    )
    for divergence in ("cross_entropy", "kl", "js")
  },
}


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_gradients_are_finite_for_identical_zero_and_opposite_rows(name):
  a = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 3e4]])
  b = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, -3e4]])
  for left, right in ((a, b), (a, a), (b, a)):
    value, gradients = jax.value_and_grad(
      lambda a, b: EVERY_LOSS[name](a, b).sum(), (0, 1)
    )(left, right)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_losses_ignore_the_length_of_embeddings(name):
  a, b = random_embeddings(0), random_embeddings(1)
  np.testing.assert_allclose(
    EVERY_LOSS[name](a, b), EVERY_LOSS[name](8.0 * a, 0.5 * b), rtol=1e-4
  )

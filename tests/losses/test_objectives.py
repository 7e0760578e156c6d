"""The field's objectives: closed forms, plain loops, and what every term must keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.recipe import validate
from dcse_jax.runtime.errors import UserError
from tests import recipes

# Terms, and which of their optional inputs are left out.
CASES = [
  ("adap_acse", ""),
  ("core_tuning", ""),
  ("debcse", ""),
  ("debcse", "teacher"),
  ("embedding_distillation", ""),
  ("fraternal_twins", ""),
  ("gist", ""),
  ("list_mle", ""),
  ("list_net", ""),
  ("pnr", ""),
  ("rank_consistency", ""),
  ("relaxed_contrastive", ""),
  ("relaxed_contrastive", "teacher"),
  ("spread", ""),
  ("sscl", ""),
  ("symmetric_info_nce", ""),
  ("undropped_negatives", ""),
]
# The loss belongs to the batch, not to its rows.
WHOLE = [("dimension_contrast", "")]
OF_STEP = ("rng", "queue", "is_queued")


def offers(seed=0, batch=6, features=5):
  """Draws whatever a step offers: two teachers, two layers, a queue of four."""
  keys = iter(jax.random.split(jax.random.key(seed), 14))
  draw = lambda *shape: jax.random.normal(next(keys), shape)
  first = draw(batch, features)
  like_first = lambda: first + 0.5 * draw(batch, features)
  teachers = [like_first(), like_first()]
  joint = losses.join_teachers(teachers, [1.0, 3.0])
  return {
    "anchors": first,
    "positives": like_first(),
    "undropped": like_first(),
    "predictions": draw(batch, features),
    "layers": draw(batch, 2, features),
    "teacher": joint,
    "queue": draw(4, features),
    "is_queued": jnp.asarray([True, True, False, True]),
    "input_ids": jax.random.randint(next(keys), (batch, 7), 0, 9),
    "attention_mask": jnp.arange(7)[None] < 2 + jnp.arange(batch)[:, None],
    "rng": jax.random.key(7),
    "served": like_first(),
    "student": joint + 0.5 * draw(*joint.shape),
  }


def evaluate(name, offered, labels=None, **settings):
  """Computes a term's losses for all rows, or for those numbered `labels`."""
  term = losses.TERMS[name]
  arguments = {}
  for parameter in term.inputs:
    base = parameter.removeprefix("all_")
    value = offered.get(base)
    is_of_rows = base == parameter and base not in OF_STEP
    if is_of_rows and labels is not None and value is not None:
      value = value[labels]
    arguments[parameter] = value
  if "labels" in term.inputs:
    arguments["labels"] = labels
  return jax.jit(functools.partial(term.fn, **settings))(**arguments)


def without(offered, missing):
  return {name: value for name, value in offered.items() if name != missing}


def cosines(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  return unit(a) @ unit(b).T


def circle(*angles):
  return jnp.stack([jnp.cos(jnp.asarray(angles)), jnp.sin(jnp.asarray(angles))], axis=1)


@pytest.mark.parametrize("name, missing", CASES)
def test_a_row_has_the_same_loss_in_whatever_block_it_is(name, missing):
  offered = without(offers(), missing)
  whole = evaluate(name, offered)
  assert whole.shape == (6,) and whole.dtype == jnp.float32
  blocks = [evaluate(name, offered, jnp.asarray(own)) for own in ([4, 0, 2], [5, 1, 3])]
  blocks = np.concatenate(blocks)[[1, 4, 2, 5, 0, 3]]
  np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, missing", CASES + WHOLE)
def test_gradients_are_finite_for_identical_zero_and_opposite_rows(name, missing):
  a = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 3e4]])
  b = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, -3e4]])
  temperatures = {
    setting: 0.01
    for setting in losses.TERMS[name].settings
    if setting.endswith("temperature")
  }

  @jax.jit
  def value_and_gradients(left, right):
    def loss(trained):
      teacher = losses.join_teachers([left, right])
      fixed = offers(batch=5) | {"teacher": teacher, "queue": right[:4]}
      fixed["student"] = jnp.concatenate([trained["anchors"]] * 2, axis=1)
      return evaluate(name, without(fixed | trained, missing), **temperatures).sum()

    return jax.value_and_grad(loss)(
      {
        "anchors": left,
        "positives": right,
        "undropped": left,
        "predictions": right,
        "layers": jnp.stack([left, right], axis=1),
        "served": left,
      }
    )

  for left, right in ((a, b), (a, a), (b, a)):
    value, gradients = value_and_gradients(left, right)
    assert np.isfinite(value)
    for part, gradient in gradients.items():
      assert np.isfinite(gradient).all(), part


@pytest.mark.parametrize(
  "name", ["adap_acse", "debcse", "list_mle", "list_net", "pnr", "relaxed_contrastive"]
)
def test_students_get_a_gradient_and_teachers_none(name):
  offered = offers()
  # They are so near that the penalty on pairs that are too alike is not 0.
  positives = offered["anchors"] + 0.1 * offered["positives"]
  loss = lambda positives, teacher: evaluate(
    name, offered | {"positives": positives, "teacher": teacher}
  ).sum()
  student, teacher = jax.grad(loss, (0, 1))(positives, offered["teacher"])
  assert np.asarray(student).any()
  assert not np.asarray(teacher).any()


@pytest.mark.parametrize("alike", [False, True])
def test_sscl_adds_the_layers_to_half_of_the_denominators(alike):
  eye = jnp.eye(8)
  layers = eye[:4] if alike else eye[4:]
  offered = {"anchors": eye[:4], "positives": eye[:4], "layers": layers[:, None]}
  loss = evaluate("sscl", offered, temperature=0.5)
  # Cosines are 0 or 1. An anchor's own layer is a negative, even if it is the anchor.
  batch = np.exp(2) + 3
  more = batch + (np.exp(2) + 3 if alike else 4)
  expected = -0.5 * (np.log(np.exp(2) / batch) + np.log(np.exp(2) / more))
  np.testing.assert_allclose(loss, np.full(4, expected), rtol=1e-6)


@pytest.mark.parametrize(
  "angle, teacher_angle, logit",
  [
    (1.0, np.pi / 3, np.cos(1.0 - 0.15 * (1 - 0.5))),
    (1.0, np.pi / 2, np.cos(1.0 - 0.15)),
    (1.0, np.pi, np.cos(1.0 - 0.15)),  # Less alike than not at all counts as that.
    (0.1, np.pi / 2, np.cos(0.1)),  # Within the margin already.
    (3.0, np.pi / 2, np.cos(3.0 - 0.15)),
    (1.0, 0.3, -np.inf),  # cos 0.3 is 0.955: likely a false negative.
  ],
)
def test_adap_acse_turns_negatives_by_the_margin(angle, teacher_angle, logit):
  embeddings = circle(0.0, angle)
  offered = {
    "anchors": embeddings,
    "positives": embeddings,
    "teacher": circle(0.0, teacher_angle),
  }
  loss = evaluate("adap_acse", offered, temperature=0.5, similarity_threshold=0.9)
  expected = np.log1p(np.exp((logit - 1) / 0.5))
  np.testing.assert_allclose(loss, np.full(2, expected), rtol=1e-4, atol=1e-7)


def test_relaxed_contrastive_is_free_below_its_threshold_and_sums_pairs_above():
  # The first pair's cosine is 0.8 and the second's 0.6.
  anchors = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
  positives = jnp.asarray([[0.8, 0.6, 0.0], [0.8, 0.0, 0.6]])
  offered = {"anchors": anchors, "positives": positives}
  penalty = np.exp(-0.2 / 0.1)
  loss = evaluate("relaxed_contrastive", offered, temperature=0.1)
  np.testing.assert_allclose(loss, [np.log1p(penalty), 0.0], rtol=1e-5)
  # A teacher that finds both sentences alike adds the first anchor with the second
  # positive, at 0.8, and the second anchor with the first positive, at 0.
  offered["teacher"] = jnp.ones((2, 4))
  loss = evaluate("relaxed_contrastive", offered, temperature=0.1)
  np.testing.assert_allclose(loss, [np.log1p(2 * penalty), 0.0], rtol=1e-5)


def test_core_tuning_is_the_plain_loop():
  offered = offers()
  loss = evaluate("core_tuning", offered, temperature=0.2, alpha=0.7)
  similarity = cosines(offered["anchors"], offered["positives"])
  unit = np.asarray(offered["positives"], np.float64)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  # Row i draws from the key of its number.
  keys = jnp.stack([jax.random.fold_in(offered["rng"], i) for i in range(6)])
  shares = np.asarray(jax.vmap(lambda key: jax.random.beta(key, 0.7, 0.7))(keys))
  for i, (row, share) in enumerate(zip(similarity, shares)):
    others = [j for j in range(6) if j != i]
    hardest = max(others, key=lambda j: row[j])
    mixed = share * unit[i] + (1 - share) * unit[hardest]
    to_mixed = cosines(offered["anchors"][i : i + 1], mixed[None])[0, 0]
    logits = np.append(row, to_mixed) / 0.2
    p = np.exp(logits) / np.exp(logits).sum()
    expected = -0.5 * ((1 - p[i]) * np.log(p[i]) + (1 - p[-1]) * np.log(p[-1]))
    assert loss[i] == pytest.approx(expected, rel=1e-4)


def test_pnr_is_the_plain_loop_with_the_mean_of_its_teachers_cosines():
  offered = offers()
  loss = evaluate("pnr", offered, temperature=0.3)
  z, g, v = (offered[name] for name in ("anchors", "predictions", "positives"))
  # The weights are 1 and 3.
  first, second = offered["teacher"][:, :5], offered["teacher"][:, 5:]
  previous = lambda x: 0.25 * cosines(x, first) + 0.75 * cosines(x, second)
  for i in range(6):
    expected = 0.0
    for kept, pseudo in ((cosines(z, v), previous(z)), (previous(g), cosines(g, v))):
      kept, pseudo = np.exp(kept[i] / 0.3), np.exp(pseudo[i] / 0.3)
      expected -= np.log(kept[i] / (kept.sum() + np.delete(pseudo, i).sum()))
    assert loss[i] == pytest.approx(expected, rel=1e-5)


def test_pnr_refuses_a_teacher_of_another_width():
  offered = offers() | {"teacher": jnp.ones((6, 7))}
  with pytest.raises(ValueError, match="teachers 5 wide each"):
    evaluate("pnr", offered)


def test_fraternal_twins_counts_what_is_queued_and_keeps_its_margin():
  eye = jnp.eye(8)
  offered = {
    "anchors": eye[:4],
    "positives": eye[:4],
    "undropped": eye[:4],
    "queue": eye[4:],
    "is_queued": jnp.asarray([True, True, False, False]),
  }
  run = lambda: evaluate("fraternal_twins", offered, temperature=0.5, margin=0.1)
  # Two of the queue are there, at a cosine of 0, as three others of the batch; both
  # twins are equally near.
  contrast = -np.log(np.exp(2) / (np.exp(2) + 3 + 2))
  np.testing.assert_allclose(run(), np.full(4, contrast + 0.1 / 0.5), rtol=1e-5)
  # With fraternal twins below a cosine of 0.9 the margin is kept.
  offered["positives"] = 0.8 * eye[:4] + 0.6 * jnp.roll(eye, 1, axis=1)[3:4]
  rows = np.exp(cosines(offered["anchors"], offered["positives"]) / 0.5)
  expected = -np.log(np.diag(rows) / (rows.sum(axis=1) + 2))
  assert np.diag(cosines(offered["anchors"], offered["positives"])).max() < 0.9
  np.testing.assert_allclose(run(), expected, rtol=1e-5)


@pytest.mark.parametrize("missing", ["", "teacher"])
def test_debcse_is_the_plain_loop(missing):
  offered = without(offers(), missing)
  loss = evaluate("debcse", offered, temperature=0.3, least_propensity=0.4)
  tokens = [
    set(np.asarray(ids)[np.asarray(mask)])
    for ids, mask in zip(offered["input_ids"], offered["attention_mask"])
  ]
  lengths = np.asarray(offered["attention_mask"]).sum(axis=1)
  assert any(len(each) < length for each, length in zip(tokens, lengths))
  similarity = cosines(offered["anchors"], offered["positives"])
  if missing:
    semantic = cosines(offered["anchors"], offered["anchors"])
    np.fill_diagonal(semantic, np.diag(similarity))
  else:
    semantic = cosines(offered["teacher"], offered["teacher"])
  semantic = semantic.clip(0, 1)
  for i in range(6):
    others = [j for j in range(6) if j != i]
    weights = []
    for j in others:
      surface = len(tokens[i] & tokens[j]) / len(tokens[i] | tokens[j])
      weights.append((1 - semantic[i, j]) / max(1 - surface, 0.4))
    weights = np.asarray(weights) / np.mean(weights)
    own = np.exp(similarity[i, i] / 0.3)
    rest = (weights * np.exp(similarity[i, others] / 0.3)).sum()
    expected = -semantic[i, i] * np.log(own / (own + rest))
    assert loss[i] == pytest.approx(expected, rel=1e-4)


def test_list_net_is_the_cross_entropy_with_the_teachers_first_places():
  offered = offers()
  temperatures = dict(student_temperature=0.2, teacher_temperature=0.1)
  loss = evaluate("list_net", offered, **temperatures)
  student = np.exp(cosines(offered["anchors"], offered["positives"]) / 0.2)
  teacher = np.exp(cosines(offered["teacher"], offered["teacher"]) / 0.1)
  for i in range(6):
    p, q = np.delete(student[i], i), np.delete(teacher[i], i)
    expected = -(q / q.sum() * np.log(p / p.sum())).sum()
    assert loss[i] == pytest.approx(expected, rel=1e-5)


def test_list_mle_takes_one_sentence_after_the_other_as_the_teacher_ranks_them():
  offered = offers()
  loss = evaluate("list_mle", offered, student_temperature=0.2)
  student = np.exp(cosines(offered["anchors"], offered["positives"]) / 0.2)
  teacher = cosines(offered["teacher"], offered["teacher"])
  for i in range(6):
    left = sorted((j for j in range(6) if j != i), key=lambda j: -teacher[i, j])
    terms = []
    while left:
      terms.append(-np.log(student[i, left[0]] / student[i, left].sum()))
      left = left[1:]
    assert loss[i] == pytest.approx(np.mean(terms), rel=1e-5)


def test_rank_consistency_is_the_jensen_shannon_divergence_of_both_directions():
  offered = offers()
  loss = evaluate("rank_consistency", offered, temperature=0.2)
  similarity = np.exp(cosines(offered["anchors"], offered["positives"]) / 0.2)
  for i in range(6):
    p = similarity[i] / similarity[i].sum()
    q = similarity[:, i] / similarity[:, i].sum()
    m = (p + q) / 2
    expected = 0.5 * (p * np.log(p / m) + q * np.log(q / m)).sum()
    assert loss[i] == pytest.approx(expected, rel=1e-4)
  same = offered | {"positives": offered["anchors"]}
  np.testing.assert_allclose(evaluate("rank_consistency", same), 0.0, atol=1e-6)


def test_undropped_negatives_are_the_only_negatives():
  # Two views at a cosine of 0.6, the second alike for all: no matter.
  eye = jnp.eye(5)
  offered = {
    "anchors": 0.6 * eye[4:] + 0.8 * eye[:4],
    "positives": jnp.tile(eye[4], (4, 1)),
    "undropped": eye[:4],
  }
  loss = evaluate("undropped_negatives", offered, temperature=0.5)
  expected = -np.log(np.exp(1.2) / (np.exp(1.2) + 3))
  np.testing.assert_allclose(loss, np.full(4, expected), rtol=1e-5)


def test_dimension_contrast_is_of_the_correlations_of_dimensions():
  offered = offers(batch=32)
  loss = evaluate("dimension_contrast", offered, temperature=0.5)
  views = np.concatenate([offered["anchors"], offered["positives"]], axis=1)
  logits = np.corrcoef(views, rowvar=False)[:5, 5:] / 0.5
  expected = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
  np.testing.assert_allclose(loss, np.full(32, expected.mean()), rtol=1e-4)


CONFIGS = {
  "adap_acse": "adap_acse",
  "core_tuning": "core_tuning",
  "debcse": "debcse",
  "fraternal_twins": "fraternal_twins",
  "pnr": "pnr",
  "rankcse": "2 * info_nce + rank_consistency + 127 * list_mle",
  "relaxed_contrastive": "info_nce + 1.0 * relaxed_contrastive",
  "simcse_plus_plus": "undropped_negatives + 0.1 * dimension_contrast",
  "sscl": "sscl",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_its_papers_objective_in_its_last_round(name):
  for variant in ("bert-base", "bert-large", "roberta-base", "roberta-large"):
    config = recipes.load_config(name, variant)
    validate.check(config)
    last = config_lib.of_round(config, config.recipe[-1])
    assert last.objective == CONFIGS[name]


@pytest.mark.parametrize(
  "name, variant, objective",
  [
    ("simcse", "bert-base,mlm", "info_nce + 0.1 * masked_language_model"),
    ("simcse", "bert-base,supervised", "info_nce"),
    ("cards", "roberta-base", "retrieved_negatives"),
    ("ifnd", "bert-base", "incremental_false_negatives"),
    ("diffcse", "bert-base", "info_nce + 0.005 * replaced_token_detection"),
    ("sparse_cse", "bert-base", "info_nce"),
  ],
)
def test_configs_with_more_than_a_loss_are_whole(name, variant, objective):
  config = recipes.load_config(name, variant)
  validate.check(config)
  last = config_lib.of_round(config, config.recipe[-1])
  assert last.objective == objective
  assert (last.switch_case > 0) == (name == "cards")
  assert (last.sparsity > 0) == (name == "sparse_cse")


def test_rankcse_distils_by_list_net_if_asked():
  config = recipes.load_config("rankcse", "bert-base,list_net")
  validate.check(config)
  objective = config_lib.of_round(config, "rank").objective
  assert objective == "info_nce + rank_consistency + list_net"


@pytest.mark.parametrize("name", ["adap_acse", "pnr", "rankcse"])
def test_a_term_that_needs_teachers_says_so(name):
  config = recipes.load_config(name)
  config.rounds[config.recipe[-1]].update(teachers=(), teacher_weights=())
  with pytest.raises(UserError, match="needs teachers"):
    validate.check(config)

"""Terms against values and gradients that the authors' own code gives.

They were computed with PyTorch from the published repositories; the numbers lie beside
the checkout, and without them these tests are skipped.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses
from tests import processes

FIXTURES = processes.ROOT.parent / "shared" / "fixtures" / "official"
pytestmark = pytest.mark.skipif(
  not FIXTURES.is_dir(),
  reason="there is no shared/fixtures/official beside the checkout",
)


def read(name):
  """Reads a fixture: inputs, value, gradients by input, and settings."""
  with np.load(FIXTURES / f"{name}.npz") as file:
    arrays = {key.removeprefix("b8_"): file[key] for key in file.files}
  part = lambda prefix: {
    key.removeprefix(prefix): value
    for key, value in arrays.items()
    if key.startswith(prefix)
  }
  settings = json.loads(str(arrays["settings"]))
  return part("in_"), float(arrays.get("value", 0)), part("grad_"), settings


def mean_loss(name, given, **settings):
  """Returns a term's mean, with "all_x" the same as x where it asks for both."""
  term = losses.TERMS[name]
  arguments = {
    parameter: given.get(parameter, given.get(parameter.removeprefix("all_")))
    for parameter in term.inputs
  }
  return jnp.mean(term.fn(**arguments, **settings))


def check(name, loss, trained=None):
  """Compares a loss of a fixture's inputs with its value and its gradients."""
  given, value, gradients, _ = read(name)
  wanted = {key: gradients[key] for key in trained or gradients}

  def of_trained(part):
    return loss({**given, **part})

  # One program, since compiling every operation by itself takes longer.
  part = {key: given[key] for key in wanted}
  found, ours = jax.jit(jax.value_and_grad(of_trained))(part)
  assert float(found) == pytest.approx(value, rel=3e-6, abs=3e-6)
  for key, gradient in wanted.items():
    np.testing.assert_allclose(ours[key], gradient, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
  "name, term, settings",
  [
    ("simcse_unsup", "info_nce", {}),
    ("simcse_hard_negatives_w0", "info_nce", {}),
    ("simcse_hard_negatives_w1", "info_nce", dict(negative_weight=1.0)),
    ("focal_info_nce", "focal_info_nce", dict(margin=0.3)),
    ("rank_consistency_paper", "rank_consistency", {}),
    ("undropped_negatives_pos_ratio_1.0", "undropped_negatives", {}),
    (
      "undropped_negatives_pos_ratio_0.9",
      "undropped_negatives",
      dict(positive_ratio=0.9),
    ),
    ("dimension_contrast", "dimension_contrast", dict(temperature=5.0)),
    ("retrieved_negatives", "retrieved_negatives", {}),
    ("relaxed_contrastive_single_pair", "relaxed_contrastive", {}),
    ("adap_acse_0.9_clipped", "adap_acse", dict(similarity_threshold=0.9)),
  ],
)
def test_a_term_is_the_published_loss(name, term, settings):
  _, _, _, theirs = read(name)
  assert losses.TERMS[term].settings["temperature"] in (0.05, 5.0)
  assert settings.get("temperature", 0.05) == theirs["temperature"]
  check(name, lambda given: mean_loss(term, given, **settings))


def test_pnr_is_the_published_loss_of_one_direction():
  def loss(given):
    # Teachers come at unit length.
    given = {**given, "teacher": losses.join_teachers([given["teacher"]])}
    return mean_loss("pnr", given, temperature=0.2)

  check("pnr", loss)


@pytest.mark.parametrize("teachers", [1, 3])
@pytest.mark.parametrize("student_temperature", [0.02, 0.025])
def test_distillcse_is_info_nce_and_distillation(teachers, student_temperature):
  def loss(given):
    joined = losses.join_teachers([given[f"teacher{i}"] for i in range(teachers)])
    given = {**given, "teacher": joined, "rng": jax.random.key(0)}
    return mean_loss("info_nce", given) + mean_loss(
      "distillation",
      given,
      student_temperature=student_temperature,
      teacher_temperature=student_temperature / 2,
    )

  check(f"distillcse_plain_{teachers}_teachers_{student_temperature}", loss)


@pytest.mark.parametrize("number", [1, 2])
def test_sscl_takes_the_layers_of_both_views_where_they_are_given(number):
  def loss(given):
    layers = jnp.concatenate([given["layers1"], given["layers2"]], axis=1)
    return mean_loss("sscl", {**given, "layers": layers})

  check(f"sscl_{number}_layers", loss)


def test_diffcse_is_info_nce_and_detection_with_padding():
  def loss(given):
    # Two logits a token are theirs; ours is the difference.
    detection = losses.TERMS["replaced_token_detection"].fn(
      given["two"][..., 1] - given["two"][..., 0],
      (given["filled_in"] != given["input_ids"]) & (given["attention_mask"] > 0),
      jnp.ones(given["input_ids"].shape, bool),
    )
    return mean_loss("info_nce", given) + 0.005 * jnp.mean(detection)

  for name in ("diffcse", "diffcse_padding"):
    check(name, loss)


def test_masked_words_weigh_alike_where_each_sentence_has_as_many():
  check("mlm_equal_masks", lambda given: mean_loss("masked_language_model", given))


def test_core_tuning_is_the_published_loss_as_a_mean_over_two_positives():
  # Theirs divides the same sum by all B + 2 features; the fixture has it times that
  # over 2.
  def loss(given):
    given = {**given, "rng": jax.random.key(3)}
    return mean_loss("core_tuning", given, temperature=0.07)

  check("core_tuning", loss)


@pytest.mark.parametrize("mode", ["eliminate", "attract"])
def test_ifnd_is_the_papers_formula(mode):
  check(
    f"ifnd_{mode}",
    lambda given: mean_loss(
      "incremental_false_negatives", {**given, "progress": 0.6}, mode=mode
    ),
  )


def test_the_reproduction_of_list_net_has_the_students_temperature_for_teachers():
  def loss(given):
    joined = losses.join_teachers([given["teacher1"], given["teacher2"]], [0.33, 0.67])
    return mean_loss("list_net", {**given, "teacher": joined}, teacher_temperature=0.05)

  check("list_net_reproduction", loss)


def test_the_reproduction_of_list_mle_is_info_nce_and_as_many_times_the_mean():
  given, value, _, _ = read("list_mle_reproduction")
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  cosine = lambda a, b: unit(a.astype(float)) @ unit(b.astype(float)).T
  teacher = 0.33 * cosine(given["teacher1"], given["teacher1"])
  teacher += 0.67 * cosine(given["teacher2"], given["teacher2"])
  student = cosine(given["anchors"], given["positives"]) / 0.05

  def over_all_ranks(added):
    total = 0.0
    for i in range(8):
      # A sentence is most similar to itself, and heads its list.
      ranked = student[i, np.argsort(-teacher[i])]
      ranked = ranked - ranked.max()
      remaining = np.cumsum(np.exp(ranked)[::-1])[::-1]
      total += (np.log(remaining + added) - ranked).sum()
    return total / 8

  joined = losses.join_teachers([given["teacher1"], given["teacher2"]], [0.33, 0.67])
  given["teacher"] = joined
  ours = mean_loss("info_nce", given) + 7 * mean_loss("list_mle", given)
  assert float(ours) == pytest.approx(over_all_ranks(0.0), rel=3e-6)
  # The reproduction adds 1e-7 within its logarithms, which ours has no need of.
  assert over_all_ranks(1e-7) == pytest.approx(value, rel=3e-6)


def test_relaxed_contrast_of_classes_takes_the_least_alike_of_a_class():
  def loss(given):
    features = given["features"]
    same = jax.nn.one_hot(given["labels"], 8)
    given = {"anchors": features, "positives": features, "teacher": same}
    return mean_loss("relaxed_contrastive", given, pairs="least_alike")

  check("relaxed_contrastive_classes_top1", loss)


def test_alignment_and_uniformity_of_the_first_view_is_theirs():
  given, value, _, _ = read("alignment_uniformity")
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  pairs = np.triu_indices(8, k=1)

  def uniformity(x):
    squares = ((unit(x)[:, None] - unit(x)[None]) ** 2).sum(axis=-1)[pairs]
    return np.log(np.exp(-2 * squares).mean())

  # The fixture has the first view's uniformity, their training the mean of both.
  first, second = uniformity(given["anchors"]), uniformity(given["positives"])
  ours = mean_loss("alignment_uniformity", given)
  assert float(ours) == pytest.approx(value + (second - first) / 2, rel=1e-5)


def test_group_p_has_the_value_of_the_published_shuffles():
  given, _, _, settings = read("distillcse_group_p_b8")
  with np.load(FIXTURES / "distillcse_group_p_b8.npz") as file:
    expected, gradient = float(file["mean_value"]), file["mean_grad_anchors"]
    assert float(file["sd"]) == 0.0
  joined = losses.join_teachers([given[f"teacher{i}"] for i in range(3)])
  # In so small a batch every group holds one sentence, and nothing moves.
  names = ("student_temperature", "teacher_temperature", "group_probability")

  def loss(anchors):
    everything = {"anchors": anchors, "teacher": joined, "rng": jax.random.key(0)}
    return mean_loss("distillation", everything, **{n: settings[n] for n in names})

  value, ours = jax.jit(jax.value_and_grad(loss))(given["anchors"])
  assert float(value) == pytest.approx(expected, rel=3e-6)
  np.testing.assert_allclose(ours, gradient, atol=1e-5)

"""Rows with unlike numbers of hard negatives: those that are not there count nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcse_jax import losses

SIZE = 5


def draw(batch, negatives):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=(batch, *shape)).astype(np.float32)
  given = {name: draw(SIZE) for name in ("anchors", "positives", "teacher")}
  given |= {"teacher_positives": draw(SIZE), "scores": draw(1 + negatives)}
  return given | {
    name: draw(negatives, SIZE) for name in ("negatives", "teacher_negatives")
  }


def value(name, given, **settings):
  term = losses.TERMS[name]
  every = {**given, **{f"all_{n}": x for n, x in given.items()}}
  return term.fn(**{n: every.get(n) for n in term.inputs}, **settings)


TERMS = [
  ("info_nce", {}),
  ("info_nce", {"negative_weight": 0.5}),
  ("symmetric_info_nce", {}),
  ("gist", {}),
  ("score_distillation", {}),
  ("score_distillation", {"measure": "margin_mse"}),
  ("candidate_distillation", {}),
]


@pytest.mark.parametrize("name, settings", TERMS, ids=str)
def test_a_negative_that_is_not_there_counts_nothing(name, settings):
  # Nobody has the last two of four negatives, so there might as well be two.
  given = draw(3, 4)
  given["has_negative"] = jnp.asarray([[True, True, False, False]] * 3)
  fewer = {n: x[:, :2] if n.endswith("negatives") else x for n, x in given.items()}
  fewer["scores"] = given["scores"][:, :3]
  del fewer["has_negative"]
  expected = value(name, fewer, **settings)
  np.testing.assert_allclose(value(name, given, **settings), expected, rtol=1e-6)
  # What stands in its place reaches neither value nor gradient.
  gradient = jax.grad(
    lambda x: value(name, {**given, "negatives": x}, **settings).sum()
  )(given["negatives"])
  assert not gradient[:, 2:].any()
  assert gradient[:, :2].all()


def test_info_nce_of_one_row_with_two_negatives_is_a_softmax_of_three():
  anchor = jnp.asarray([[1.0, 0.0]])
  negatives = jnp.asarray([[[0.0, 1.0], [-1.0, 0.0]]])
  found = losses.info_nce(anchor, anchor, negatives, temperature=1.0, negative_weight=2)
  # Cosines 1, 0 and -1, and 2 more for its own negatives.
  expected = -np.log(np.e / (np.e + np.exp(0 + 2) + np.exp(-1 + 2)))
  np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_margin_mse_is_the_mean_over_the_negatives_of_a_row():
  anchor, positive = jnp.asarray([[1.0]]), jnp.asarray([[4.0]])
  negatives, scores = jnp.asarray([[[1.0], [2.0]]]), jnp.asarray([[9.0, 5.0, 8.0]])
  settings = dict(measure="margin_mse", similarity="dot", student_temperature=1.0)
  term = losses.TERMS["score_distillation"].fn
  loss = term(anchor, positive, negatives, scores, **settings)
  # Margins of the student: 4 - 1 and 4 - 2; the teacher's: 9 - 5 and 9 - 8.
  np.testing.assert_allclose(loss, [((3 - 4) ** 2 + (2 - 1) ** 2) / 2])
  one = term(
    anchor, positive, negatives, scores, jnp.asarray([[True, False]]), **settings
  )
  np.testing.assert_allclose(one, [(3 - 4) ** 2])


def test_candidate_distillation_is_the_distillation_of_the_teachers_cosines():
  given = draw(3, 2)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  candidates = np.concatenate(
    [given["teacher_positives"][:, None], given["teacher_negatives"]], axis=1
  )
  cosines = np.einsum("be,bke->bk", unit(given["teacher"]), unit(candidates))
  expected = value(
    "score_distillation", given | {"scores": cosines}, teacher_temperature=0.05
  )
  found = value("candidate_distillation", given)
  np.testing.assert_allclose(found, expected, rtol=1e-4)

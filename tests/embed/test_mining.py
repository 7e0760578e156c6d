"""Hard negatives: those that sentence-transformers mines, and files of them."""

import json

import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.data import text as text_lib
from dcse_jax.embed import mining
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes

# Some anchors have two positives, and some positives two anchors.
ANCHORS = [*models.SENTENCES[:12], *models.SENTENCES[:4], models.SENTENCES[5]]
POSITIVES = [f"{anchor} the" for anchor in ANCHORS[:12]]
POSITIVES += [f"mountains {anchor} in" for anchor in ANCHORS[:4]] + POSITIVES[:1]
CORPUS = models.SENTENCES[60:90]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return models.write_tiny_folder(tmp_path_factory.mktemp("m") / "m", num_layers=1)


@pytest.mark.parametrize(
  "guards",
  [
    {},
    {"range_min": 3, "range_max": 9},
    {"absolute_margin": 0.008, "min_score": 0.98},
    {"relative_margin": 0.006, "max_score": 0.989, "range_min": 1},
  ],
  ids=str,
)
def test_negatives_are_those_that_sentence_transformers_mines(model, guards):
  datasets = pytest.importorskip("datasets", reason="needs datasets")
  from sentence_transformers import SentenceTransformer
  from sentence_transformers.util import mine_hard_negatives

  theirs = mine_hard_negatives(
    datasets.Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES}),
    SentenceTransformer(model, device="cpu"),
    corpus=CORPUS,
    num_negatives=2,
    verbose=False,
    **guards,
  )
  found = mining.mine(
    SentenceEncoder(model),
    ANCHORS,
    POSITIVES,
    CORPUS,
    guards=mining.Guards(**guards),
    num_negatives=2,
  )
  expected = [tuple(row.values()) for row in theirs]
  assert expected and sorted(found.triplets) == sorted(expected)
  assert all(found.left_out.values()) or not set(guards) - {"range_min", "range_max"}


def test_an_anchor_and_its_positives_are_never_its_negatives(model):
  encoder = SentenceEncoder(model)
  anchors, positives = ["a b", "a b", "c"], ["a", "b", "a b"]
  mined = lambda **kwargs: mining.mine(
    encoder, anchors, positives, guards=mining.Guards(), **kwargs
  )
  found = mined(num_negatives=3)
  assert set(found.triplets) == {("c", "a b", "a"), ("c", "a b", "b")}
  assert found.without == 3
  drawn = [mined(num_negatives=1, sample=True, seed=s).triplets for s in range(20)]
  assert {each[0][2] for each in drawn} == {"a", "b"}
  with pytest.raises(UserError, match="range_max=2 leave no room for num_negatives=3"):
    mining.Guards(range_max=2).depth(3, 1)


def test_the_command_writes_triplets_that_train(model, tmp_path):
  rows = ["a\tb", *("\t".join(pair) for pair in zip(ANCHORS, POSITIVES))]
  (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
  (tmp_path / "corpus.txt").write_text("\n".join(CORPUS) + "\n")
  done = processes.run(
    "dcse_jax.mine",
    *("--model", model, "--text", str(tmp_path / "pairs.tsv"), "--columns", "a,b"),
    *("--corpus", str(tmp_path / "corpus.txt"), "--max_score", "0.99"),
    *("--output", str(tmp_path / "triplets.jsonl")),
  )
  assert done.returncode == 0, done.stderr
  expected = mining.mine(
    SentenceEncoder(model),
    ANCHORS,
    POSITIVES,
    CORPUS,
    guards=mining.Guards(max_score=0.99),
    num_negatives=1,
  ).triplets
  names = ("anchor", "positive", "negative")
  text = text_lib.read_text(str(tmp_path / "triplets.jsonl"), names)
  assert list(zip(*text.columns)) == expected
  first = json.loads((tmp_path / "triplets.jsonl").read_text().partition("\n")[0])
  assert tuple(first) == names
  assert f"{len(expected)} triplets written" in done.stdout

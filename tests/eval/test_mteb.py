"""MTEB's own evaluation of our encoder and of sentence-transformers' on one folder."""

import json
import socket

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.eval import sts
from dcse_jax.eval import sts_sets
from dcse_jax.eval.mteb_encoder import MtebEncoder
from dcse_jax.runtime.errors import UserError
from tests import models

# The warnings come from mteb and what it imports, not from dcse_jax.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def mteb(tmp_path, monkeypatch):
  """The package, which writes nothing into the home folder and fetches nothing."""

  def refuse(*_):
    raise AssertionError("a test opens no connection")

  monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
  monkeypatch.setattr(socket.socket, "connect", refuse)
  return pytest.importorskip("mteb")


@pytest.fixture
def evaluate(mteb, tmp_path):
  """Evaluates a model on a task; returns the scores of its only split."""
  cache = mteb.ResultCache(tmp_path / "results")

  def evaluate(model, task):
    result = mteb.evaluate(model, task, cache=cache, show_progress_bar=False)
    return result.task_results[0].scores["test"][0]

  return evaluate


def describe(mteb, name, kind, main_score):
  return mteb.TaskMetadata(
    name=name,
    description="Made on the spot.",
    type=kind,
    category="t2t",
    dataset={"path": "local/none", "revision": "1"},
    eval_langs=["eng-Latn"],
    main_score=main_score,
  )


def sts_task(mteb, path):
  """Makes an STS task of MTEB from one of our files."""
  from datasets import Dataset
  from mteb.abstasks import AbsTaskSTS

  pairs = sts_sets.read_sts_file(path)

  class LocalSts(AbsTaskSTS):
    metadata = describe(mteb, "LocalSts", "STS", "cosine_spearman")

    def load_data(self, **kwargs):
      columns = {
        "sentence1": pairs.first,
        "sentence2": pairs.second,
        "score": pairs.scores,
      }
      self.dataset = {"test": Dataset.from_dict(columns)}
      self.data_loaded = True

  return LocalSts()


def retrieval_task(mteb, texts):
  """Makes a task whose corpus has each query's text under the same number."""
  from datasets import Dataset
  from mteb.abstasks import AbsTaskRetrieval

  ids = [str(i) for i in range(len(texts))]

  class LocalRetrieval(AbsTaskRetrieval):
    metadata = describe(mteb, "LocalRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, **kwargs):
      split = {
        "corpus": Dataset.from_dict({"id": ids, "text": texts, "title": ids}),
        "queries": Dataset.from_dict(
          {"id": ids, "text": [f"{i} {text}" for i, text in zip(ids, texts)]}
        ),
        "relevant_docs": {i: {i: 1} for i in ids},
        "top_ranked": None,
      }
      self.dataset = {"default": {"test": split}}
      self.data_loaded = True

  return LocalRetrieval()


def test_an_sts_task_scores_as_with_sentence_transformers_and_as_our_own(
  tmp_path, mteb, evaluate
):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  name = models.write_tiny_folder(tmp_path / "model")
  models.write_sts(tmp_path, "X")
  task = sts_task(mteb, tmp_path / "X.tsv")
  ours = evaluate(MtebEncoder(name), task)
  theirs = evaluate(sentence_transformers.SentenceTransformer(name), task)
  for score in ("cosine_spearman", "spearman", "cosine_pearson", "euclidean_spearman"):
    assert 100 * ours[score] == pytest.approx(100 * theirs[score], abs=0.05)
  expected = sts.score_sts(
    SentenceEncoder(name).encode, sts_sets.read_sts(str(tmp_path))
  )
  assert 100 * ours["cosine_spearman"] == pytest.approx(expected["X"], abs=0.05)
  assert abs(expected["X"]) > 1  # Not a score that any encoder would get.


def test_a_retrieval_task_finds_texts_that_are_asked_for_as_they_are(
  tmp_path, mteb, evaluate
):
  texts = list(dict.fromkeys(models.SENTENCES))[:40]
  encoder = MtebEncoder(models.write_tiny_folder(tmp_path / "model"), batch_size=16)
  # A document is "TITLE TEXT", and so is its query here.
  scores = evaluate(encoder, retrieval_task(mteb, texts))
  assert scores["ndcg_at_1"] == scores["recall_at_1"] == 1.0


def test_results_are_kept_by_a_name_and_a_digest_of_the_model(tmp_path, mteb):
  first = MtebEncoder(models.write_tiny_folder(tmp_path / "model")).mteb_model_meta
  again = MtebEncoder(str(tmp_path / "model")).mteb_model_meta
  assert first.name == again.name == "local/model"
  assert first.revision == again.revision
  # Another model in the same folder, and the same one cut at another length.
  other = MtebEncoder(models.write_tiny_folder(tmp_path / "model", seed=1))
  assert other.mteb_model_meta.revision != first.revision
  shorter = SentenceEncoder(str(tmp_path / "model"), max_length=8)
  meta = MtebEncoder(shorter, name="me/short").mteb_model_meta
  assert meta.name == "me/short"
  assert meta.max_tokens == 8
  assert meta.revision != other.mteb_model_meta.revision


def test_the_model_is_described_as_it_is(tmp_path, mteb):
  model = models.tiny_model()
  name = models.write_tiny_folder(tmp_path / "model")
  meta = MtebEncoder(name).mteb_model_meta
  # Counted by hand: width 16; word, position (64) and type (2) embeddings and a norm;
  # two layers of four 16 x 16 maps, a 16 x 32 and a 32 x 16, and two norms.
  words = model.config.vocab_size * 16
  layer = 4 * (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 2 * 32
  assert meta.n_embedding_parameters == words
  assert meta.n_parameters == words + (64 + 2) * 16 + 32 + 2 * layer
  assert (meta.embed_dim, meta.max_tokens) == (16, 32)


def test_an_encoder_needs_a_name_and_no_other_precision_is_given(tmp_path, mteb):
  encoder = SentenceEncoder(models.write_tiny_folder(tmp_path / "model"))
  with pytest.raises(UserError, match="name=NAME"):
    MtebEncoder(encoder)
  task = describe(mteb, "Mine", "STS", "cosine_spearman")
  about = dict(task_metadata=task, hf_split="test", hf_subset="default")
  with pytest.raises(UserError, match="precision='int8'"):
    MtebEncoder(encoder, name="x").encode([], precision="int8", **about)
  assert MtebEncoder(encoder, name="x").encode([], **about).shape == (0, 16)


def test_mteb_gets_the_first_numbers_of_embeddings_that_are_cut(tmp_path, mteb):
  path = models.write_tiny_folder(tmp_path / "model")
  whole = MtebEncoder(path, name="x")
  cut = MtebEncoder(SentenceEncoder(path, truncate_dim=6), name="x")
  task = describe(mteb, "Mine", "STS", "cosine_spearman")
  about = dict(task_metadata=task, hf_split="test", hf_subset="default")
  first, every = (e.encode([{"text": ["A cat."]}], **about) for e in (cut, whole))
  np.testing.assert_allclose(first, every[:, :6], atol=1e-6)
  assert cut.mteb_model_meta.embed_dim == 6
  assert cut.mteb_model_meta.revision != whole.mteb_model_meta.revision


def test_a_task_chooses_the_prompt_by_its_name_its_type_or_the_kind_of_text(
  mteb, tmp_path
):
  from mteb.types import PromptType

  path = models.write_tiny_folder(tmp_path / "m")
  card = tmp_path / "m/config_sentence_transformers.json"
  prompts = {"Mine": "mine: ", "STS-query": "alike: ", "query": "asked: "}
  without = MtebEncoder(path).mteb_model_meta.revision
  card.write_text(json.dumps(json.loads(card.read_text()) | {"prompts": prompts}))
  encoder = MtebEncoder(path)
  # Results of other prompts are another model's.
  assert encoder.mteb_model_meta.revision != without
  chosen = {
    ("Mine", "STS", "query"): "Mine",
    ("Yours", "STS", "query"): "STS-query",
    ("Yours", "Retrieval", "query"): "query",
    ("Yours", "Retrieval", "document"): None,
  }
  for (name, kind, role), prompt in chosen.items():
    found = encoder.encode(
      [{"text": models.SENTENCES[:3]}],
      task_metadata=describe(mteb, name, kind, "cosine_spearman"),
      hf_split="test",
      hf_subset="default",
      prompt_type=PromptType(role),
    )
    expected = encoder.encoder.encode(models.SENTENCES[:3], prompt_name=prompt)
    np.testing.assert_array_equal(found, expected)

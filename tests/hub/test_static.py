"""Static models, as sentence-transformers and model2vec have them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.hub import folder
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from tests.models import SENTENCES
from tests.models import tiny_model
from tests.models import write_sts
from tests.models import write_tiny_folder
from tests.recipes import from_files

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [*SENTENCES[:20], "", " ".join(SENTENCES[:200])]


def theirs(path):
  return sentence_transformers.SentenceTransformer(str(path), device="cpu")


@pytest.fixture(scope="module")
def static(tmp_path_factory):
  """Returns a folder that sentence-transformers wrote; its tokenizer knows [CLS]."""
  from sentence_transformers import models

  tokenizer = tiny_model().tokenizer.backend_tokenizer
  rng = np.random.default_rng(0)
  table = rng.normal(size=(tokenizer.get_vocab_size(), 24)).astype(np.float32)
  embedding = models.StaticEmbedding(tokenizer, embedding_weights=table)
  path = tmp_path_factory.mktemp("static") / "model"
  modules = [embedding, models.Normalize()]
  sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(
    str(path)
  )
  return path


def test_a_folder_gives_what_sentence_transformers_gives_also_when_we_wrote_it(
  static, tmp_path
):
  expected = theirs(static).encode(TEXTS, show_progress_bar=False)
  encoder = SentenceEncoder(static)
  np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
  folder.save(encoder.model, tmp_path / "ours")
  again = theirs(tmp_path / "ours").encode(TEXTS, show_progress_bar=False)
  np.testing.assert_allclose(again, expected, atol=1e-5)
  ours = SentenceEncoder(tmp_path / "ours").encode(TEXTS)
  np.testing.assert_array_equal(ours, encoder.encode(TEXTS))


def test_a_folder_of_model2vec_has_rows_for_several_tokens_and_their_weights(
  static, tmp_path
):
  rng = np.random.default_rng(1)
  rows = len(tiny_model().tokenizer)
  tensors = {
    "embeddings": rng.normal(size=(7, 8)).astype(np.float16),
    "mapping": rng.integers(7, size=rows),
    "weights": rng.random(rows),
  }
  save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "tokenizer.json").write_bytes((static / "tokenizer.json").read_bytes())
  module = {
    "idx": 0,
    "name": "0",
    "path": ".",
    "type": "sentence_transformers.models.StaticEmbedding",
  }
  (tmp_path / "modules.json").write_text(json.dumps([module]))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "model2vec"}))
  encoder = SentenceEncoder(tmp_path)
  texts = [text for text in TEXTS if text]
  expected = theirs(tmp_path).encode(texts, show_progress_bar=False)
  np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)


@pytest.mark.parametrize("teaches", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_static_model_is_taught_by_an_encoder_and_teaches_one(
  static, tmp_path, teaches
):
  write_tiny_folder(tmp_path / "model")
  (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:120]) + "\n")
  for name in ("STSB-dev", "X-test"):
    write_sts(tmp_path / "sts", name, 30)
  bert = str(tmp_path / "model")
  student, teachers = (bert, (str(static), bert)) if teaches else (str(static), (bert,))
  config = from_files(tmp_path, "distil", model=student, num_layers=0)
  config.rounds.student.teachers = teachers
  recipe_lib.run(config, str(tmp_path / "run"))
  encoder = SentenceEncoder(tmp_path / "run" / "export")
  before = SentenceEncoder(student).model.params["embeddings"]["word"]["embedding"]
  after = encoder.model.params["embeddings"]["word"]["embedding"]
  assert np.abs(after - before).max() > 1e-4
  expected = theirs(tmp_path / "run" / "export").encode(
    TEXTS[:-1], show_progress_bar=False
  )
  np.testing.assert_allclose(encoder.encode(TEXTS[:-1]), expected, atol=1e-5)


def test_what_a_static_model_cannot_have_is_refused(static, tmp_path):
  with pytest.raises(UserError, match="pooling='max'.*static.*leave it out"):
    SentenceEncoder(static, pooling="max")
  for name in ("modules.json", "tokenizer.json"):
    (tmp_path / name).write_bytes((static / name).read_bytes())
  with pytest.raises(UserError, match="has no model.safetensors"):
    SentenceEncoder(tmp_path)
  (tmp_path / "model.safetensors").write_bytes(b"no weights")
  with pytest.raises(UserError, match="holds no table of embeddings"):
    SentenceEncoder(tmp_path)

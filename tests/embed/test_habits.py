"""SentenceEncoder beside sentence-transformers: the same names, the same numbers."""

import json
import pathlib

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.encode import encode_file
from dcse_jax.eval import offline
from dcse_jax.eval.evaluator import Options
from dcse_jax.runtime.errors import UserError
from tests import models

SENTENCES = models.SENTENCES[:8]
PROMPTS = {"query": "the question: ", "passage": "a text: ", "other": "or else: "}


def write_folder(path, **card):
  models.write_tiny_folder(path)
  path = pathlib.Path(path) / "config_sentence_transformers.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | card))
  return str(path.parent)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  path = tmp_path_factory.mktemp("m") / "m"
  return write_folder(path, prompts=PROMPTS, default_prompt_name="other")


@pytest.fixture(scope="module")
def ours(place):
  return SentenceEncoder(place)


@pytest.fixture(scope="module")
def theirs(place):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  return sentence_transformers.SentenceTransformer(place, device="cpu")


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"prompt_name": "query"},
    {"prompt_name": "document"},
    {"prompt": "anything at all: "},
    {"prompt": ""},
    {"normalize_embeddings": True},
    {"truncate_dim": 5},
    {"truncate_dim": 5, "normalize_embeddings": True},
  ],
  ids=str,
)
def test_a_call_means_what_it_means_there(ours, theirs, options):
  found = ours.encode(SENTENCES, **options)
  expected = theirs.encode(SENTENCES, show_progress_bar=False, **options)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prompts_change_embeddings_and_an_unknown_one_is_refused(ours):
  plain = ours.encode(SENTENCES, prompt="")
  for name in PROMPTS:
    found = ours.encode(SENTENCES, prompt_name=name)
    written_out = ours.encode([PROMPTS[name] + s for s in SENTENCES], prompt="")
    np.testing.assert_allclose(found, written_out, atol=1e-6)
    assert np.abs(found - plain).max() > 0.01
  with pytest.raises(
    UserError, match="no prompt is named 'x': this model has .*passage"
  ):
    ours.encode(SENTENCES, prompt_name="x")


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_a_precision_rounds_as_it_does_there(ours, precision):
  quantization = pytest.importorskip("sentence_transformers.util.quantization")
  rows = ours.encode(models.SENTENCES[:150])
  found = ours.encode(models.SENTENCES[:150], precision=precision)
  expected = quantization.quantize_embeddings(rows, precision=precision)
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)


def test_a_precision_that_cannot_be_is_refused(ours):
  with pytest.raises(
    UserError, match="precision='int4': use one of float32, float16, int8"
  ):
    ours.encode(SENTENCES, precision="int4")
  with pytest.raises(UserError, match="more than one sentence"):
    ours.encode("A cat.", precision="int8")


def test_a_list_of_rows_is_the_array(ours):
  rows = ours.encode(SENTENCES, convert_to_numpy=False)
  assert isinstance(rows, list)
  np.testing.assert_array_equal(np.stack(rows), ours.encode(SENTENCES))


def test_what_a_model_is_has_the_same_names_and_values(ours, theirs):
  assert ours.get_sentence_embedding_dimension() == 16
  assert ours.max_seq_length == theirs.max_seq_length
  assert ours.similarity_fn_name == theirs.similarity_fn_name
  assert ours.default_prompt_name == theirs.default_prompt_name
  assert ours.tokenizer("a cat")["input_ids"] == theirs.tokenizer("a cat")["input_ids"]
  for name in PROMPTS:
    assert ours.prompts[name] == theirs.prompts[name]
  assert "bert, 2 x 16, pooling 'mean', 16 numbers, 32 tokens" in repr(ours)


def test_a_shorter_length_cuts_as_another_model_would(place):
  encoder = SentenceEncoder(place)
  encoder.max_seq_length = 5
  expected = SentenceEncoder(place, max_length=5).encode(SENTENCES)
  np.testing.assert_allclose(encoder.encode(SENTENCES), expected, atol=1e-6)
  for wrong in (0, 65, 2.5, None):
    with pytest.raises(UserError, match="max_seq_length=.*whole number up to 64"):
      encoder.max_seq_length = wrong


def test_a_saved_model_is_the_model_with_its_prompts(ours, tmp_path):
  ours.save(tmp_path / "m")
  again = SentenceEncoder(tmp_path / "m")
  assert again.prompts == ours.prompts
  np.testing.assert_array_equal(again.encode(SENTENCES), ours.encode(SENTENCES))
  assert (tmp_path / "m/README.md").exists()


@pytest.mark.parametrize("wrong", [None, 1, 2.0, float("nan"), b"x", ["a", "b"]])
def test_what_is_no_sentence_is_a_type_error_that_names_its_place(ours, wrong):
  with pytest.raises(TypeError, match=f"sentence 2 is a {type(wrong).__name__}"):
    ours.encode(["a", "b", wrong, "c"])


@pytest.mark.parametrize("wrong", [None, 3.5, {"a": "b"}])
def test_what_holds_no_sentences_is_a_type_error(ours, wrong):
  with pytest.raises(TypeError, match=f"sentences are a {type(wrong).__name__}"):
    ours.encode(wrong)


def test_search_asks_with_the_prompt_for_queries_among_documents(place):
  encoder = SentenceEncoder(place)
  encoder.build_index(SENTENCES)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  documents = unit(encoder.encode(SENTENCES, prompt_name="passage"))
  for options in ({}, {"prompt_name": "other"}, {"prompt": ""}):
    query = unit(encoder.encode("Who sleeps?", **{"prompt_name": "query", **options}))
    found = encoder.search("Who sleeps?", top_k=8, **options)
    assert len(found) == 8  # Without a threshold nothing is left out.
    cosines = dict(zip(SENTENCES, documents @ query))
    for sentence, cosine in found:
      assert cosine == pytest.approx(cosines[sentence], abs=1e-5)


def test_evaluation_and_a_file_take_a_prompt_by_name(place, tmp_path):
  models.write_sts(tmp_path, "X-test")
  score = lambda **loading: offline.evaluate(
    [place], {"sts": [str(tmp_path / "X-test.tsv")]}, Options(), loading=loading
  )["models"][place]["sts"]["mean"]["X-test"]
  assert (
    score() == score(default_prompt_name="other") != score(default_prompt_name="query")
  )
  with pytest.raises(UserError, match="no prompt is named 'x'"):
    score(default_prompt_name="x")
  (tmp_path / "a.txt").write_text("\n".join(SENTENCES) + "\n")
  encoder = SentenceEncoder(place)
  encode_file(encoder, tmp_path / "a.txt", tmp_path / "a.npy", prompt_name="passage")
  expected = encoder.encode(SENTENCES, prompt_name="passage")
  np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=1e-5)

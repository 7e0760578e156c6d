"""Word vectors by counting, and the model of their means."""

import subprocess
import sys

import numpy as np
import pytest

from dcse_jax.counting import spelling
from dcse_jax.counting import static
from dcse_jax.counting import vectors
from dcse_jax.counting import words
from dcse_jax.data import synthetic
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.hub import folder
from dcse_jax.runtime.errors import UserError
from tests import processes

SENTENCES = synthetic.sentences(600, seed=0)


def test_words_are_lower_case_letters_and_digits_or_single_signs():
  text = "Ärger, it's 3.5_x; 日本語"
  expected = ["ärger", ",", "it", "'", "s", "3", ".", "5", "_", "x", ";", "日本語"]
  tokenizer = words.train_tokenizer([text], min_count=1, most=100)
  (chunk,) = words.encode(tokenizer, [text, "it unseen"])
  assert [tokenizer.id_to_token(i) for i in chunk[0]] == expected
  assert chunk[1].tolist() == [tokenizer.token_to_id("it"), 0]


def test_rare_words_are_left_out_and_the_most_frequent_kept():
  tokenizer = words.train_tokenizer(["a a a b b c"], min_count=2, most=9)
  assert set(tokenizer.get_vocab()) == {words.UNKNOWN, "a", "b"}
  assert set(words.train_tokenizer(["a a b"], min_count=1, most=1).get_vocab()) == {
    words.UNKNOWN,
    "a",
  }


@pytest.mark.parametrize("pairs", [2, 10**6])
def test_pairs_weigh_one_over_their_distance_within_a_sentence(monkeypatch, pairs):
  monkeypatch.setattr(vectors, "_PAIRS", pairs)  # Counted in parts or all at once.
  sentences = [np.asarray([1, 2, 0, 1]), np.asarray([2, 2])]
  counts = vectors.count_pairs(sentences, 3, window=3).toarray()
  # 1-2 at distance 1, 2-1 at distance 2, 1-1 at distance 3, twice over since both are
  # the other's; 0 is nothing, and sentences are apart.
  expected = [[0, 0, 0], [0, 2 / 3, 1.5], [0, 1.5, 2]]
  np.testing.assert_allclose(counts, expected, rtol=1e-6)
  near = vectors.count_pairs(sentences, 3, window=1).toarray()
  np.testing.assert_allclose(near, [[0, 0, 0], [0, 0, 1], [0, 1, 2]])


def test_information_is_the_logarithm_of_a_ratio_and_positive():
  counts = vectors.count_pairs([np.asarray([1, 2, 1, 2, 3])], 4, window=1)
  # 1-2 stand beside each other three times, 2-3 once.
  np.testing.assert_allclose(counts.sum(axis=1).ravel(), [[0, 3, 4, 1]])
  found = vectors.positive_information(counts, context_power=1.0).toarray()
  # p(1, 2) = 3/8, p(1) = 3/8, p(2) = 4/8; p(2, 3) = 1/8, p(3) = 1/8.
  assert found[1, 2] == pytest.approx(np.log((3 / 8) / (3 / 8 * 4 / 8)))
  assert found[2, 3] == pytest.approx(np.log((1 / 8) / (4 / 8 * 1 / 8)))
  assert found[1, 1] == 0 and (found >= 0).all()
  flat = vectors.positive_information(counts, context_power=0.0).toarray()
  # Every context counts alike then, also a word that is none: p(2 | 1) = 1.
  assert flat[1, 2] == pytest.approx(np.log(1 / (1 / 4)))


def test_reduced_vectors_keep_the_cosines_of_singular_vectors():
  rng = np.random.default_rng(0)
  dense = rng.random((12, 12)) * (rng.random((12, 12)) < 0.7)
  information = vectors.sp.csr_matrix(dense, dtype=np.float32)
  expected = np.linalg.svd(dense)[0][:, :4]
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  found = vectors.reduce(information, 4)
  np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_words_are_alike_in_spelling_as_they_share_rare_pieces():
  vectors_of = spelling.spell(["ab", "abc", "xyz"], 4096)
  # The pieces of <ab> are <ab, ab> and <ab>; those of <abc> are <ab, abc, bc>, <abc, abc>
  # and <abc>; one piece is both words', so it weighs log(1 + 3/2), each other log(1 + 3).
  shared, own = np.log(1 + 3 / 2) ** 2, np.log(1 + 3) ** 2
  expected = shared / np.sqrt((shared + 2 * own) * (shared + 5 * own))
  cosines = vectors_of @ vectors_of.T
  # Signs are drawn, so cosines are off by about 1 / sqrt(4096).
  np.testing.assert_allclose(cosines[0], [1, expected, 0], atol=4 / 64)
  np.testing.assert_array_equal(vectors_of, spelling.spell(["ab", "abc", "xyz"], 4096))


def test_either_part_of_a_word_may_be_left_out(model):
  near = static.count_words(SENTENCES, size=16, spelling_size=0, min_count=2)
  spelled = static.count_words(SENTENCES, size=0, spelling_size=8, min_count=2)
  whole = np.hstack([table_of(near), table_of(spelled)])
  np.testing.assert_allclose(table_of(model), whole, atol=1e-6)


def table_of(model):
  return model.params["embeddings"]["word"]["embedding"]


@pytest.fixture(scope="module")
def model():
  return static.count_words(SENTENCES, size=16, spelling_size=8, min_count=2)


def test_frequent_words_weigh_less(model):
  lengths = np.linalg.norm(table_of(model), axis=1)
  counts = np.zeros(len(lengths))
  for chunk in words.encode(model.tokenizer.backend_tokenizer, SENTENCES):
    for each in chunk:
      np.add.at(counts, each, 1)
  share = counts / counts.sum()
  has_contexts = np.linalg.norm(table_of(model)[1:, :16], axis=1) > 0
  # Squares of both parts: 1 and 4.
  expected = 5**0.5 * 2e-4 / (2e-4 + share)
  np.testing.assert_allclose(
    lengths[1:][has_contexts], expected[1:][has_contexts], rtol=1e-5
  )
  assert lengths[0] == 0 and has_contexts.mean() > 0.9


def test_the_embedding_of_a_sentence_is_the_mean_of_its_words_at_unit_length(
  model, tmp_path
):
  folder.save(model, tmp_path / "words")
  encoder = SentenceEncoder(tmp_path / "words")
  known = [model.tokenizer.convert_ids_to_tokens(i) for i in (3, 5)]
  mean = table_of(model)[[3, 5]].mean(axis=0)
  found = encoder.encode([" ".join(known), "Wholly unseen", ""])
  np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
  # Without any known word there is nothing to go by.
  np.testing.assert_array_equal(found[1:], 0)


def test_too_few_words_are_refused():
  with pytest.raises(ValueError, match="2 words seen 1 times or more"):
    static.count_words(["a b"], size=4, min_count=1)


def run(*arguments):
  command = [sys.executable, "-m", "dcse_jax.words", *arguments]
  return subprocess.run(
    command, cwd=processes.ROOT, capture_output=True, text=True, timeout=300
  )


def test_the_command_writes_a_folder_and_the_same_one_again(tmp_path):
  text = tmp_path / "t.txt"
  text.write_text("\n".join(SENTENCES[:300]) + "\n")
  output = tmp_path / "words"
  flags = (f"--text={text}", f"--output={output}", "--min_count=2")
  flags += ("--size=16", "--spelling_size=8")
  found = run(*flags)
  assert found.returncode == 0, found.stderr
  assert SentenceEncoder(str(output)).encode(SENTENCES[:2]).shape == (2, 24)
  # Once more, into the same folder: the same bytes.
  before = (output / "model.safetensors").read_bytes()
  assert run(*flags).returncode == 0
  assert (output / "model.safetensors").read_bytes() == before
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "mine.txt").write_text("mine")
  refused = run(*flags[:1], f"--output={tmp_path / 'other'}")
  assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1


def test_a_text_that_is_too_small_is_refused_in_one_line(tmp_path):
  text = tmp_path / "t.txt"
  text.write_text("a b c\n")
  refused = run(f"--text={text}", f"--output={tmp_path / 'words'}", "--min_count=1")
  assert refused.returncode == 2
  assert "3 words seen 1 times or more, too few" in refused.stderr
  nothing = run(f"--text={text}", "--output=o", "--size=0", "--spelling_size=0")
  assert nothing.returncode == 2 and "leave nothing" in nothing.stderr


def test_a_missing_library_is_told_before_anything_is_counted(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn.utils.extmath", None)
  monkeypatch.delattr(vectors, "count_pairs")
  with pytest.raises(UserError, match=r"needs scikit-learn: pip install .*\[words\]"):
    static.count_words(SENTENCES)


def test_the_principal_components_of_directions_keep_cosines():
  # All vectors lie in a plane, whatever their lengths, and a plane is kept.
  rng = np.random.default_rng(0)
  plane = np.linalg.qr(rng.normal(size=(5, 2)))[0].T
  table = (rng.normal(size=(9, 2)) * rng.uniform(1, 9, size=(9, 1))) @ plane
  kept = vectors.principal(table, 2)
  np.testing.assert_allclose(kept @ kept.T, table @ table.T, rtol=1e-4, atol=1e-4)
  # The first number is the larger component of the directions, not of the vectors.
  directions = kept / np.linalg.norm(kept, axis=1, keepdims=True)
  first, second = np.square(directions).sum(axis=0)
  assert first >= second


def test_words_may_have_fewer_numbers_than_both_parts():
  model = static.count_words(SENTENCES, size=16, spelling_size=16, width=8)
  assert model.embedding_size == 8

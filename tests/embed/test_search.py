"""Encoding of streams and files, and search."""

import gzip
import importlib.util
import os

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax import encode
from dcse_jax.data.lines import Lines
from dcse_jax.embed import row_file
from dcse_jax.embed.neighbours import ExactIndex
from dcse_jax.embed.neighbours import FaissIndex
from dcse_jax.model import inference
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  return SentenceEncoder(models.write_tiny_folder(tmp_path_factory.mktemp("m") / "m"))


def cosines(first, second):
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  return unit(first) @ unit(second).T


def test_encode_takes_a_list_an_iterator_and_one_string(encoder):
  rows = encoder.encode(models.SENTENCES[:5])
  assert rows.shape == (5, 16) and rows.dtype == np.float32
  np.testing.assert_array_equal(encoder.encode(iter(models.SENTENCES[:5])), rows)
  np.testing.assert_allclose(encoder.encode(models.SENTENCES[3]), rows[3], atol=1e-6)


def test_a_stream_is_encoded_in_parts_as_it_would_be_whole(encoder, monkeypatch):
  whole = encoder.encode(models.SENTENCES[:50])
  monkeypatch.setattr(inference, "CHUNK", 16)
  parts = list(encoder.encode_stream(iter(models.SENTENCES[:50])))
  assert [len(part) for part in parts] == [16, 16, 16, 2]
  np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_normalize_makes_unit_length_without_turning_anything(encoder):
  plain = encoder.encode(models.SENTENCES[:5])
  unit = encoder.encode(models.SENTENCES[:5], normalize_embeddings=True)
  np.testing.assert_allclose(np.linalg.norm(unit, axis=1), np.ones(5), atol=1e-6)
  np.testing.assert_allclose(np.diag(cosines(plain, unit)), np.ones(5), atol=1e-6)


def test_similarity_is_the_cosine_of_sentences_or_embeddings(encoder):
  first, second = models.SENTENCES[:3], models.SENTENCES[3:5]
  expected = cosines(encoder.encode(first), encoder.encode(second))
  np.testing.assert_allclose(encoder.similarity(first, second), expected, atol=1e-5)
  np.testing.assert_allclose(
    encoder.similarity(encoder.encode(first), second), expected, atol=1e-5
  )
  np.testing.assert_allclose(
    encoder.similarity(first[0], second), expected[0], atol=1e-5
  )
  one = encoder.similarity(first[0], second[1])
  assert isinstance(one, float) and abs(one - expected[0, 1]) < 1e-5


def test_search_finds_the_most_similar_above_the_threshold_in_order(encoder):
  corpus, queries = models.SENTENCES[:40], models.SENTENCES[40:42]
  encoder.build_index(corpus)
  expected = cosines(encoder.encode(queries), encoder.encode(corpus))
  for row, found in zip(expected, encoder.search(queries, top_k=7, threshold=-1.0)):
    order = np.argsort(-row, kind="stable")[:7]
    assert [sentence for sentence, _ in found] == [corpus[i] for i in order]
    np.testing.assert_allclose([c for _, c in found], row[order], atol=1e-5)
  threshold = float(np.sort(expected[0])[-3:-1].mean())  # Two are above.
  found = encoder.search(queries[0], top_k=7, threshold=threshold)
  assert len(found) == 2 and found[0][1] >= found[1][1] >= threshold
  itself = encoder.search(corpus[4], top_k=1)
  assert itself[0][0] == corpus[4] and itself[0][1] == pytest.approx(1.0, abs=1e-5)


def test_search_needs_an_index_of_this_model(tmp_path):
  encoder = SentenceEncoder(models.write_tiny_folder(tmp_path / "m"))
  with pytest.raises(UserError, match="call build_index or load_index first"):
    encoder.search("A cat.")
  for shape, error in (
    ((3, 16), "2 sentences and 3 embeddings"),
    ((2, 8), r"have 16 numbers, and float32 of shape \(2, 8\)"),
  ):
    with pytest.raises(UserError, match=error):
      encoder.build_index(["a", "b"], embeddings=np.ones(shape, np.float32))


@pytest.mark.parametrize("block", [3, 7, 100])
def test_exact_search_in_blocks_is_a_sort_of_all_cosines(block, monkeypatch):
  monkeypatch.setattr("dcse_jax.embed.neighbours._BLOCK", block)
  rng = np.random.default_rng(0)
  rows, queries = rng.standard_normal((20, 4)), rng.standard_normal((3, 4))
  rows[9] = rows[2]  # Among equal cosines the lower row is first.
  expected = np.argsort(-cosines(queries, rows).round(9), axis=1, kind="stable")
  index = ExactIndex(rows.astype(np.float32))
  for top_k in (1, 5, 20):
    found, numbers = index.search(queries, top_k)
    np.testing.assert_array_equal(numbers, expected[:, :top_k])
    values = np.take_along_axis(cosines(queries, rows), numbers, axis=1)
    np.testing.assert_allclose(found, values, atol=1e-6)
  assert index.search(queries, 50)[0].shape == (3, 20)


def test_an_index_too_large_for_the_device_is_read_from_its_file(tmp_path, monkeypatch):
  rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
  np.save(tmp_path / "rows.npy", rows)
  queries = rows[:5]
  expected = ExactIndex(rows).search(queries, 3)
  monkeypatch.setattr("dcse_jax.embed.neighbours._RESIDENT_BYTES", 10)
  monkeypatch.setattr("dcse_jax.embed.neighbours._BLOCK", 8)
  found = ExactIndex(np.load(tmp_path / "rows.npy", mmap_mode="r")).search(queries, 3)
  np.testing.assert_array_equal(found[1], expected[1])
  np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


def test_faiss_finds_what_exact_search_finds_among_few():
  pytest.importorskip("faiss")
  rows = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
  exact, theirs = ExactIndex(rows), FaissIndex(rows)
  for mine, other in zip(exact.search(rows[:9], 4), theirs.search(rows[:9], 4)):
    np.testing.assert_allclose(mine, other, atol=1e-5)


INDEXES = [
  ExactIndex,
  pytest.param(
    FaissIndex,
    marks=pytest.mark.skipif(
      not importlib.util.find_spec("faiss"), reason="needs faiss-cpu"
    ),
  ),
]


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("scale, dtype", [(1e25, "f4"), (1e-25, "f4"), (1e200, "f8")])
def test_embeddings_of_any_length_give_the_same_answers(index, scale, dtype):
  rng = np.random.default_rng(0)
  rows, queries = rng.standard_normal((50, 8)), rng.standard_normal((3, 8))
  cosines, numbers = index(rows.astype(np.float32)).search(queries, 5)
  found = index((scale * rows).astype(dtype)).search(scale * queries, 5)
  np.testing.assert_array_equal(found[1], numbers)
  np.testing.assert_allclose(found[0], cosines, atol=1e-6)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_unit_length_holds_at_both_ends_of_a_type_and_zeros_stay(dtype):
  ends = np.finfo(dtype)
  rows = np.asarray(
    [[3, 4], [3 * ends.tiny, 4 * ends.tiny], [ends.max, -ends.max], [0, 0]], dtype
  )
  expected = [[0.6, 0.8], [0.6, 0.8], [0.5**0.5, -(0.5**0.5)], [0, 0]]
  np.testing.assert_allclose(unit_length(rows), expected, rtol=1e-6)


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_rows_that_are_not_finite_are_counted_and_hide_none_in_arrays_and_files(
  index, dtype, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr("dcse_jax.embed.neighbours._BLOCK", 3)
  rng = np.random.default_rng(0)
  rows, queries = (
    rng.standard_normal((12, 4)).astype(dtype),
    rng.standard_normal((2, 4)),
  )
  intact = np.delete(np.arange(12), [3, 4, 8])
  cosines, numbers = index(rows[intact]).search(queries, 12)
  rows[3] = np.nan
  rows[4, 1], rows[8, 0] = np.inf, -np.inf
  np.save(tmp_path / "rows.npy", rows)
  assert not caplog.messages
  for embeddings in (rows, row_file.read(str(tmp_path / "rows.npy"))):
    found = index(embeddings).search(queries, 12)
    np.testing.assert_array_equal(found[1], intact[numbers])
    np.testing.assert_allclose(found[0], cosines, atol=1e-6)
    (message,) = caplog.messages
    assert message.startswith("3 of 12 embeddings") and "row 3 (from 0)" in message
    caplog.clear()


def test_a_query_that_is_not_finite_is_refused():
  queries = np.asarray([[1.0, 0.0], [0.0, np.nan]])
  with pytest.raises(UserError, match="query 1 .* NaN or infinity"):
    ExactIndex(np.eye(2, dtype=np.float32)).search(queries, 2)


def test_copies_of_a_row_do_not_hide_others_from_faiss_and_are_all_found():
  pytest.importorskip("faiss")
  rng = np.random.default_rng(0)
  rows = rng.standard_normal((500, 32)).astype(np.float32)
  copies = np.repeat(rng.standard_normal((1, 32)).astype(np.float32), 700, axis=0)
  corpus = rng.permutation(np.concatenate([copies, rows]))
  exact, theirs = ExactIndex(corpus), FaissIndex(corpus)
  queries = rows[:100] + 0.1 * rng.standard_normal((100, 32)).astype(np.float32)
  wanted, found = (index.search(queries, 5)[1] for index in (exact, theirs))
  recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(wanted, found)])
  assert recall > 0.99
  cosines, numbers = theirs.search(copies[:1], 1000)
  where = np.flatnonzero((corpus == copies[0]).all(axis=1))
  np.testing.assert_array_equal(numbers[0, :700], where)
  np.testing.assert_allclose(cosines[0, :700], 1.0, atol=1e-6)


def test_search_leaves_nothing_out_by_default_and_refuses_what_is_no_threshold(encoder):
  corpus = models.SENTENCES[:6]
  encoder.build_index(corpus)
  found = encoder.search(models.SENTENCES[9], top_k=6)
  assert {sentence for sentence, _ in found} == set(corpus)
  for threshold in (np.nan, np.inf, -1.1, 1.1):
    with pytest.raises(UserError, match="must be a cosine"):
      encoder.search("A cat.", threshold=threshold)
  with pytest.raises(UserError, match="top_k=0"):
    encoder.search("A cat.", top_k=0)


def test_the_command_refuses_a_threshold_that_is_no_cosine():
  result = processes.run("dcse_jax.search", "--threshold=nan")
  assert result.returncode == 2, result.stderr
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and "must be a cosine" in line


def test_lines_are_numbered_as_in_the_file_plain_or_gzipped(tmp_path):
  content = "\ufeffone\r\n\ntwo words\nlast é".encode()
  (tmp_path / "a.txt").write_bytes(content)
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
  for name in ("a.txt", "a.txt.gz"):
    lines = Lines(str(tmp_path / name))
    assert list(lines) == ["one", "", "two words", "last é"]
    assert [lines[i] for i in range(len(lines))] == list(lines)
    assert list(lines.iterate(2)) == ["two words", "last é"]
  (tmp_path / "b.txt").write_bytes(b"fine\nnot \xff\n")
  with pytest.raises(UserError, match="b.txt line 2: not valid UTF-8"):
    list(Lines(str(tmp_path / "b.txt")))


def write_lines(path, count=50):
  lines = [*models.SENTENCES[: count - 1], ""]
  path.write_text("\n".join(lines) + "\n")
  return lines


def test_row_i_of_an_encoded_file_is_line_i(encoder, tmp_path):
  lines = write_lines(tmp_path / "a.txt")
  encode.encode_file(encoder, str(tmp_path / "a.txt"), str(tmp_path / "o" / "a.npy"))
  rows = np.load(tmp_path / "o" / "a.npy")
  np.testing.assert_allclose(rows, encoder.encode(lines), atol=1e-6)
  assert [path.name for path in (tmp_path / "o").iterdir()] == ["a.npy"]


class Interrupted(Exception):
  pass


def flip(path, place):
  content = bytearray(path.read_bytes())
  content[place] ^= 1
  path.write_bytes(content)


PARTIAL_DAMAGE = {
  "header": lambda path: flip(path, 60),
  "row": lambda path: flip(path, 128 + 4 * 16 * 20),  # One of the rows that are done.
  "cut off": lambda path: os.truncate(path, 128 + 4 * 16 * 40),
  "deleted": lambda path: path.unlink(),
  "progress": lambda path: flip(path.with_name(f"{path.name}.json"), -6),
  "progress lost": lambda path: path.with_name(f"{path.name}.json").unlink(),
}


@pytest.mark.parametrize("change", ["nothing", "text", "normalize", *PARTIAL_DAMAGE])
def test_an_interrupted_encoding_goes_on_only_with_the_same_command_and_whole_files(
  encoder, tmp_path, monkeypatch, change
):
  lines = write_lines(tmp_path / "a.txt")
  monkeypatch.setattr(inference, "CHUNK", 16)
  stream = encoder.encode_stream
  encoded = []

  def count(sentences, *, stop_after=None, **kwargs):
    for i, part in enumerate(stream(sentences, **kwargs)):
      if i == stop_after:
        raise Interrupted
      encoded.append(len(part))
      yield part

  monkeypatch.setattr(
    encoder, "encode_stream", lambda s, **k: count(s, stop_after=2, **k)
  )
  arguments = (encoder, str(tmp_path / "a.txt"), str(tmp_path / "a.npy"))
  with pytest.raises(Interrupted):
    encode.encode_file(*arguments)
  assert encoded == [16, 16] and not (tmp_path / "a.npy").exists()
  monkeypatch.setattr(encoder, "encode_stream", count)
  if change == "text":
    lines[0] = "Another."
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
  if change in PARTIAL_DAMAGE:
    PARTIAL_DAMAGE[change](tmp_path / ".a.npy.part")
  normalize = change == "normalize"
  encode.encode_file(*arguments, normalize=normalize)
  again = [16, 2] if change == "nothing" else [16, 16, 16, 2]
  assert encoded[2:] == again
  np.testing.assert_allclose(
    np.load(tmp_path / "a.npy"),
    encoder.encode(lines, normalize_embeddings=normalize),
    atol=1e-6,
  )
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.txt"]


def test_the_commands_encode_a_file_and_answer_queries_over_it(tmp_path):
  model = models.write_tiny_folder(tmp_path / "m")
  lines = write_lines(tmp_path / "a.txt")
  files = ["--model", model, "--input", str(tmp_path / "a.txt")]
  # This process imports everything by itself, as a user's does.
  done = processes.run(
    "dcse_jax.encode", *files, "--output", str(tmp_path / "a.npy"), fresh=True
  )
  assert done.returncode == 0, done.stderr
  asked = processes.run(
    *("dcse_jax.search", "--model", model, "--embeddings", str(tmp_path / "a.npy")),
    *("--sentences", str(tmp_path / "a.txt"), "--top_k", "1"),
    stdin=f"{lines[7]}\n",
  )
  assert asked.stdout == f"{lines[7]}\n  1.0000\t{lines[7]}\n", asked.stderr


def test_search_refuses_what_is_no_file_of_embeddings_and_encode_writes_none(
  encoder, tmp_path
):
  with pytest.raises(UserError, match="name it NAME.npy"):
    encode.encode_file(encoder, "a.txt", str(tmp_path / "b.txt"))
  (tmp_path / "a.npy").write_text("no")
  np.save(tmp_path / "b.npy", np.arange(3))
  for name, message in (("a", "cannot read"), ("b", "not rows of embeddings")):
    with pytest.raises(UserError, match=message):
      row_file.read(str(tmp_path / f"{name}.npy"))

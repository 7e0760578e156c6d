"""Indexes in folders: what they hold, what they find, and what they refuse."""

import importlib.util
import json
import os
import types

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.data import synthetic
from dcse_jax.data.lines import Lines
from dcse_jax.embed import index_build
from dcse_jax.embed import index_writer
from dcse_jax.embed import inverted_lists
from dcse_jax.embed import row_file
from dcse_jax.embed.neighbours import make_index
from dcse_jax.embed.precision import quantize
from dcse_jax.embed.recall import recalls
from dcse_jax.model import inference
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes

TEXT = models.SENTENCES
OTHERS = synthetic.sentences(40, seed=5)
needs_faiss = pytest.mark.skipif(
  not importlib.util.find_spec("faiss"), reason="needs faiss-cpu"
)
KINDS = ["exact", pytest.param("lists", marks=needs_faiss)]
# What holds for both kinds is tried on one.
ONE_KIND = KINDS[bool(importlib.util.find_spec("faiss"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a model, a text, and the embeddings of the one by the other."""
  path = tmp_path_factory.mktemp("index")
  models.write_tiny_folder(path / "model", num_layers=1)
  (path / "my.txt").write_text("".join(f"{line}\n" for line in TEXT))
  np.save(path / "my.npy", SentenceEncoder(str(path / "model")).encode(TEXT))
  return path


@pytest.fixture(scope="module")
def encoder(place):
  return SentenceEncoder(str(place / "model"))


@pytest.fixture
def kind(request, monkeypatch):
  """Makes an index of so few sentences one of lists, in several parts."""
  if request.param == "lists":
    monkeypatch.setattr(index_writer, "_EXACT_ROWS", 10)
    monkeypatch.setattr(inverted_lists, "_PART_ROWS", 100)
    monkeypatch.setattr("dcse_jax.embed.embedded.BLOCK", 64)
  return request.param


def build(place, output, encoder, **kwargs):
  kwargs = {
    "lines": Lines(str(place / "my.txt")),
    "embeddings": str(place / "my.npy"),
    **kwargs,
  }
  return index_build.build(output, encoder, **kwargs)


def unit_rows(place):
  return unit_length(np.load(place / "my.npy"))


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_an_index_that_looks_everywhere_gives_the_order_of_its_eight_bits(
  place, encoder, tmp_path, kind
):
  about, was_there = build(place, tmp_path / "i", encoder)
  assert not was_there and about["rows"] == len(TEXT)
  assert about["recall@10"] > 0.5 and about["queries"] == 15
  rows, ranges = (np.load(tmp_path / "i" / f"{n}.npy") for n in ("rows", "ranges"))
  np.testing.assert_array_equal(rows, quantize(unit_rows(place), "int8", ranges))
  if kind == "lists":  # Some are looked at for the ten nearest; all for everything.
    assert 1 <= about["probes"] <= about["lists"] // 4
    change(tmp_path / "i/index.json", probes=about["lists"])
  sentences = encoder.load_index(str(tmp_path / "i"))
  assert list(sentences) == TEXT
  queries = OTHERS[:3]
  expected = make_index(rows, 16, ranges=ranges).search(encoder.encode(queries), 300)
  for found, cosines, numbers in zip(encoder.search(queries, top_k=30), *expected):
    own = {TEXT[i]: cosine for i, cosine in zip(numbers, cosines)}
    for i, (sentence, cosine) in enumerate(found):
      assert cosine == pytest.approx(own[sentence], abs=1e-5)
      assert cosine == pytest.approx(cosines[i], abs=1e-5)
    assert len({sentence for sentence, _ in found}) == 30
  assert sorted(p.name for p in tmp_path.iterdir()) == ["i"]


def change(path, **fields):
  """Changes fields of a JSON file."""
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@needs_faiss
@pytest.mark.parametrize("kind", ["lists"], indirect=True)
def test_more_recall_is_more_lists(place, encoder, tmp_path, kind):
  queries = tmp_path / "q.txt"
  queries.write_text("\n".join(OTHERS))
  found = []
  for recall in (0.3, 1.0):
    about, _ = build(
      place, tmp_path / str(recall), encoder, recall=recall, queries=Lines(str(queries))
    )
    assert about["queries"] == 20
    found.append((about["probes"], about["recall@10"]))
  assert found[0][0] < found[1][0] and 0.3 <= found[0][1] < found[1][1]


def test_recall_is_the_share_of_the_ten_nearest_and_copies_of_the_tenth_count():
  angles = np.asarray([*np.linspace(0, 0.9, 10), 0.9, 2.0, 2.1])
  rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
  query = np.asarray([[2.0, 0.0]])
  answer = lambda found: lambda queries, k: (np.ones((1, k)), np.asarray([found[:k]]))
  searches = [
    answer([*range(10)]),
    answer([*range(9), 10]),  # Another row at the tenth's angle.
    answer([*range(8), 11, 12]),
    lambda queries, k: (np.full((1, k), -np.inf), np.zeros((1, k), int)),
  ]
  blocks = lambda: iter((rows[:5], rows[5:]))
  np.testing.assert_allclose(
    recalls(searches, query, None, blocks())[:, 0], [1, 1, 0.8, 0]
  )
  # Where the query is row 0, the ten nearest are 1 to 10, and it does not count.
  own = [answer([*range(11)]), answer([*range(1, 10), 0, 12]), answer([0] * 11)]
  np.testing.assert_allclose(
    recalls(own, rows[:1], np.asarray([0]), blocks())[:, 0], [1, 0.9, 0]
  )


class Interrupted(Exception):
  pass


@pytest.mark.parametrize("kind", [ONE_KIND], indirect=True)
def test_an_interrupted_build_goes_on_with_its_embeddings_to_the_same_index(
  place, encoder, tmp_path, kind, monkeypatch
):
  monkeypatch.setattr(inference, "CHUNK", 128)
  stream, encoded = encoder.encode_stream, []

  def counted(sentences, *, stop_at=None, **kwargs):
    for i, part in enumerate(stream(sentences, **kwargs)):
      if i == stop_at:
        raise Interrupted
      encoded.append(len(part))
      yield part

  def attempt(**kwargs):
    monkeypatch.setattr(
      encoder, "encode_stream", lambda s, **k: counted(s, **{**k, **kwargs})
    )
    return build(place, tmp_path / "i", encoder, embeddings=None)

  with pytest.raises(Interrupted):
    attempt(stop_at=1)
  with monkeypatch.context() as patched:
    patched.setattr(
      index_writer, "recalls", lambda *args: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(UserError, match="cannot write"):
      attempt()
  assert not (tmp_path / "i").exists() and encoded == [128, 128, 44]
  about, _ = attempt()
  assert encoded == [128, 128, 44]
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["i"]
  again, was_there = attempt()
  assert was_there and again == about
  # Embeddings that were made before give the same, but for their rounding.
  other, _ = build(place, tmp_path / "j", encoder)
  assert other["files"] == about["files"]
  rows = [np.load(tmp_path / name / "rows.npy").astype(int) for name in "ij"]
  assert np.abs(rows[0] - rows[1]).max() <= 1


@pytest.mark.parametrize("kind", [ONE_KIND], indirect=True)
def test_rows_that_are_not_finite_are_left_out_with_their_sentences(
  place, encoder, tmp_path, kind, caplog
):
  rows = np.load(place / "my.npy")
  rows[3], rows[250, 1] = np.nan, np.inf
  np.save(tmp_path / "a.npy", rows)
  about, _ = build(place, tmp_path / "i", encoder, embeddings=str(tmp_path / "a.npy"))
  assert about["rows"] == 298 and "2 of 300 embeddings hold NaN" in caplog.text
  sentences = encoder.load_index(str(tmp_path / "i"))
  assert list(sentences) == [s for i, s in enumerate(TEXT) if i not in (3, 250)]
  (found,) = encoder.search([TEXT[200]], top_k=1)
  assert found[0][0] == TEXT[200]


def write_parts(folder, place, dtype="float32", **columns):
  """Writes embeddings as three Parquet parts, with more columns."""
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  folder.mkdir()
  rows = np.load(place / "my.npy").astype(dtype)
  for i, start in enumerate((0, 100, 220)):
    part = slice(start, (100, 220, 300)[i])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows[part].ravel()), 16)
    table = {name: pa.array(values[part]) for name, values in columns.items()}
    pq.write_table(
      pa.table({**table, "embedding": vectors}), folder / f"part-{i}.parquet"
    )
  (folder / "manifest.json").write_text('{"rows": 300}')
  return str(folder)


def test_parts_give_the_index_of_the_file_with_text_of_their_own_or_a_files(
  place, encoder, tmp_path
):
  names = [f"x{i}" for i in range(300)]
  parts = write_parts(tmp_path / "parts", place, id=names, sentence=TEXT)
  numbered = write_parts(tmp_path / "numbered", place, "float16", id=list(range(300)))
  build(place, tmp_path / "i", encoder)
  for name, kwargs, same in (
    ("j", {"embeddings": parts, "lines": None}, ["rows.npy", "ranges.npy"]),
    ("k", {"embeddings": numbered}, []),
  ):
    about, _ = build(place, tmp_path / name, encoder, **kwargs)
    for file in ("text.utf8", "text.ends", *same):
      one, other = (tmp_path / each / file for each in ("i", name))
      assert one.read_bytes() == other.read_bytes()
    # The digest is that of the text as a file.
    assert about["text"] == Lines(str(place / "my.txt")).digest
    rows = [np.load(tmp_path / each / "rows.npy").astype(int) for each in ("i", name)]
    assert np.abs(rows[0] - rows[1]).max() <= 1


def test_eight_bits_are_indexed_by_the_floats_that_they_stand_for(
  place, encoder, tmp_path
):
  rows = np.load(place / "my.npy")
  ranges = np.stack([rows.min(axis=0), rows.max(axis=0)])
  np.save(tmp_path / "a.npy", quantize(rows, "int8", ranges))
  np.save(tmp_path / "a.ranges.npy", ranges)
  build(place, tmp_path / "i", encoder, embeddings=str(tmp_path / "a.npy"))
  build(place, tmp_path / "j", encoder)
  ranges = [np.load(tmp_path / name / "ranges.npy") for name in "ij"]
  # A number moves by half a step of its range at most, here by less than 0.01.
  np.testing.assert_allclose(*ranges, atol=0.01)
  encoder.load_index(str(tmp_path / "i"))
  assert encoder.search(TEXT[200], top_k=1)[0][0] == TEXT[200]


def test_what_does_not_belong_together_is_refused_in_one_line(
  place, encoder, tmp_path, monkeypatch
):
  pytest.importorskip("pyarrow")
  rows = np.load(place / "my.npy")
  np.save(tmp_path / "reversed.npy", rows[::-1])
  np.save(tmp_path / "short.npy", rows[:-1])
  np.save(tmp_path / "signs.npy", quantize(rows, "ubinary"))
  other = SentenceEncoder(
    models.write_tiny_folder(tmp_path / "other", seed=1, num_layers=1)
  )
  ids = [f"x{i}" for i in range(300)]
  named = write_parts(tmp_path / "named", place, id=ids)
  two = write_parts(tmp_path / "two", place, id=ids, a=TEXT, b=TEXT)
  (tmp_path / "empty").mkdir()
  for kwargs, error in (
    ({"embeddings": str(tmp_path / "reversed.npy")}, "not those of their sentences"),
    ({"encoder": other}, "not those of their sentences by this model"),
    ({"embeddings": str(tmp_path / "short.npy")}, "299 embeddings, .* 300 sentences"),
    ({"embeddings": str(tmp_path / "signs.npy")}, "an index is made of floats"),
    ({"lines": None}, "holds no sentences: give the text"),
    ({"column": "text"}, "--column=text is for a folder of parts"),
    ({"embeddings": named, "lines": None}, "columns of text are none"),
    ({"embeddings": named}, "row 0 .* has the id 'x0'"),
    ({"embeddings": two, "lines": None}, "columns of text are a, b: name the one"),
    ({"embeddings": str(tmp_path / "empty"), "lines": None}, "has no Parquet parts"),
  ):
    kwargs = {"encoder": encoder, **kwargs}
    with pytest.raises(UserError, match=error) as raised:
      build(place, tmp_path / "i", **kwargs)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "i").exists()
  full = types.SimpleNamespace(free=1000)
  monkeypatch.setattr("shutil.disk_usage", lambda path: full)
  with pytest.raises(UserError, match="0.0 GB left, and the index takes up to 0.0"):
    build(place, tmp_path / "i", encoder)


def test_an_index_of_another_model_or_text_is_refused_and_stays(
  place, encoder, tmp_path
):
  build(place, tmp_path / "i", encoder)
  before = (tmp_path / "i/index.json").read_bytes()
  cut = SentenceEncoder(str(place / "model"), truncate_dim=8)
  other_text = tmp_path / "other.txt"
  other_text.write_text("One.\nTwo.\n")
  with pytest.raises(UserError, match="i is there already, the index of another model"):
    build(place, tmp_path / "i", cut, embeddings=None)
  with pytest.raises(UserError, match="i is there already, the index of another text"):
    build(place, tmp_path / "i", encoder, embeddings=None, lines=Lines(str(other_text)))
  with pytest.raises(UserError, match="is no index"):
    build(place, place / "model", encoder)
  with locks.output_locked(tmp_path / "j"), pytest.raises(UserError, match="in use by"):
    build(place, tmp_path / "j", encoder)
  with pytest.raises(UserError, match="index of another model, or of another pooling"):
    cut.load_index(str(tmp_path / "i"))
  assert (tmp_path / "i/index.json").read_bytes() == before
  os.truncate(tmp_path / "i/rows.npy", 500)
  with pytest.raises(UserError, match="rows.npy is missing or has not its 4928 bytes"):
    encoder.load_index(str(tmp_path / "i"))


def test_the_commands_build_an_index_and_search_it_with_its_own_text_alone(
  place, tmp_path
):
  model = ("--model", str(place / "model"))
  text, other = tmp_path / "a.txt", tmp_path / "b.txt"
  text.write_text("".join(f"{line}\n" for line in TEXT[:50]))
  other.write_text("One.\nTwo.\n")
  done = processes.run(
    *("dcse_jax.index", *model, "--sentences", str(text)),
    *("--output", str(tmp_path / "i")),
  )
  assert done.returncode == 0, done.stderr
  assert "50 sentences, 16 bytes each besides the text" in done.stdout
  assert "recall@10" in done.stdout and done.stdout.endswith(f"{tmp_path / 'i'}\n")
  rows = row_file.read(tmp_path / "i/rows.npy")
  assert rows.shape == (50, 16) and rows.dtype == np.int8
  ask = (*model, "--index", str(tmp_path / "i"), "--top_k", "1", "--query", TEXT[7])
  asked = processes.run("dcse_jax.search", *ask, "--sentences", str(text))
  query, answer = asked.stdout.splitlines()
  assert query == TEXT[7] and answer.endswith(f"\t{TEXT[7]}"), asked.stderr
  asked = processes.run("dcse_jax.search", *ask, "--sentences", str(other))
  assert asked.returncode == 2
  (line,) = asked.stderr.strip().splitlines()
  assert "is the index of another text than" in line


def test_a_wrong_command_prints_one_line(place):
  result = processes.run(
    *(
      "dcse_jax.index",
      "--model=m",
      "--output=i",
      "--sentences",
      str(place / "my.txt"),
    ),
    "--column=a",
  )
  assert result.returncode == 2, result.stderr
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and "--column is of --embeddings" in line

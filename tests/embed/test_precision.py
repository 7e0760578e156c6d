"""Embeddings of fewer bits in files, and search among them."""

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax import encode
from dcse_jax.embed import neighbours
from dcse_jax.embed import precision as precision_lib
from dcse_jax.embed import row_file
from dcse_jax.model import inference
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes

SMALL = [each for each in precision_lib.PRECISIONS if not each.startswith("float")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  return SentenceEncoder(
    models.write_tiny_folder(tmp_path_factory.mktemp("m") / "m", num_layers=1)
  )


def write_lines(path, lines):
  path.write_text("".join(f"{line}\n" for line in lines))
  return str(path)


@pytest.mark.parametrize("precision", SMALL)
def test_a_file_has_the_bytes_of_sentence_transformers_and_more_text_its_ranges(
  encoder, tmp_path, precision
):
  quantization = pytest.importorskip("sentence_transformers.util.quantization")
  lines = [models.SENTENCES[:150], models.SENTENCES[150:200]]
  rows = [encoder.encode(each) for each in lines]
  texts = [write_lines(tmp_path / f"{i}.txt", each) for i, each in enumerate(lines)]
  outputs = [str(tmp_path / f"{i}.npy") for i in range(2)]
  encode.encode_file(encoder, texts[0], outputs[0], precision=precision)
  ranges = None
  if precision.endswith("int8"):
    ranges = np.load(tmp_path / "0.ranges.npy")
    np.testing.assert_array_equal(ranges, [rows[0].min(axis=0), rows[0].max(axis=0)])
  kept = str(tmp_path / "0.ranges.npy") if ranges is not None else None
  encode.encode_file(
    encoder, texts[1], outputs[1], precision=precision, calibration=kept
  )
  for each, output in zip(rows, outputs):
    found = np.load(output)
    expected = quantization.quantize_embeddings(each, precision, ranges=ranges)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
  # Nothing else is left, and both files have the same ranges.
  names = [f"{i}.{end}" for i in range(2) for end in ("npy", "txt")]
  names += [f"{i}.ranges.npy" for i in range(2) if ranges is not None]
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
  if ranges is not None:
    np.testing.assert_array_equal(np.load(tmp_path / "1.ranges.npy"), ranges)


def test_a_text_calibrates_as_its_embeddings_do(encoder, tmp_path):
  text = write_lines(tmp_path / "a.txt", models.SENTENCES[:20])
  other = write_lines(tmp_path / "b.txt", models.SENTENCES[100:250])
  rows = encoder.encode(models.SENTENCES[100:250])
  np.save(tmp_path / "rows.npy", rows)
  for source in (other, str(tmp_path / "rows.npy")):
    output = str(tmp_path / "a.npy")
    encode.encode_file(encoder, text, output, precision="int8", calibration=source)
    np.testing.assert_array_equal(
      np.load(tmp_path / "a.ranges.npy"), [rows.min(axis=0), rows.max(axis=0)]
    )


class Interrupted(Exception):
  pass


@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_interrupted_file_goes_on_with_the_ranges_that_it_began_with(
  encoder, tmp_path, monkeypatch, is_damaged
):
  lines = models.SENTENCES[:50]
  text, output = write_lines(tmp_path / "a.txt", lines), str(tmp_path / "a.npy")
  encode.encode_file(encoder, text, output, precision="int8")
  expected = np.load(output), np.load(tmp_path / "a.ranges.npy")
  monkeypatch.setattr(inference, "CHUNK", 16)
  stream, encoded = encoder.encode_stream, []

  def counted(sentences, *, stop_at=None, **kwargs):
    for part in stream(sentences, **kwargs):
      encoded.append(len(part))
      yield part
      if len(encoded) == stop_at:
        raise Interrupted

  # Four parts are calibrated by, and three are written.
  monkeypatch.setattr(
    encoder, "encode_stream", lambda s, **k: counted(s, stop_at=7, **k)
  )
  with pytest.raises(Interrupted):
    encode.encode_file(encoder, text, output, precision="int8")
  assert encoded == [16, 16, 16, 2, 16, 16, 16]
  if is_damaged:
    (kept,) = tmp_path.glob(".*.ranges.npy")
    np.save(kept, np.load(kept) + 1)
  encoded.clear()
  monkeypatch.setattr(encoder, "encode_stream", counted)
  encode.encode_file(encoder, text, output, precision="int8")
  # Ranges that are damaged are measured again; they are the same, and so rows stay.
  assert encoded == ([16, 16, 16, 2] if is_damaged else []) + [2]
  np.testing.assert_array_equal(np.load(output), expected[0])
  np.testing.assert_array_equal(np.load(tmp_path / "a.ranges.npy"), expected[1])


def cosines(queries, rows):
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  return unit(queries) @ unit(rows).T


@pytest.mark.parametrize("block", [7, 100])
@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_steps_of_ranges_are_searched_by_the_middles_of_their_steps(
  precision, block, monkeypatch
):
  monkeypatch.setattr(neighbours, "_BLOCK", block)
  rng = np.random.default_rng(0)
  rows, queries = (rng.normal(size=(n, 20)).astype(np.float32) for n in (40, 3))
  ranges = precision_lib.ranges_of([rows])
  small = precision_lib.quantize(rows, precision, ranges)
  step = (ranges[1] - ranges[0]) / 255
  steps = small.astype(float) + (128 if precision == "int8" else 0)
  expected = cosines(queries, ranges[0] + (steps + 0.5) * step)
  scores, found = neighbours.make_index(small, 20, ranges=ranges).search(queries, 5)
  np.testing.assert_array_equal(found, np.argsort(-expected, axis=1)[:, :5])
  np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :5], atol=1e-5)
  # A number moves by half a step at most.
  assert np.abs(expected - cosines(queries, rows)).max() < 0.5 * step.max()


@pytest.mark.parametrize("block", [7, 100])
@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_signs_are_searched_by_how_many_differ_and_then_by_the_query_itself(
  precision, block, monkeypatch, tmp_path
):
  monkeypatch.setattr(neighbours, "_BLOCK", block)
  rng = np.random.default_rng(0)
  rows, queries = (rng.normal(size=(n, 20)).astype(np.float32) for n in (40, 3))
  np.save(tmp_path / "a.npy", precision_lib.quantize(rows, precision))
  differ = np.sum((queries > 0)[:, None] != (rows > 0)[None], axis=-1)
  exact = cosines(queries, np.where(rows > 0, 1, -1))
  found = neighbours.make_index(
    row_file.read(tmp_path / "a.npy"), 20, rescore_multiplier=3
  ).search(queries, 4)
  for i in range(3):
    shortlist = np.argsort(differ[i], kind="stable")[:12]
    order = shortlist[np.argsort(-exact[i, shortlist], kind="stable")][:4]
    np.testing.assert_array_equal(found[1][i], order)
    np.testing.assert_allclose(found[0][i], exact[i, order], atol=1e-5)


def test_an_index_refuses_rows_that_it_cannot_understand():
  rows = np.zeros((3, 16), np.int8)
  for kwargs, error in (
    ({}, "int8 rows are searched by their ranges, .* missing: keep .*ranges.npy"),
    ({"ranges": np.zeros((2, 8), np.float32)}, r"these are \(2, 8\)"),
    ({"ranges": np.zeros((2, 16)), "use_faiss": True}, "not int8: search without it"),
  ):
    with pytest.raises(UserError, match=error):
      neighbours.make_index(rows, 16, **kwargs)
  with pytest.raises(UserError, match=r"24 numbers, and int8 of shape \(3, 16\)"):
    neighbours.make_index(rows, 24)


def test_numbers_that_are_not_finite_are_not_rounded():
  rows = np.ones((3, 16), np.float32)
  rows[1, 4] = np.nan
  for precision in SMALL:
    with pytest.raises(UserError, match=f"sentence 11 .from 0.*which {precision}"):
      precision_lib.quantize(rows, precision, np.ones((2, 16)), first_row=10)
  with pytest.raises(UserError, match="ranges are measured on hold NaN"):
    precision_lib.ranges_of([rows])


def test_the_commands_encode_and_search_the_first_numbers_in_eight_bits(tmp_path):
  model = models.write_tiny_folder(tmp_path / "m", num_layers=1)
  text = write_lines(tmp_path / "a.txt", models.SENTENCES[:30])
  files = ("--model", model, "--input", text, "--output", str(tmp_path / "a.npy"))
  cut = ("--truncate_dim", "12")
  done = processes.run("dcse_jax.encode", *files, *cut, "--precision", "int8")
  assert done.returncode == 0, done.stderr
  assert np.load(tmp_path / "a.npy").shape == (30, 12)
  assert "30 sentences alone" in done.stdout
  asked = processes.run(
    *("dcse_jax.search", "--model", model, "--embeddings", str(tmp_path / "a.npy")),
    *("--sentences", text, "--top_k", "1", "--query", models.SENTENCES[7]),
    *cut,
  )
  score, sentence = asked.stdout.splitlines()[1].split("\t")
  assert sentence == models.SENTENCES[7] and float(score) > 0.999, asked.stderr


@pytest.mark.parametrize(
  "precision, calibration, error",
  [
    ("ubinary", "a.txt", "--calibration a.txt: ubinary has no ranges"),
    ("int8", "no.txt", "no.txt: no such file"),
    ("int8", "no.npy", "cannot read no.npy"),
    ("int8", "rows.npy", r"holds float32 of shape \(3, 4\): ranges come from"),
  ],
)
def test_what_cannot_calibrate_is_refused(
  encoder, tmp_path, monkeypatch, precision, calibration, error
):
  monkeypatch.chdir(tmp_path)
  write_lines(tmp_path / "a.txt", models.SENTENCES[:3])
  np.save("rows.npy", np.ones((3, 4), np.float32))
  with pytest.raises(UserError, match=error) as raised:
    encode.encode_file(
      encoder, "a.txt", "a.npy", precision=precision, calibration=calibration
    )
  assert "\n" not in str(raised.value)

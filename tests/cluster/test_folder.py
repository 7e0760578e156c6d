"""Folders of parts that this process writes: what encode gives, and going on."""

import hashlib
import json
import re

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax import encode
from dcse_jax.cluster import driver
from dcse_jax.cluster import embedders
from dcse_jax.cluster import tables
from dcse_jax.cluster import work
from dcse_jax.cluster.spread import SpreadEncoder
from dcse_jax.embed import precision as precision_lib
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes

SENTENCES = models.SENTENCES[:50]
# The names of 50 rows, 20 in a part.
NAMES = [f"part-{i:06d}.parquet" for i in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return models.write_tiny_folder(tmp_path_factory.mktemp("m") / "m", num_layers=1)


@pytest.fixture
def text(tmp_path):
  (tmp_path / "text.txt").write_text("".join(f"{s}\n" for s in SENTENCES))
  return str(tmp_path / "text.txt")


def embed(model, text, output, **options):
  driver.embed_parts(
    embedders.Encoder(model), text, str(output), **{"part_rows": 20, **options}
  )
  return json.loads((output / "manifest.json").read_text())


def rows_of(folder, manifest):
  parts = [pq.read_table(folder / part["name"]) for part in manifest["parts"]]
  numbers = [part.column("embedding").combine_chunks() for part in parts]
  width = manifest["embedding"]["numbers"]
  return np.concatenate(
    [each.flatten().to_numpy().reshape(-1, width) for each in numbers]
  )


def test_parts_hold_what_encode_writes_and_a_manifest_says_of_what(
  model, text, tmp_path
):
  columns = tables.Columns(kept=("text",))
  manifest = embed(model, text, tmp_path / "parts", columns=columns)
  encode.encode_file(SentenceEncoder(model), text, str(tmp_path / "plain.npy"))
  found = rows_of(tmp_path / "parts", manifest)
  np.testing.assert_allclose(found, np.load(tmp_path / "plain.npy"), atol=1e-6)
  assert (manifest["rows"], manifest["bad_rows"]) == (50, 0)
  first = 0
  for part, name in zip(manifest["parts"], NAMES, strict=True):
    sentences = SENTENCES[first : first + 20]
    table = pq.read_table(tmp_path / "parts" / name)
    assert table.column_names == ["id", "text", "embedding"]
    assert (
      str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    )
    assert table.column("id").to_pylist() == list(range(first, first + len(sentences)))
    assert table.column("text").to_pylist() == sentences
    digest = hashlib.blake2b(
      "".join(f"{s}\n" for s in sentences).encode(), digest_size=16
    )
    content = (tmp_path / "parts" / name).read_bytes()
    assert part == {
      "part": first // 20,
      "name": name,
      "file": "text.txt",
      "first_row": first,
      "input_rows": len(sentences),
      "rows": len(sentences),
      "bad_rows": 0,
      "text": digest.hexdigest(),
      "bytes": len(content),
      "sha256": hashlib.sha256(content).hexdigest(),
    }
    first += len(sentences)
  # Nothing else is left, neither there nor beside.
  there = sorted(path.name for path in (tmp_path / "parts").iterdir())
  assert there == ["manifest.json", *NAMES]
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "parts",
    "plain.npy",
    "text.txt",
  ]


def test_embeddings_of_fewer_bits_are_rounded_as_in_files(model, text, tmp_path):
  plain = SentenceEncoder(model).encode(SENTENCES)
  half = rows_of(
    tmp_path / "half", embed(model, text, tmp_path / "half", precision="float16")
  )
  assert half.dtype == np.float16
  np.testing.assert_allclose(half, plain, atol=2e-3)
  manifest = embed(model, text, tmp_path / "int8", precision="int8")
  ranges = np.load(tmp_path / "int8" / "ranges.npy")
  np.testing.assert_allclose(ranges, [plain.min(axis=0), plain.max(axis=0)], atol=1e-6)
  found = rows_of(tmp_path / "int8", manifest)
  assert found.dtype == np.int8
  expected = precision_lib.quantize(plain, "int8", ranges)
  assert np.abs(found.astype(int) - expected).max() <= 1
  with pytest.raises(UserError, match="which float16 cannot"):
    precision_lib.quantize(np.float32([[1, 1e6]]), "float16")


def test_rows_that_are_bad_are_counted_part_by_part(model, tmp_path):
  path = tmp_path / "text.txt"
  path.write_bytes(b"one\n\xff\nthree\n" + b"\xff\n" * 3)
  options = {"part_rows": 3}
  with pytest.raises(UserError, match=r"text.txt line 2: not valid UTF-8; mend it"):
    embed(model, str(path), tmp_path / "parts", **options)
  # It goes on, now without them.
  manifest = embed(model, str(path), tmp_path / "parts", skip_bad_rows=True, **options)
  assert [(p["rows"], p["bad_rows"]) for p in manifest["parts"]] == [(2, 1), (0, 3)]
  assert (manifest["rows"], manifest["bad_rows"]) == (2, 4)
  ids = pq.read_table(tmp_path / "parts" / NAMES[0]).column("id").to_pylist()
  assert ids == [0, 2]
  assert pq.read_table(tmp_path / "parts" / NAMES[1]).num_rows == 0


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_goes_on_to_the_same_bytes_and_a_lost_part_is_made_again(
  model, text, tmp_path, monkeypatch
):
  embed(model, text, tmp_path / "whole", precision="int8")
  made, embed_part = [], work.Worker.embed

  def cut(self, part, *arguments):
    if part.number == 2 and not made.count(2):
      made.append(2)
      raise KeyboardInterrupt
    made.append(part.number)
    return embed_part(self, part, *arguments)

  monkeypatch.setattr(work.Worker, "embed", cut)
  with pytest.raises(KeyboardInterrupt):
    embed(model, text, tmp_path / "cut", precision="int8")
  assert not (tmp_path / "cut" / "manifest.json").exists()
  made.clear()
  made.append(2)
  embed(model, text, tmp_path / "cut", precision="int8")
  assert made == [2, 2]
  assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
  (tmp_path / "cut" / NAMES[0]).unlink()
  (tmp_path / "cut" / NAMES[1]).write_bytes(b"cut off")
  embed(model, text, tmp_path / "cut", precision="int8")
  assert made == [2, 2, 0, 1]
  assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(
  model, text, tmp_path
):
  embed(model, text, tmp_path / "parts")
  before = contents(tmp_path / "parts")
  other = models.write_tiny_folder(tmp_path / "other", seed=1, num_layers=1)
  with pytest.raises(UserError, match=r"parts of another origin \(model differ\)"):
    embed(other, text, tmp_path / "parts")
  with pytest.raises(UserError, match=r"another origin \(precision differ\)"):
    embed(model, text, tmp_path / "parts", precision="int8")
  with open(text, "a") as file:
    file.write("one more\n")
  with pytest.raises(UserError, match=r"another origin \(text differ\): name another"):
    embed(model, text, tmp_path / "parts")
  assert contents(tmp_path / "parts") == before
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("mine")
  with pytest.raises(UserError, match="is there already and holds thesis.txt"):
    embed(model, text, tmp_path / "mine")
  assert contents(tmp_path / "mine") == {"thesis.txt": b"mine"}


def test_a_worker_with_another_model_and_a_second_driver_are_refused(
  model, text, tmp_path
):
  job = work.Job(
    embedders.Encoder(model), tables.Layout("text", None, ()), "x", "float32", False
  )
  with pytest.raises(
    UserError, match="is another model here than where the others are"
  ):
    work.Worker(job).embed(None, {"model": "of the driver"}, None)
  with locks.output_locked(tmp_path / "parts"):
    with pytest.raises(UserError, match="parts is in use by process .*: wait until"):
      embed(model, text, tmp_path / "parts")


def test_embeddings_that_a_cluster_makes_come_back_as_those_of_this_process(
  model, tmp_path
):
  spread = SpreadEncoder(model, tmp_path / "work", engine="local")
  for prompt in ({}, {"prompt": "a b "}):
    found = list(spread.encode_stream(SENTENCES, normalize_embeddings=True, **prompt))
    plain = SentenceEncoder(model).encode(
      SENTENCES, normalize_embeddings=True, **prompt
    )
    np.testing.assert_allclose(np.concatenate(found), plain, atol=1e-6)
  # What waited there is gone.
  assert not list((tmp_path / "work").iterdir())


def test_a_bucket_holds_what_a_folder_holds(model, text, tmp_path):
  embed(model, text, tmp_path / "parts")
  bucket = fsspec.filesystem("memory")
  bucket.pipe({f"/in/{i}.txt": s.encode() for i, s in enumerate(SENTENCES[:2])})
  try:
    for source, rows in ((text, 50), ("memory://in/*.txt", 2)):
      output = f"memory://out-{rows}/parts"
      driver.embed_parts(embedders.Encoder(model), source, output, part_rows=20)
      driver.embed_parts(embedders.Encoder(model), source, output, part_rows=20)
      manifest = json.loads(bucket.cat(f"/out-{rows}/parts/manifest.json"))
      assert manifest["rows"] == rows
    there = bucket.ls("/out-50/parts", detail=False)
    assert {n.rpartition("/")[2]: bucket.cat(n) for n in there} == contents(
      tmp_path / "parts"
    )
  finally:
    bucket.store.clear()


def test_commands_write_folders_and_refuse_what_does_not_fit_files(
  model, text, tmp_path
):
  command = ["dcse_jax.encode", "--model", model, "--input", text, "--output"]
  folder, file = str(tmp_path / "parts"), str(tmp_path / "a.npy")
  done = processes.run(*command, folder, "--columns", "text", "--part_rows", "20")
  assert done.returncode == 0, done.stderr
  assert "50 rows in 3 parts, 0 bad rows left out" in done.stdout
  embed(model, text, tmp_path / "same", columns=tables.Columns(kept=("text",)))
  assert contents(tmp_path / "parts") == contents(tmp_path / "same")
  for arguments, message in [
    ([file, "--engine", "ray"], "--engine is for folders of parts, and .* is a file"),
    ([folder, "--workers", "2"], "--address and --workers are for --engine=ray"),
  ]:
    refused = processes.run(*command, *arguments)
    assert refused.returncode == 2
    assert re.fullmatch(f"error: .*{message}.*\n", refused.stderr)

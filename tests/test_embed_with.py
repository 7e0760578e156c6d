"""embed_with: any model that sentence-transformers runs, into a file for teachers."""

import gzip
import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import sentence_transformers
from sentence_transformers import models as modules_lib
import transformers

from dcse_jax import embed_with
from dcse_jax.cluster import driver
from dcse_jax.cluster import embedders
from dcse_jax.embed import bridge
from dcse_jax.embed import row_file
from dcse_jax.runtime.errors import UserError
from tests import models

SENTENCES = models.SENTENCES[:50]


def write_text(path):
  # Blank rows count, and runs of white space are one space, as in training.
  rows = [*SENTENCES[:20], "", " two\t words ", *SENTENCES[20:]]
  path.write_text("\n".join(rows) + "\n")
  return str(path), [*SENTENCES[:20], "", "two words", *SENTENCES[20:]]


def make(path, kind="modernbert", **modules):
  """A tiny random model of transformers, as sentence-transformers saves it."""
  tokenizer = models.tiny_model(0).tokenizer
  shape = dict(
    vocab_size=len(tokenizer),
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    pad_token_id=0,
  )
  if kind == "qwen3":
    config = transformers.Qwen3Config(**shape, num_key_value_heads=1, head_dim=8)
  else:
    config = transformers.ModernBertConfig(
      **shape, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    )
  transformers.set_seed(0)
  encoder = transformers.AutoModel.from_config(config)
  encoder.save_pretrained(path / "encoder")
  tokenizer.save_pretrained(path / "encoder")
  transformer = modules_lib.Transformer(str(path / "encoder"))
  pooling = modules_lib.Pooling(
    16, pooling_mode="lasttoken" if kind == "qwen3" else "mean"
  )
  model = sentence_transformers.SentenceTransformer(
    modules=[transformer, pooling], device="cpu", **modules
  )
  model.save(str(path / "model"))
  return str(path / "model")


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_rows_are_those_of_the_text_by_the_models_own_prompt(tmp_path, kind):
  prompts = {"query": "Query: ", "document": "Text: "}
  model = make(tmp_path, kind, prompts=prompts, default_prompt_name="document")
  source, rows = write_text(tmp_path / "text.txt")
  output = tmp_path / "teacher.npy"
  embed_with.embed_file(model, source, str(output), dtype="float32")
  theirs = sentence_transformers.SentenceTransformer(model, device="cpu")
  expected = theirs.encode(rows, prompt="Text: ")
  np.testing.assert_allclose(np.load(output), expected, atol=1e-6)
  about = json.loads(pathlib.Path(f"{output}.json").read_text())
  assert about["prompt"] == "Text: " and about["text"]["rows"] == len(rows)
  embed_with.embed_file(
    model, source, str(output), prompt="query", truncate_dim=5, batch_size=3
  )
  expected = theirs.encode(rows, prompt_name="query")[:, :5]
  assert np.load(output).dtype == np.float16
  np.testing.assert_allclose(np.load(output), expected, atol=2e-3)


def test_a_run_that_is_cut_off_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
  model = make(tmp_path)
  source, rows = write_text(tmp_path / "text.txt")
  monkeypatch.setattr(bridge, "CHUNK", 16)
  embed_with.embed_file(model, source, str(tmp_path / "whole.npy"))
  embedded = []
  write_json = row_file.files.write_json

  def cut(path, content):
    write_json(path, content)
    if content.get("rows") == 32:
      raise KeyboardInterrupt

  monkeypatch.setattr(row_file.files, "write_json", cut)
  with pytest.raises(KeyboardInterrupt):
    embed_with.embed_file(model, source, str(tmp_path / "cut.npy"))
  assert not (tmp_path / "cut.npy").exists()
  monkeypatch.setattr(row_file.files, "write_json", write_json)
  encode = sentence_transformers.SentenceTransformer.encode

  def count(self, sentences, **kwargs):
    embedded.extend(sentences)
    return encode(self, sentences, **kwargs)

  monkeypatch.setattr(sentence_transformers.SentenceTransformer, "encode", count)
  embed_with.embed_file(model, source, str(tmp_path / "cut.npy"))
  # One more, that tells the width.
  assert len(embedded) == len(rows) - 32 + 1
  whole, cut_off = (tmp_path / f"{name}.npy" for name in ("whole", "cut"))
  assert whole.read_bytes() == cut_off.read_bytes()


def test_a_column_of_a_packed_table_is_read_as_training_reads_it(tmp_path):
  model = make(tmp_path)
  lines = ["id\ttext", *(f"{i}\t{s}" for i, s in enumerate(SENTENCES[:9]))]
  source = tmp_path / "text.tsv.gz"
  source.write_bytes(gzip.compress("\n".join(lines).encode()))
  output = str(tmp_path / "a.npy")
  embed_with.embed_file(model, str(source), output, column="text")
  write_text(tmp_path / "text.txt")
  (tmp_path / "plain.txt").write_text("\n".join(SENTENCES[:9]))
  embed_with.embed_file(model, str(tmp_path / "plain.txt"), str(tmp_path / "b.npy"))
  np.testing.assert_array_equal(np.load(output), np.load(tmp_path / "b.npy"))


def test_a_folder_of_parts_has_the_teachers_rows(tmp_path):
  model = make(tmp_path)
  source, rows = write_text(tmp_path / "text.txt")
  driver.embed_parts(
    embedders.Teacher(model), source, str(tmp_path / "parts"), part_rows=20
  )
  parts = [
    pq.read_table(path) for path in sorted((tmp_path / "parts").glob("*.parquet"))
  ]
  assert [part.num_rows for part in parts] == [20, 20, 12]
  theirs = sentence_transformers.SentenceTransformer(model, device="cpu").encode(rows)
  found = [e for part in parts for e in part.column("embedding").to_pylist()]
  np.testing.assert_allclose(found, theirs, atol=1e-6)


@pytest.mark.slow
def test_several_devices_give_the_bytes_of_one(tmp_path, monkeypatch):
  # Two processes on a CPU, each with its copy of the model.
  model = make(tmp_path)
  source, _ = write_text(tmp_path / "text.txt")
  monkeypatch.setattr(bridge, "CHUNK", 16)
  for number in (1, 2):
    output = str(tmp_path / f"{number}.npy")
    embed_with.embed_file(model, source, output, devices=number, dtype="float32")
  one, two = (tmp_path / f"{number}.npy" for number in (1, 2))
  assert one.read_bytes() == two.read_bytes()


def test_a_prompt_that_a_model_has_not_is_refused(tmp_path):
  model = make(tmp_path)
  source, _ = write_text(tmp_path / "text.txt")
  with pytest.raises(UserError, match=r"--prompt=nothing: the prompts of .* are: "):
    embed_with.embed_file(model, source, str(tmp_path / "a.npy"), prompt="nothing")
  with pytest.raises(UserError, match="cannot load"):
    embed_with.embed_file(str(tmp_path), source, str(tmp_path / "a.npy"))

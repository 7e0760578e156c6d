"""Model folders that are damaged, from another place or in the way."""

import dataclasses
import hashlib
import json
import pathlib
import random
import re
import resource
import shutil

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy

from dcse_jax import SentenceEncoder
from dcse_jax.hub import folder
from dcse_jax.model import model as model_lib
from dcse_jax.model.heads import Head
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime.errors import UserError
from tests import models


def whole_model():
  """A model with all that a folder can hold: two poolings, a head, unit length."""
  head = Head(np.eye(16, 8, dtype=np.float32), np.zeros(8, np.float32))
  model = models.tiny_model(pooling="mean_top2")
  return dataclasses.replace(model, head=head, normalize=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  path = tmp_path_factory.mktemp("exported") / "m"
  folder.save(whole_model(), path, lambda beside: write_card(beside, "A card."))
  return path


def write_card(path, text):
  (path / "README.md").write_text(text)


def load_error(path, **options) -> str:
  with pytest.raises(UserError) as error:
    folder.load(str(path), **options)
  assert "\n" not in str(error.value)
  return str(error.value)


def damaged(content, seed):
  """Yields a file with one byte flipped, at five places, cut off, or empty."""
  rng = random.Random(seed)
  for _ in range(5):
    place, change = rng.randrange(len(content)), rng.randrange(1, 256)
    yield content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]
  yield content[: rng.randrange(len(content))]
  yield content[:-1]
  yield b""


def test_whatever_is_damaged_in_an_exported_folder_is_named(exported, tmp_path):
  names = digests_lib.listed(exported)
  there = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
  assert {*names} == there - {"README.md", "SHA256SUMS"} and len(names) == 13
  shutil.copytree(exported, tmp_path / "m")
  for i, name in enumerate([*names, "SHA256SUMS"]):
    path = tmp_path / "m" / name
    content = path.read_bytes()
    for j, change in enumerate(damaged(content, seed=i)):
      path.write_bytes(change)
      message = load_error(tmp_path / "m", weights=j % 2 == 0)
      assert f"m: {name} is not as it was written: fetch or export it again" in message
    path.write_bytes(content)
    if name != "SHA256SUMS":
      path.unlink()
      assert f"m: {name} is missing" in load_error(tmp_path / "m")
      path.write_bytes(content)
  assert folder.load(str(tmp_path / "m")).head


def test_the_card_may_be_changed_and_without_digests_all_else(exported, tmp_path):
  shutil.copytree(exported, tmp_path / "m")
  write_card(tmp_path / "m", "Another card.")
  assert folder.load(str(tmp_path / "m")).normalize
  modules = json.loads((tmp_path / "m" / "modules.json").read_text())
  (tmp_path / "m" / "modules.json").write_text(json.dumps(modules[:-1]))
  assert "remove its SHA256SUMS" in load_error(tmp_path / "m")
  (tmp_path / "m" / "SHA256SUMS").unlink()
  assert not folder.load(str(tmp_path / "m")).normalize


def test_a_damaged_folder_without_digests_loads_or_says_so_in_a_line(
  exported, tmp_path
):
  shutil.copytree(exported, tmp_path / "m")
  (tmp_path / "m" / "SHA256SUMS").unlink()
  loaded = 0
  for i, name in enumerate(digests_lib.listed(exported)):
    path = tmp_path / "m" / name
    content = path.read_bytes()
    for change in damaged(content, seed=i):
      path.write_bytes(change)
      try:
        model = folder.load(str(tmp_path / "m"))
        model_lib.tokenize(model.tokenizer, models.SENTENCES[:5], model.max_length)
        loaded += 1
      except UserError as error:
        assert "\n" not in str(error)
    path.write_bytes(content)
  # There are 104 changes: another digit of a weight is still a weight.
  assert 10 < loaded < 80


def set_json(path, **fields):
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def set_layers(path, number):
  """Sets another number of layers in an encoder's config."""
  set_json(path / "config.json", num_hidden_layers=number)
  (path / "modules.json").unlink()


def set_tensors(path, change):
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  safetensors.numpy.save_file(change(tensors), path / "model.safetensors")


def with_tensor(name, change):
  return lambda path: set_tensors(path, lambda t: {**t, name: change(t[name])})


def without_tensor(name):
  return lambda path: set_tensors(
    path, lambda t: {k: v for k, v in t.items() if k != name}
  )


def with_value(value):
  def change(tensor):
    tensor = tensor.copy()
    tensor.flat[3] = value
    return tensor

  return change


def lose_a_shard(path):
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  (path / "model.safetensors").rename(path / "one.safetensors")
  shards = dict.fromkeys(tensors, "one.safetensors") | {"x": "two.safetensors"}
  index = path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": shards}))


def write(name, content):
  return lambda path: (path / name).write_text(content)


DENSE = "encoder.layer.1.output.dense.bias"
HEAD = "3_Dense"
FAULTS = {
  r"model.safetensors .*header too large.*: fetch": write(
    "model.safetensors", "x" * 99
  ),
  r"model.safetensors .*too small.*: fetch": write("model.safetensors", ""),
  r"two.safetensors .*No such file.*: fetch": lose_a_shard,
  r"m: .*output.dense.bias holds NaN": with_tensor(DENSE, with_value(np.nan)),
  r"m: .*output.dense.bias holds NaN or inf": with_tensor(DENSE, with_value(-np.inf)),
  r"bias has shape \(15,\), not \(16,\): fetch": with_tensor(DENSE, lambda t: t[1:]),
  r"bias holds int32, not floats": with_tensor(DENSE, lambda t: t.view(np.int32)),
  r"dense.bias is missing: fetch": without_tensor(DENSE),
  r"config.json \(Expecting value": write("config.json", ""),
  r"config.json holds no JSON object": write("config.json", "[]"),
  r"config.json: hidden_size is '16', not a whole number": lambda path: set_json(
    path / "config.json", hidden_size="16"
  ),
  r"num_attention_heads is 3, not a divisor": lambda path: set_json(
    path / "config.json", num_attention_heads=3
  ),
  r"shape \(3,\), which does not fit the 1000000000 layers": lambda path: set_json(
    path / "config.json", num_hidden_layers=10**9
  ),
  r"too few for the 1000000000 layers": lambda path: set_layers(path, 10**9),
  r"hidden_dropout_prob is nan, not a number from 0": lambda path: set_json(
    path / "config.json", hidden_dropout_prob=np.nan
  ),
  r"the weights do not fit their config.json: .*; and 6 more: fetch": lambda path: (
    set_layers(path, 3)
  ),
  r"modules.json is no list of modules": write("modules.json", "{}"),
  r"Pooling/config.json: word_embedding_dimension is None, not 16": write(
    "2_Pooling/config.json", "{}"
  ),
  r"max_seq_length is -3, not a whole number": write(
    "sentence_bert_config.json", '{"max_seq_length": -3}'
  ),
  r"3_Dense: linear has a weight of shape \(16, 8\), not": lambda path: with_tensor(
    "linear.weight", np.transpose
  )(path / HEAD),
  r"3_Dense: linear holds NaN": lambda path: with_tensor(
    "linear.bias", with_value(np.nan)
  )(path / HEAD),
  r"cannot use the tokenizer in .*: fetch": write("tokenizer.json", '{"model": {}}'),
  r"tokenizer_config.json holds no JSON": write("tokenizer_config.json", "3"),
  r"model_max_length is 0": lambda path: set_json(
    path / "tokenizer_config.json", model_max_length=0
  ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_of_a_folder_from_elsewhere_is_named(exported, tmp_path, message):
  shutil.copytree(exported, tmp_path / "m")
  (tmp_path / "m" / "SHA256SUMS").unlink()
  FAULTS[message](tmp_path / "m")
  assert re.search(message, found := load_error(tmp_path / "m")), found


def test_a_length_without_room_for_special_tokens_is_refused(exported):
  # A tokenizer that adds two tokens would not cut at one.
  assert folder.load(str(exported), max_length=2).max_length == 2
  assert "cannot be cut at 1 tokens" in load_error(exported, max_length=1)


def as_in_the_hubs_cache(exported, path):
  """Makes a folder's files links to blobs, the large ones named by their SHA-256."""
  (path / "blobs").mkdir(parents=True)
  for source in [p for p in exported.rglob("*") if p.is_file()]:
    link = path / "snapshots" / "1" / source.relative_to(exported)
    if link.name == "SHA256SUMS":
      continue
    kind = "sha256" if link.suffix == ".safetensors" else "sha1"
    blob = path / "blobs" / hashlib.new(kind, source.read_bytes()).hexdigest()
    shutil.copy(source, blob)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
  return path / "snapshots" / "1"


def test_a_damaged_file_of_the_hubs_cache_is_named_with_its_blob(exported, tmp_path):
  snapshot = as_in_the_hubs_cache(exported, tmp_path)
  assert folder.load(str(snapshot)).head
  for name in ("model.safetensors", "3_Dense/model.safetensors"):
    blob = (snapshot / name).resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    message = load_error(snapshot)
    assert name in message and f"delete {blob}, and it is fetched again" in message
    content[-1] ^= 1
    blob.write_bytes(content)


def test_a_hub_id_may_carry_a_revision_and_a_folder_of_that_name_wins(
  exported, tmp_path, monkeypatch
):
  calls, wanted = [], set()

  def snapshot_download(hub_id, revision, allow_patterns):
    calls.append((hub_id, revision))
    wanted.update(allow_patterns)
    return str(exported)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  monkeypatch.chdir(tmp_path)
  for name in ("me/model", "me/model@v1", "model@refs/pr/3"):
    assert folder.locate(name) == exported
  expected = [("me/model", None), ("me/model", "v1"), ("model", "refs/pr/3")]
  assert list(dict.fromkeys(calls)) == expected
  # The weights of each module that has some, in the folder that modules.json names.
  weights = ["", "1_WeightedLayerPooling/", "3_Dense/"]
  assert {name for name in wanted if "*" not in name} == {
    f"{path}model.safetensors" for path in weights
  }
  del calls[:]
  for name in ("@v1", "model@", "me/model@v1@v2", "@"):
    with pytest.raises(UserError, match="name a folder, ID or ID@REVISION"):
      folder.locate(name)
  for name in ("a/b/c@v1", "./model@v1", "~nobody-here/m", "m" * 300):
    with pytest.raises(UserError, match="is not a model folder.*: check the path"):
      folder.locate(name)
  (tmp_path / "me" / "model@v1").mkdir(parents=True)
  assert folder.locate("me/model@v1") == pathlib.Path("me/model@v1")
  assert not calls


def test_only_an_exported_model_is_ever_replaced(exported, tmp_path):
  model = models.tiny_model()
  (tmp_path / "m").mkdir()
  for _ in range(2):  # An empty folder, and the model that is then there.
    folder.save(model, tmp_path / "m")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "thesis.tex").write_text("years of work")
  for path in (tmp_path / "other", tmp_path / "other" / "thesis.tex"):
    with pytest.raises(UserError, match="is there already and is no.*name another"):
      folder.save(model, path)
  assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("limit", [200, 10_000])
def test_a_full_disk_leaves_the_earlier_model(tmp_path, limit):
  folder.save(models.tiny_model(seed=1), tmp_path / "m")
  before = SentenceEncoder(tmp_path / "m").encode("A cat sleeps.")
  model = models.tiny_model(seed=2)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  # The bytes of a file: the tokenizer does not fit, or the weights do not.
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  try:
    with pytest.raises(UserError, match="cannot write .*m .*File too large"):
      folder.save(model, tmp_path / "m")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [path.name for path in tmp_path.iterdir()] == ["m"]
  after = SentenceEncoder(tmp_path / "m").encode("A cat sleeps.")
  np.testing.assert_array_equal(after, before)

"""Files from elsewhere run nothing and reach nothing outside their folder."""

import ast
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

import dcse_jax
from dcse_jax.embed import row_file
from dcse_jax.hub import folder
from dcse_jax.runtime.errors import UserError
from tests import models

PACKAGE = pathlib.Path(dcse_jax.__file__).parent


class Touch:
  """Unpickled, it makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path):
  """A path that must not appear, though unpickling would make it."""
  path = tmp_path / "executed"
  pickle.loads(pickle.dumps(Touch(path)))
  path.unlink()
  yield path
  assert not path.exists()


@pytest.fixture
def model(tmp_path):
  return pathlib.Path(models.write_tiny_folder(tmp_path / "m"))


def load_error(path) -> str:
  with pytest.raises(UserError) as error:
    folder.load(str(path))
  assert "\n" not in str(error.value)
  return str(error.value)


def calls(tree):
  """Lists a module's calls: the names before and after the last dot, and keywords."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      owner, _, name = ast.unparse(node.func).rpartition(".")
      keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
      yield owner, name, keywords


def test_no_module_unpickles_evaluates_unpacks_or_trusts_remote_code():
  forbidden = {"pickle", "dill", "joblib", "marshal", "shelve", "torch", "yaml"}
  sources = list(PACKAGE.rglob("*.py"))
  assert len(sources) > 40
  for path in sources:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
      imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
      if isinstance(node, ast.ImportFrom):
        imported = [node.module]
      # One bridge traces our own encoder by PyTorch, another counts devices; neither loads
      # anything by it.
      allowed = {"torch"} if path.name in ("onnx_export.py", "bridge.py") else set()
      found = {name.partition(".")[0] for name in imported}
      assert not (forbidden - allowed) & found, path
    for owner, name, keywords in calls(tree):
      assert owner or name not in ("eval", "exec", "compile", "__import__"), path
      assert name not in ("extract", "extractall", "unsafe_load"), path
      assert keywords.get("allow_pickle", "False") == "False", path
      assert keywords.get("trust_remote_code", "False") == "False", path
      # transformers asks at the terminal if it is not told.
      if name == "from_pretrained" or name == "SentenceTransformer":
        assert "trust_remote_code" in keywords, path


@pytest.mark.parametrize(
  "name, auto_map",
  [
    ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
    ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", None]}),
  ],
)
def test_code_that_a_model_names_is_never_run(model, marker, name, auto_map):
  (model / "evil.py").write_text(
    f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    "from transformers import BertConfig as Evil\n"
  )
  settings = json.loads((model / name).read_text())
  (model / name).write_text(json.dumps(settings | {"auto_map": auto_map}))
  assert f"{name} names Python code" in load_error(model)


def write_zip(path, content):
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in content.items():
      archive.writestr(name, data)


def test_a_pickle_in_place_of_weights_is_never_run(model, marker):
  (model / "model.safetensors").unlink()
  path = model / "pytorch_model.bin"
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    path.write_bytes(pickle.dumps({"x": Touch(marker)}, protocol))
    assert "pytorch_model.bin" in load_error(model)
    write_zip(path, {"m/data.pkl": path.read_bytes()})
    assert "pytorch_model.bin" in load_error(model)
  path.rename(model / "model.safetensors")
  assert "cannot read" in load_error(model)


def test_names_in_an_archive_lead_nowhere(model, tmp_path):
  (model / "model.safetensors").unlink()
  names = ("../../escaped", f"{tmp_path}/escaped", "../data.pkl")
  write_zip(model / "pytorch_model.bin", dict.fromkeys(names, b"}."))
  before = sorted(tmp_path.rglob("*"))
  load_error(model)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_models_files_are_of_its_folder(model, tmp_path):
  (model / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
  index = model / "model.safetensors.index.json"
  for name in (
    "../elsewhere.safetensors",
    f"{tmp_path}/elsewhere.safetensors",
    "..",
    "",
  ):
    index.write_text(json.dumps({"weight_map": {"embeddings": name}}))
    assert "index.json names no files of its folder" in load_error(model)
  (tmp_path / "elsewhere.safetensors").rename(model / "model.safetensors")
  modules = json.loads((model / "modules.json").read_text())
  for place in ("../m/1_Pooling", str(model / "1_Pooling")):
    modules[1]["path"] = place
    (model / "modules.json").write_text(json.dumps(modules))
    assert "modules.json is no list of modules" in load_error(model)


def test_a_pickle_in_place_of_embeddings_is_never_run(tmp_path, marker):
  content = np.asarray([[Touch(marker)]], object)
  np.save(tmp_path / "a.npy", content, allow_pickle=True)
  (tmp_path / "b.npy").write_bytes(pickle.dumps(content))
  with (tmp_path / "c.npy").open("wb") as file:
    np.savez(file, content, allow_pickle=True)
  (tmp_path / "d.npy").write_bytes(b"")
  for path in sorted(tmp_path.glob("*.npy")):
    with pytest.raises(UserError, match=f"cannot read {path} .*dcse_jax.encode"):
      row_file.read(str(path))

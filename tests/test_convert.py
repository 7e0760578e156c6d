"""Exports of runs, checkpoints, model folders and SimCSE checkpoints."""

import dataclasses
import json
import pathlib
import sys

import huggingface_hub
import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

from dcse_jax import SentenceEncoder
from dcse_jax import convert
from dcse_jax.hub import folder
from dcse_jax.hub import huggingface
from dcse_jax.hub.model_card import make_card
from dcse_jax.recipe import finished
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes
from tests import recipes


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A finished recipe of bases that train through a projection, and a student."""
  path = tmp_path_factory.mktemp("run")
  models.write_tiny_folder(path / "model", pooling="cls")
  (path / "text.txt").write_text("\n".join(models.SENTENCES) + "\n")
  for name in ("STSB-dev", "X-test"):
    models.write_sts(path / "sts", name)
  config = recipes.from_files(path, recipe=("base", "student"))
  config.rounds.base.seeds = (1, 2)
  config.rounds.student.seeds = (3,)
  recipe_lib.run(config, str(path / "run"))
  return path / "run"


def embeddings_of(path):
  return SentenceEncoder(str(path)).encode(models.SENTENCES[:4])


def best_seed(folder_of_round):
  results = [json.loads(p.read_text()) for p in folder_of_round.glob("*/result.json")]
  return max(results, key=lambda result: (result["dev"], -result["seed"]))["seed"]


def test_without_dev_sets_a_rounds_model_is_that_of_the_seed_named_first(files):
  config = recipes.from_files(files, "simcse", sts="", dev=(), test=())
  config.rounds.simcse.seeds = (42, 7)
  recipe_lib.run(config, str(files / "run"))
  read = lambda path: (files / "run" / path / "model.safetensors").read_bytes()
  assert read("export") == read("simcse/42/model") != read("simcse/7/model")
  for source in (files / "run", files / "run" / "simcse"):
    assert finished.find(source) == (files / "run" / "simcse" / "42", None)


def test_a_workdir_a_round_and_a_seed_become_the_folder_of_their_model(
  workdir, tmp_path
):
  best = workdir / "base" / str(best_seed(workdir / "base"))
  for source, model, flags in (
    (workdir, workdir / "student" / "3", ["--verify"]),
    (workdir / "base", best, []),
    (workdir / "base" / "2", workdir / "base" / "2", []),
  ):
    done = processes.run(
      "dcse_jax.convert", str(source), "--output", str(tmp_path / "m"), *flags
    )
    assert done.returncode == 0, done.stderr
    assert ("verified: embeddings differ by" in done.stdout) == bool(flags)
    np.testing.assert_array_equal(
      embeddings_of(tmp_path / "m"), embeddings_of(model / "model")
    )


def test_sentence_transformers_and_transformers_load_the_export(workdir):
  ours = embeddings_of(workdir / "export")
  theirs = sentence_transformers.SentenceTransformer(
    str(workdir / "export"), device="cpu"
  )
  np.testing.assert_allclose(ours, theirs.encode(models.SENTENCES[:4]), atol=1e-5)
  assert theirs.similarity_fn_name == "cosine"
  plain = transformers.AutoModel.from_pretrained(workdir / "export").eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "export")
  inputs = tokenizer(
    models.SENTENCES[:4], padding=True, truncation=True, return_tensors="pt"
  )
  with torch.no_grad():
    cls = plain(**inputs).last_hidden_state[:, 0]
  np.testing.assert_allclose(ours, cls.numpy(), atol=1e-5)


def test_the_export_has_a_card_that_the_hub_understands(workdir):
  card = huggingface_hub.ModelCard.load(workdir / "export" / "README.md")
  scores = json.loads((workdir / "student" / "3" / "result.json").read_text())["sets"]
  assert card.data.pipeline_tag == "sentence-similarity"
  assert {r.dataset_name: r.metric_value for r in card.data.eval_results} == {
    name: round(score, 2) for name, score in scores.items() if name != "avg"
  }
  for fact in (
    "| teachers | base/1, base/2 |",
    "| distillation.group_probability | 0.1 |",
  ):
    assert fact in card.text
  assert 'SentenceTransformer("student-3")' in card.text


def test_a_card_says_at_what_revision_a_model_was_fetched(workdir):
  model, training = finished.load(workdir / "base" / "1")
  for source, shown in (
    ("me/model@refs/pr/1", "me/model@refs/pr/1"),
    ("/home/me/models/mine", "mine"),
  ):
    config = {**training.config, "model": source}
    card = make_card(model, "x", dataclasses.replace(training, config=config))
    assert f"| start | {shown} |" in card


def test_a_card_says_which_numbers_of_an_embedding_are_kept(workdir):
  model, training = finished.load(workdir / "base" / "1")
  training = dataclasses.replace(
    training, config={**training.config, "matryoshka": [16, 8]}
  )
  card = make_card(model.truncated(8), "x", training)
  assert "embeddings of the first 8 of 16 numbers" in card
  assert "Cut to its first 16, 8 numbers it serves, too." in card


def test_a_checkpoint_under_way_is_a_model_too(workdir, tmp_path):
  # This is how it was before the model finished: there is no result.
  seed = tmp_path / "student" / "3"
  seed.parent.mkdir()
  for name in ("origin.json", "start"):
    (seed.parent / name).symlink_to(workdir / "student" / name)
  seed.mkdir()
  (seed / "checkpoints").symlink_to(workdir / "student" / "3" / "checkpoints")
  steps = sorted(
    int(path.name) for path in (seed / "checkpoints").iterdir() if path.name.isdigit()
  )
  model, training = finished.load(seed)
  # The finished model is the best checkpoint.
  folder.save(model, tmp_path / "best")
  np.testing.assert_array_equal(
    embeddings_of(tmp_path / "best"), embeddings_of(workdir / "export")
  )
  assert training.step in steps and training.scores == {}
  found = finished.find(seed / "checkpoints" / str(steps[-1]))
  assert found == (seed, steps[-1]) and finished.load(*found)[1].step == steps[-1]
  with pytest.raises(UserError, match="no checkpoint of step 7; those there are"):
    finished.load(seed, 7)


def test_a_kept_head_is_the_projection_of_training(workdir, tmp_path):
  model, _ = finished.load(workdir / "base" / "1", keep_head=True)
  folder.save(dataclasses.replace(model, normalize=True), tmp_path / "m")
  plain = embeddings_of(workdir / "base" / "1" / "model")
  projected = np.tanh(plain @ model.head.kernel + model.head.bias)
  projected /= np.linalg.norm(projected, axis=1, keepdims=True)
  np.testing.assert_allclose(embeddings_of(tmp_path / "m"), projected, atol=1e-5)
  theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
  np.testing.assert_allclose(theirs.encode(models.SENTENCES[:4]), projected, atol=1e-5)


def write_simcse_checkpoint(path):
  """A tiny model as SimCSE's authors save theirs; its mlp's weight and bias."""
  model = models.tiny_model(pooling="cls")
  models.write_tiny_folder(path, pooling="cls")
  for name in ("modules.json", "sentence_bert_config.json", "model.safetensors"):
    (path / name).unlink()
  tensors = {
    f"bert.{name}": torch.tensor(tensor)
    for name, tensor in huggingface.to_tensors(model.params, model.config).items()
  }
  weight, bias = torch.randn(16, 16), torch.randn(16)
  tensors |= {"mlp.dense.weight": weight, "mlp.dense.bias": bias}
  torch.save(tensors, path / "pytorch_model.bin")
  return model, weight.numpy(), bias.numpy()


def test_a_simcse_checkpoint_is_read_without_its_mlp_and_with_it(tmp_path):
  model, weight, bias = write_simcse_checkpoint(tmp_path / "simcse")
  folder.save(model, tmp_path / "plain")
  plain = embeddings_of(tmp_path / "plain")
  np.testing.assert_array_equal(embeddings_of(tmp_path / "simcse"), plain)
  for flags, expected in (
    ([], plain),
    (["--keep_head"], np.tanh(plain @ weight.T + bias)),
  ):
    done = processes.run(
      "dcse_jax.convert",
      *(str(tmp_path / "simcse"), "--output", str(tmp_path / "m"), *flags),
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(embeddings_of(tmp_path / "m"), expected, atol=1e-5)
    theirs = sentence_transformers.SentenceTransformer(
      str(tmp_path / "m"), device="cpu"
    )
    np.testing.assert_allclose(theirs.encode(models.SENTENCES[:4]), expected, atol=1e-5)


def test_a_difference_from_pytorch_leaves_nothing_behind(tmp_path, monkeypatch):
  model = models.tiny_model()
  monkeypatch.setattr(convert, "unit_length", lambda x: x + np.random.rand())

  def check(path: pathlib.Path):
    convert.verify(path)

  with pytest.raises(UserError, match="embeddings differ from sentence-transformers'"):
    folder.save(model, tmp_path / "m", check)
  assert list(tmp_path.iterdir()) == []


def test_verify_without_torch_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "sentence_transformers", None)
  with pytest.raises(UserError, match="pip install torch sentence-transformers"):
    convert.verify(tmp_path)


def test_upload_makes_the_repository_and_says_what_went_wrong(tmp_path, monkeypatch):
  calls = []

  class Hub:
    def create_repo(self, repo_id, exist_ok):
      calls.append((repo_id, exist_ok))

    def upload_folder(self, repo_id, folder_path):
      if repo_id == "me/broken":
        raise OSError("no network")
      calls.append((repo_id, folder_path))
      return "an address"

  monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
  convert.push(tmp_path, "me/model")
  assert calls == [("me/model", True), ("me/model", tmp_path)]
  with pytest.raises(UserError, match="cannot upload to me/broken .no network."):
    convert.push(tmp_path, "me/broken")


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "give a workdir, checkpoint or model folder, and --output"),
    (("nowhere/at/all", "--output", "x"), "is not a model folder"),
  ],
)
def test_what_cannot_be_converted_is_said_in_one_line(arguments, message):
  done = processes.run("dcse_jax.convert", *arguments)
  assert done.returncode == 2
  assert message in done.stderr and done.stderr.count("\n") == 1

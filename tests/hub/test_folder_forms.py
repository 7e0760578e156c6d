"""Forms of model folders, each as sentence-transformers embeds with it, or refused."""

import dataclasses
import importlib.util
import json
import logging
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
import sentence_transformers
import torch

from dcse_jax import SentenceEncoder
from dcse_jax import convert
from dcse_jax.hub import folder
from dcse_jax.model import model as model_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.heads import Head
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import workdir
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import cache as teacher_cache
from dcse_jax.teachers import stacks as stacks_lib
from tests import models
from tests import processes
from tests.recipes import from_files

CASES = processes.ROOT.parent / "shared/cases/folders.py"
TEXTS = ["", "A word.", "THE " + models.SENTENCES[0], *models.SENTENCES[1:4]]
# A limit in characters would cut these: blanks have no token, a word has one.
TEXTS += ["Blanks" + " " * 12_000 + TEXTS[1], "ab" * 6_000 + f" {TEXTS[2]}"]
PROMPTS = {"prompts": {"query": "the query: ", "other": ""}}
FLAGS = {
  name: f"pooling_mode_{name}_token" + "s" * (name != "cls")
  for name in ("cls", "mean", "max", "mean_sqrt_len", "weightedmean")
}


def edit(path, **fields):
  """Sets fields of a JSON file; None removes one."""
  content = json.loads(path.read_text()) if path.exists() else {}
  content = {k: v for k, v in {**content, **fields}.items() if v is not None}
  path.write_text(json.dumps(content))


def settings(name, **fields):
  return lambda path: edit(path / name, **fields)


def pooling(*flags, **fields):
  """Sets other flags of the Pooling."""
  flags = {flag: name in flags for name, flag in FLAGS.items()}
  return settings("1_Pooling/config.json", **flags, **fields)


def new_pooling(modes):
  flags = dict.fromkeys(FLAGS.values())
  return settings("1_Pooling/config.json", **flags, pooling_mode=modes)


def renamed_length(path):
  (path / "sentence_bert_config.json").unlink()
  edit(path / "sentence_xlm-roberta_config.json", max_seq_length=8)
  edit(path / "sentence_xlnet_config.json", max_seq_length=9)


def in_a_subfolder(path):
  (path / "0_Transformer").mkdir()
  for file in [file for file in path.iterdir() if file.is_file()]:
    if file.name != "modules.json":
      file.rename(path / "0_Transformer" / file.name)
  modules = json.loads((path / "modules.json").read_text())
  modules[0]["path"] = "0_Transformer"
  (path / "modules.json").write_text(json.dumps(modules))


def sharded_bin(path):
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  tensors["embeddings.token_type_ids"] = np.zeros((1, 64), np.int64)  # A buffer.
  places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(tensors)}
  for file in set(places.values()):
    of_file = {k: torch.tensor(v) for k, v in tensors.items() if places[k] == file}
    torch.save(of_file, path / file)
  index = path / "pytorch_model.bin.index.json"
  edit(index, weight_map=places, metadata={"total_size": 1})
  (path / "model.safetensors").unlink()


def module(kind, **fields):
  """Adds a module at the end."""

  def add(path):
    modules = json.loads((path / "modules.json").read_text())
    name = f"{len(modules)}_{kind}"
    kind_of = f"sentence_transformers.models.{kind}"
    modules.append({"idx": len(modules), "name": name, "path": name, "type": kind_of})
    (path / "modules.json").write_text(json.dumps(modules))
    (path / name).mkdir()
    edit(path / name / "config.json", **fields)

  return add


def without_pooling(path):
  modules = json.loads((path / "modules.json").read_text())
  (path / "modules.json").write_text(json.dumps(modules[:1]))


def foreign_pooling(path):
  text = (path / "modules.json").read_text()
  text = text.replace("sentence_transformers.models.Pooling", "own_code.Pooling")
  (path / "modules.json").write_text(text)


def second_type(path):
  """Gives tokens of a single text type 1."""
  state = json.loads((path / "tokenizer.json").read_text())
  state["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 1}}],
    "pair": [],
    "special_tokens": {},
  }
  (path / "tokenizer.json").write_text(json.dumps(state))
  edit(
    path / "tokenizer_config.json",
    tokenizer_class="PreTrainedTokenizerFast",
    model_input_names=["input_ids", "token_type_ids", "attention_mask"],
  )


def empty_charsmap(path):
  """Makes a tokenizer that panics in Rust."""
  state = json.loads((path / "tokenizer.json").read_text())
  state["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
  (path / "tokenizer.json").write_text(json.dumps(state))
  edit(path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


CARD, LENGTH = "config_sentence_transformers.json", "sentence_bert_config.json"


def dense(rows, columns, **fields):
  rng = np.random.default_rng(rows)
  kernel, bias = rng.normal(size=(rows, columns)), rng.normal(size=columns)
  return Head(kernel.astype(np.float32), bias.astype(np.float32), **fields)


TWO_DENSE = {
  "head": dense(16, 12, then=dense(12, 8, activation="ReLU")),
  "normalize": True,
}

# A change to a folder; with a dict, the fields that its model has besides.
READ = {
  "plain": lambda path: None,
  "default prompt": settings(CARD, **PROMPTS, default_prompt_name="query"),
  "prompts without a default": settings(CARD, **PROMPTS),
  "default prompt of the library": settings(CARD, default_prompt_name="document"),
  "truncate_dim": settings(CARD, truncate_dim=5),
  "old name of the length": renamed_length,
  "length above the tokenizer's": settings("tokenizer_config.json", model_max_length=9),
  "length of the tokenizer": lambda path: (
    (path / LENGTH).unlink(),
    edit(path / "tokenizer_config.json", model_max_length=9),
  ),
  "cut from the left": settings("tokenizer_config.json", truncation_side="left"),
  "lower case": lambda path: (
    edit(path / LENGTH, do_lower_case=True),
    edit(path / "tokenizer_config.json", do_lower_case=False),
  ),
  "template of chats": settings(
    "tokenizer_config.json", chat_template="{{ messages }}"
  ),
  "no flag": pooling(),
  "three flags": pooling("cls", "mean", "max"),
  "weightedmean": pooling("weightedmean"),
  "mean_sqrt_len": pooling("mean_sqrt_len"),
  "list of 6.x": new_pooling(["lasttoken", "cls"]),
  "prompt not pooled, without one": pooling("mean", include_prompt=False),
  "prompt not pooled": lambda path: (
    edit(path / CARD, **PROMPTS, default_prompt_name="query"),
    new_pooling(["mean", "cls", "weightedmean", "lasttoken", "max"])(path),
    edit(path / "1_Pooling/config.json", include_prompt=False),
  ),
  "two dense, one without tanh": TWO_DENSE,
  "0_Transformer": in_a_subfolder,
  "shards of PyTorch, with a buffer": sharded_bin,
  "layer 1 and the last": {"pooling": "mean_first_last"},
  "an activation by another name": settings("config.json", hidden_act="quick_gelu"),
}
OUTPUT = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
REFUSED = {
  "default_prompt_name is 'x'": settings(CARD, default_prompt_name="x"),
  "model_type is 'CrossEncoder'": settings(CARD, model_type="CrossEncoder"),
  "similarity_fn_name is 'maxsim'": settings(CARD, similarity_fn_name="maxsim"),
  "truncate_dim is 99": settings(CARD, truncate_dim=99),
  "card_key is 1": settings(CARD, card_key=1),
  "include_prompt is 'no'": pooling("mean", include_prompt="no"),
  "pooling_key is True": pooling("mean", pooling_key=True),
  "tokenizer_args is": settings(LENGTH, tokenizer_args={"do_lower_case": False}),
  "processing_kwargs is": settings(LENGTH, processing_kwargs={"text": {"padding": 1}}),
  "transformer_task is 'fill-mask'": settings(LENGTH, transformer_task="fill-mask"),
  "modality_config is": settings(
    LENGTH, modality_config=OUTPUT, module_output_name="token_embeddings"
  ),
  "pruned_heads is": settings("config.json", pruned_heads={"0": [1]}),
  "is_decoder is True": settings("config.json", is_decoder=True),
  "rope_theta is 10000.0": settings("config.json", rope_theta=1e4),
  "type_vocab_size is not there: add it": settings("config.json", type_vocab_size=None),
  "module_output_name is 'x'": module("Normalize", module_output_name="x"),
  "use_residual is True": module("Dense", use_residual=True),
  "Transformer, Pooling, LayerNorm are not": module("LayerNorm"),
  "modules Transformer are not": without_pooling,
  "own_code.Pooling": foreign_pooling,
  "token_type_ids": second_type,
  "adapter_config.json": settings("adapter_config.json", peft_type="LORA"),
  "chat_template": lambda path: (
    edit(path / "tokenizer_config.json", chat_template="{{ messages }}"),
    (path / "modules.json").unlink(),
  ),
  "cannot use the tokenizer in .*: fetch": empty_charsmap,
}


def made(path, change):
  model = models.tiny_model(num_layers=3)
  if isinstance(change, dict):
    model, change = dataclasses.replace(model, **change), lambda path: None
  folder.save(model, path)
  (path / "SHA256SUMS").unlink()
  change(path)
  return path


def theirs(path):
  return sentence_transformers.SentenceTransformer(str(path), device="cpu")


@pytest.mark.parametrize("form", READ)
def test_a_form_is_read_as_sentence_transformers_reads_it_and_written_so(
  form, tmp_path
):
  path = made(tmp_path / "m", READ[form])
  expected = theirs(path).encode(TEXTS)
  encoder = SentenceEncoder(path)
  np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
  assert encoder.model.embedding_size == expected.shape[1]
  folder.save(encoder.model, tmp_path / "again")
  np.testing.assert_allclose(
    theirs(tmp_path / "again").encode(TEXTS), expected, atol=1e-5
  )
  again = folder.load(str(tmp_path / "again"))
  assert model_lib.identity(again) == model_lib.identity(encoder.model)


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_change_embeddings_is_refused_by_its_name(message, tmp_path):
  path = made(tmp_path / "m", REFUSED[message])
  with pytest.raises(UserError) as error:
    SentenceEncoder(path).encode(TEXTS)
  assert re.search(message, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not here")
@pytest.mark.slow
def test_every_form_found_so_far_is_read_or_refused(tmp_path):
  spec = importlib.util.spec_from_file_location("shared_folders", CASES)
  shared = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(shared)
  wrong = {}
  for name, make in shared.cases():
    make(tmp_path / name)
    expected, _ = shared.expected(tmp_path / name, make.texts)
    if expected is None and make.same_as:
      shared.CASES[make.same_as](tmp_path / f"{name}-plain")
      expected, _ = shared.expected(tmp_path / f"{name}-plain", make.texts)
    try:
      ours = SentenceEncoder(tmp_path / name).encode(make.texts)
    except UserError as error:
      if not make.refusal or not re.search(make.refusal, str(error)):
        wrong[name] = str(error)
      continue
    scale = 1 if expected is None else max(1, np.abs(expected).max())
    if expected is None or not np.abs(ours - expected).max() <= 1e-5 * scale:
      wrong[name] = "other embeddings"
  assert not wrong


@pytest.mark.parametrize("function", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_is_the_folders_own_and_stays_so(function, tmp_path):
  path = made(tmp_path / "m", settings(CARD, similarity_fn_name=function))
  encoder, there = SentenceEncoder(path), theirs(path)
  expected = there.similarity(there.encode(TEXTS[:3]), there.encode(TEXTS[3:5]))
  ours = encoder.similarity(TEXTS[:3], TEXTS[3:5])
  np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-5)
  one = encoder.similarity(TEXTS[0], TEXTS[3])
  assert one == pytest.approx(float(expected[0, 0]), rel=1e-4, abs=1e-5)
  folder.save(encoder.model, tmp_path / "copy")
  card = json.loads((tmp_path / "copy" / CARD).read_text())
  assert card["similarity_fn_name"] == function


@pytest.mark.parametrize(
  "sentences, message",
  [
    (["a", None], r"sentence 1 is a NoneType \(None\), not a string"),
    (["a", "b", float("nan")], r"sentence 2 is a float \(nan\), not a string"),
    ([("a", "b")], r"sentence 0 is a tuple"),
    ({"text": "a"}, r"sentences are a dict, not strings"),
  ],
)
def test_what_is_no_sentence_is_refused_with_its_place(sentences, message, tmp_path):
  encoder = SentenceEncoder(made(tmp_path / "m", READ["plain"]))
  with pytest.raises(UserError, match=message):
    encoder.encode(sentences)


def test_what_an_encoder_alone_is_pooled_by_is_said(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("dcse_jax"), "propagate", True)
  caplog.set_level(logging.INFO)
  path = made(tmp_path / "m", lambda path: (path / "modules.json").unlink())
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  tensors["classifier.weight"] = np.ones((1, 16), np.float32)
  safetensors.numpy.save_file(tensors, path / "model.safetensors", {"format": "pt"})
  assert SentenceEncoder(path).model.pooling == "cls"
  assert any("pooling: it is 'cls'" in message for message in caplog.messages)
  assert any("score pairs" in message for message in caplog.messages)


def test_a_text_of_any_length_has_the_tokens_that_it_has_in_whole():
  tokenizer = models.tiny_model().tokenizer
  sentences = [
    "A word. " * 4_000,
    " ".join(models.SENTENCES) * 3,
    "ab" * 9_000 + " a word " * 3_000,
    "\n" * 30_000 + "a word",
    "a-b_c d" * 5_000,
  ]
  for length in (3, 32, 500):
    whole = tokenizer(sentences, truncation=True, max_length=length)["input_ids"]
    assert model_lib.tokenize(tokenizer, sentences, length) == whole


def test_a_prompt_stands_in_training_in_evaluation_and_in_the_export(files):
  prompts = {**PROMPTS, "default_prompt_name": "query", "similarity_fn_name": "dot"}
  models.write_tiny_folder(files / "start", num_layers=1)
  edit(files / "start" / CARD, **prompts)
  config = from_files(files, "simcse", model=str(files / "start"))
  recipe = recipe_lib.read(config, workdir.Workdir(str(files / "run")))
  plain = folder.load(str(files / "start"))
  tokens = recipe.inputs.tokens(recipe.rounds["simcse"])
  expected = model_lib.tokenize(
    plain.tokenizer,
    ["the query: " + recipe.inputs.sentences(config, [0])[0]],
    config.max_length,
  )
  assert [ids.tolist() for ids in tokens.sentences(0, 1)] == expected
  recipe_lib.train(recipe)
  export = files / "run" / "export"
  card = json.loads((export / CARD).read_text())
  assert card == prompts
  assert convert.verify(export) <= 1e-5


def test_a_teacher_reads_its_own_prompt_and_two_poolings_side_by_side(files):
  models.write_tiny_folder(files / "t", seed=3, num_layers=1, pooling="mean+max")
  edit(files / "t" / CARD, **PROMPTS, default_prompt_name="query")
  config = from_files(files, recipe=("student",), max_length=24)
  config.rounds.student.teachers = (str(files / "t"),)
  config.rounds.student.seeds = (1,)
  recipe = recipe_lib.read(config, workdir.Workdir(str(files / "run")))
  student, teacher = recipe.rounds["student"], recipe.inputs.outside[str(files / "t")]
  tokens = recipe.inputs.teacher_tokens(str(files / "t"), student)
  cached = teacher_cache.build_teacher_cache(
    files / "cache", teacher, tokens, name="t", dtype="float32"
  )
  sentences = recipe.inputs.sentences(student, range(len(tokens)))
  encoder = SentenceEncoder(files / "t", max_length=24)
  expected = encoder.encode(sentences, normalize_embeddings=True)
  assert expected.shape == (len(sentences), 32)
  np.testing.assert_allclose(cached, expected, atol=1e-6)
  # The same holds where it runs at every step.
  batch = stacks_lib.TeacherTokens([tokens]).gather(np.arange(8))
  stacks, params = stacks_lib.stack_teachers([teacher], [1.0], [0])
  online = stacks_lib.teacher_embeddings(params, stacks, batch, dtype="float32")
  np.testing.assert_allclose(online, expected[:8], atol=1e-5)


def test_a_workdir_of_the_earlier_mean_first_last_does_not_go_on_as_another(files):
  config = from_files(files, "simcse", pooling="mean_first_last")
  recipe_lib.run(config, str(files / "run"))
  origin = json.loads((files / "run/simcse/origin.json").read_text())
  origin["material"]["pooling"] = "mean_first_last"  # The name that was written before.
  (files / "run/simcse/origin.json").write_text(json.dumps(origin))
  with pytest.raises(UserError, match="pooling was 'mean_first_last' and is .*layer 1"):
    recipe_lib.run(config, str(files / "run"))
  # Under its present name the same run continues.
  config.pooling = "mean_embedding_last"
  recipe_lib.run(config, str(files / "run"))


@pytest.mark.parametrize(
  "pooling",
  [
    *(name for name, each in pooling_lib.POOLINGS.items() if each.joins),
    "mean+max",
  ],
)
def test_a_poolings_gradient_reaches_tokens_and_never_padding(pooling):
  mask = np.arange(5) < np.asarray([[5], [3], [0]])
  states = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
  total = lambda x: (pooling_lib.get(pooling).reduce(x, mask) ** 2)[:2].sum()
  gradient = np.asarray(jax.grad(total)(states))
  assert np.isfinite(gradient).all() and not gradient[~mask].any()
  assert (np.abs(gradient[:2]).sum(axis=(1, 2)) > 0).all()

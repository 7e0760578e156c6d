"""The encoder and its weights, against PyTorch and there and back."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
import sentence_transformers
import torch
import transformers

from dcse_jax import SentenceEncoder
from dcse_jax.hub import folder
from dcse_jax.hub import huggingface
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.pooling import POOLINGS
from dcse_jax.runtime.errors import UserError
from tests import models

SHAPE = dict(
  vocab_size=120,
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=40,
  max_position_embeddings=40,
)


def random_torch_model(kind):
  """A PyTorch model whose biases and LayerNorm weights are random too."""
  torch.manual_seed(0)
  configs = {
    "bert": transformers.BertConfig(**SHAPE),
    "roberta": transformers.RobertaConfig(
      **SHAPE, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5
    ),
  }
  model = transformers.AutoModel.from_config(configs[kind]).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "LayerNorm.weight" in name:
        parameter.uniform_(0.5, 1.5)
      else:
        parameter.normal_(0.0, 0.1)
  return model


def save_torch(model, path):
  model.save_pretrained(path)
  return pathlib.Path(path)


def read(path):
  config = dataclasses.replace(huggingface.read_config(path), has_pooler=True)
  return huggingface.from_tensors(read_tensors(path), config), config


def padded_inputs(pad_token_id):
  rng = np.random.default_rng(0)
  mask = np.arange(16) < np.asarray([16, 9, 2, 1])[:, None]
  ids = np.where(mask, rng.integers(5, 120, (4, 16)), pad_token_id)
  return ids, mask


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_hidden_states_equal_pytorch_with_padding(kind, tmp_path):
  model = random_torch_model(kind)
  params, config = read(save_torch(model, tmp_path))
  ids, mask = padded_inputs(config.pad_token_id)
  with torch.no_grad():
    expected = model(
      input_ids=torch.tensor(ids),
      attention_mask=torch.tensor(mask.astype(int)),
      output_hidden_states=True,
    ).hidden_states
  states = jax.jit(lambda p: encoder_lib.hidden_states(p, config, ids, mask))(params)
  for ours, theirs in zip(states, (expected[0], expected[-2], expected[-1])):
    np.testing.assert_allclose(np.asarray(ours)[mask], theirs.numpy()[mask], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_weights_come_back_bitwise_from_our_tree(kind, tmp_path):
  tensors = safetensors.numpy.load_file(
    save_torch(random_torch_model(kind), tmp_path) / "model.safetensors"
  )
  params, config = read(tmp_path)
  back = huggingface.to_tensors(params, config)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_sharded_weights_equal_one_file(tmp_path):
  model = random_torch_model("bert")
  model.save_pretrained(tmp_path / "one")
  model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
  assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
  one, _ = read(tmp_path / "one")
  many, _ = read(tmp_path / "many")
  jax.tree.map(np.testing.assert_array_equal, one, many)


def test_heads_prefixes_and_old_names_of_a_checkpoint_are_understood(tmp_path):
  params, config = read(save_torch(random_torch_model("bert"), tmp_path))
  old = {
    f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): tensor
    for name, tensor in huggingface.to_tensors(params, config).items()
  }
  old["cls.predictions.bias"] = np.zeros(120, np.float32)
  old["bert.embeddings.position_ids"] = np.arange(40)[None]
  jax.tree.map(
    np.testing.assert_array_equal, huggingface.from_tensors(old, config), params
  )


def test_every_unknown_missing_and_misshapen_tensor_is_named(tmp_path):
  params, config = read(save_torch(random_torch_model("bert"), tmp_path))
  tensors = huggingface.to_tensors(params, config)
  del tensors["encoder.layer.1.output.dense.bias"]
  del tensors["embeddings.LayerNorm.weight"]
  tensors["encoder.layer.0.adapter.weight"] = np.zeros(3, np.float32)
  tensors["pooler.dense.bias"] = np.zeros(7, np.float32)
  with pytest.raises(UserError) as error:
    huggingface.from_tensors(tensors, config)
  for part in (
    "encoder.layer.1.output.dense.bias is missing",
    "embeddings.LayerNorm.weight is missing",
    "encoder.layer.0.adapter.weight is not known",
    "pooler.dense.bias has shape (7,), not (24,)",
  ):
    assert part in str(error.value)


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
  with pytest.raises(UserError, match="unknown architecture 't5'.*roberta"):
    folder.load(str(tmp_path))


@pytest.mark.parametrize(
  "pooling",
  [
    *(p for p in POOLINGS if p != "cls_before_pooler"),
    "mean+cls",
    "cls+max",
  ],
)
def test_an_exported_folder_embeds_the_same_in_sentence_transformers(pooling, tmp_path):
  path = models.write_tiny_folder(tmp_path / "export", pooling=pooling, num_layers=3)
  sentences = models.SENTENCES[:5] + ["A word."]
  ours = SentenceEncoder(path).encode(sentences)
  theirs = sentence_transformers.SentenceTransformer(path, device="cpu")
  np.testing.assert_allclose(ours, theirs.encode(sentences), atol=1e-5)
  assert folder.load(path).pooling == pooling


def test_an_exported_folder_loads_in_transformers_without_a_missing_weight(
  tmp_path,
):
  model = models.tiny_model()
  params = dict(model.params)
  config = dataclasses.replace(model.config, has_pooler=True)
  params["pooler"] = encoder_lib.init_params(config, jax.random.key(1))["pooler"]
  model = dataclasses.replace(model, config=config, params=params)
  folder.save(model, tmp_path / "export")
  _, info = transformers.AutoModel.from_pretrained(
    tmp_path / "export", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_folder_without_modules_takes_the_default_pooling(tmp_path):
  path = models.write_tiny_folder(tmp_path / "m", pooling="mean")
  (tmp_path / "m" / "modules.json").unlink()
  assert folder.load(path, default_pooling="mean_top2").pooling == "mean_top2"
  assert folder.load(path).pooling == "cls"


def test_a_normalising_folder_gives_unit_embeddings(tmp_path):
  model = dataclasses.replace(models.tiny_model(), normalize=True)
  folder.save(model, tmp_path / "m")
  embeddings = SentenceEncoder(tmp_path / "m").encode(models.SENTENCES[:3])
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
  theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
  np.testing.assert_allclose(embeddings, theirs.encode(models.SENTENCES[:3]), atol=1e-5)


def test_the_first_layers_alone_give_the_state_after_them(tmp_path):
  model = random_torch_model("bert")
  params, config = read(save_torch(model, tmp_path))
  ids, mask = padded_inputs(0)
  with torch.no_grad():
    expected = model(
      input_ids=torch.tensor(ids),
      attention_mask=torch.tensor(mask.astype(int)),
      output_hidden_states=True,
    ).hidden_states[2]
  params, config = encoder_lib.keep_layers(params, config, 2)
  *_, last = encoder_lib.hidden_states(params, config, ids, mask)
  np.testing.assert_allclose(np.asarray(last)[mask], expected.numpy()[mask], atol=1e-5)


def test_embeddings_do_not_depend_on_the_batch_or_the_padding(tmp_path):
  encoder = SentenceEncoder(models.write_tiny_folder(tmp_path / "m"))
  sentences = ["A cat.", *models.SENTENCES[:6]]
  together = encoder.encode(sentences)
  for sentence, row in zip(sentences, together):
    np.testing.assert_allclose(encoder.encode(sentence), row, atol=1e-5)
  np.testing.assert_allclose(
    encoder.encode(sentences, batch_size=2), together, atol=1e-5
  )
  assert encoder.encode([]).shape == (0, 16)


def test_dropout_draws_independent_masks_for_equal_rows():
  model = models.tiny_model(dropout=0.5)
  batch = models.random_batch(0, batch=1)
  ids, mask = batch["input_ids"][:, 0], batch["attention_mask"][:, 0]
  embed = lambda rng: encoder_lib.encode(
    model.params,
    model.config,
    np.repeat(ids, 2, 0),
    np.repeat(mask, 2, 0),
    pooling="mean",
    rng=rng,
  )
  first, second = embed(jax.random.key(0))
  assert np.abs(first - second).max() > 0.01
  np.testing.assert_array_equal(embed(jax.random.key(0))[0], first)
  plain = embed(None)
  np.testing.assert_allclose(plain[0], plain[1], atol=1e-6)

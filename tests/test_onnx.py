"""Folders as ONNX: the numbers of the model, by onnxruntime and sentence-transformers."""

import dataclasses

import numpy as np
import pytest
import transformers

from dcse_jax import SentenceEncoder
from dcse_jax import convert
from dcse_jax.embed import onnx_export
from dcse_jax.hub import folder
from dcse_jax.runtime.errors import UserError
from tests import families
from tests import models
from tests import vocabularies
from tests.hub import test_families
from tests.model import test_bert_kin


def test_without_onnx_convert_says_what_to_install(tmp_path, monkeypatch):
  find = lambda name: None if name == "onnxruntime" else object()
  monkeypatch.setattr(onnx_export.importlib.util, "find_spec", find)
  with pytest.raises(UserError, match=r"needs onnxruntime, .*'dcse_jax\[onnx\]'"):
    onnx_export.check_installed()


needs_onnx = pytest.mark.skipif(
  not all(map(onnx_export.importlib.util.find_spec, ("onnxruntime", "onnxscript"))),
  reason="needs onnxruntime and onnxscript",
)


KIN = test_bert_kin.FAMILIES | {
  "roberta": test_bert_kin.Family(transformers.RobertaConfig, "roberta")
}


def make(kind, path):
  """Makes a random model of a family."""
  if kind == "bert":
    # With all that may follow the encoder.
    return dataclasses.replace(models.tiny_model(), normalize=True, truncate_dim=10)
  if kind in KIN:
    tokenizer = vocabularies.KINDS[KIN[kind].vocabulary]()
    config = KIN[kind].make(test_bert_kin.SHAPE, len(tokenizer))
    test_bert_kin.random_torch(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
  else:
    test_families.write_folder(path, kind)
  model = folder.load(str(path), default_pooling="mean")
  return dataclasses.replace(model, max_length=min(model.max_length, 48))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", *KIN, *families.SHAPES])
def test_a_graph_has_the_models_numbers_for_any_batch(kind, tmp_path, capsys):
  model = make(kind, tmp_path / "theirs")
  folder.save(
    model, tmp_path / "m", lambda new: convert.write_onnx(new, model, int8=True)
  )
  assert "onnx/model.onnx: embeddings differ by" in capsys.readouterr().out
  # Longer than a window, and as unlike in length as a batch may be.
  sentences = [*models.SENTENCES[:5], " ".join(models.SENTENCES[:8]), "", "a"]
  ours = SentenceEncoder(tmp_path / "m").encode(sentences)
  encoder = onnx_export.OnnxEncoder(tmp_path / "m/onnx/model.onnx", model)
  for batch_size in (1, 3, 64):
    found = encoder.encode(sentences, batch_size=batch_size)
    np.testing.assert_allclose(found, ours, atol=1e-4)
  small = onnx_export.OnnxEncoder(tmp_path / "m/onnx/model_int8.onnx", model)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  assert np.sum(unit(small.encode(sentences)) * unit(ours), axis=1).min() > 0.9

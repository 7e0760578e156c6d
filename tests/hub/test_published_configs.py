"""Published configs: each is read as transformers reads it, or refused in one line."""

import json

import jax
import pytest
import torch
import transformers

from dcse_jax.hub import huggingface
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.runtime.errors import UserError
from tests.hub import published


def read(folder, config):
  (folder / "config.json").write_text(json.dumps(config))
  return huggingface.read_config(folder)


def test_there_are_configs_of_every_family():
  known = {config["model_type"] for config in published.READ.values()}
  assert known >= {*"bert roberta xlm-roberta camembert mpnet distilbert".split()}
  assert known >= {*"electra albert modernbert nomic_bert qwen3 gemma3_text".split()}
  assert len(published.READ) >= 25


@pytest.mark.parametrize("name", published.READ)
def test_a_published_config_is_read_with_as_many_weights_as_transformers_makes(
  name, tmp_path
):
  config = published.READ[name]
  ours = read(tmp_path, config)
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert ours.model_type == theirs.model_type
  assert ours.vocab_size == theirs.vocab_size
  for field, their_field in (
    ("hidden_size", "hidden_size"),
    ("num_layers", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
    ("max_positions", "max_position_embeddings"),
  ):
    assert getattr(ours, field) == getattr(theirs, their_field)
  with torch.device("meta"):
    model = transformers.AutoModel.from_config(theirs)
  expected = sum(parameter.numel() for parameter in model.parameters())
  leaves = jax.tree.leaves(encoder_lib.abstract_params(ours))
  count = sum(leaf.size for leaf in leaves)
  if config["model_type"] == "modernbert":
    # The first layer's norm has a place here and no weights there.
    count -= ours.hidden_size
  assert count == expected
  # And what is written is read as the same.
  assert read(tmp_path, huggingface.config_to_json(ours)) == ours


@pytest.mark.parametrize("name", published.REFUSED)
def test_a_config_of_another_kind_is_refused_in_one_line(name, tmp_path):
  config, message = published.REFUSED[name]
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path, config)
  assert "\n" not in str(error.value)

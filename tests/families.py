"""Random PyTorch models of every rotary family, and what they compute."""

import pathlib

import numpy as np
import pytest
import torch
import transformers

from dcse_jax.hub import huggingface
from dcse_jax.hub.tensors import read_tensors

_TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_COMMON = dict(vocab_size=120, hidden_size=24, intermediate_size=40, **_TOKENS)
_DECODER = dict(_COMMON, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
_SLIDING = ["full_attention", "sliding_attention", "sliding_attention"]

# Three shapes of each family: small; with other numbers; with all that may differ.
SHAPES = {
  "modernbert": (
    transformers.ModernBertConfig,
    dict(
      _COMMON,
      num_hidden_layers=4,
      num_attention_heads=4,
      local_attention=8,
      cls_token_id=1,
      sep_token_id=2,
    ),
    dict(num_hidden_layers=3, num_attention_heads=2, hidden_activation="silu"),
    dict(
      num_hidden_layers=3,
      layer_types=_SLIDING[::-1],
      attention_bias=True,
      mlp_bias=True,
      norm_bias=True,
      classifier_bias=True,
    ),
  ),
  "nomic_bert": (
    transformers.NomicBertConfig,
    dict(_COMMON, num_hidden_layers=2, num_attention_heads=4),
    dict(num_hidden_layers=1, num_attention_heads=2, hidden_act="gelu"),
    dict(
      type_vocab_size=1, rope_parameters={"rope_type": "default", "rope_theta": 9e3}
    ),
  ),
  "qwen3": (
    transformers.Qwen3Config,
    dict(_DECODER, num_hidden_layers=2),
    dict(num_hidden_layers=2, num_key_value_heads=4, head_dim=6),
    dict(
      attention_bias=True,
      use_sliding_window=True,
      sliding_window=5,
      max_window_layers=1,
      rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
  ),
  "gemma3_text": (
    transformers.Gemma3TextConfig,
    dict(
      _DECODER,
      num_hidden_layers=4,
      layer_types=[*_SLIDING[1:], *_SLIDING[:2]],
      sliding_window=8,
      query_pre_attn_scalar=16,
      use_bidirectional_attention=True,
    ),
    dict(num_hidden_layers=2, num_key_value_heads=1, layer_types=_SLIDING[:2]),
    dict(use_bidirectional_attention=False, attention_bias=True),
  ),
}
# Those with a masked-language model.
ENCODERS = {
  "modernbert": transformers.ModernBertForMaskedLM,
  "nomic_bert": transformers.NomicBertForMaskedLM,
}


def quickly(*kinds):
  """All families, of which these are enough for the quick tests."""
  slow = pytest.mark.slow
  return [k if k in kinds else pytest.param(k, marks=slow) for k in SHAPES]


def make_torch(kind, shape=0, make=transformers.AutoModel.from_config, **changes):
  """Makes a model whose biases and norms are random too."""
  torch.manual_seed(shape)
  config_class, *shapes = SHAPES[kind]
  fields = shapes[0] | (shapes[shape] if shape else {}) | changes
  model = make(config_class(max_position_embeddings=2048, **fields)).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "norm" in name.lower() and name.endswith("weight"):
        # Gemma's weights are less one.
        low = -0.5 if kind == "gemma3_text" else 0.5
        parameter.uniform_(low, low + 1)
      else:
        parameter.normal_(0.0, 0.1)
  return model


def read(path):
  """Reads our parameters and shape of a saved model."""
  config = huggingface.read_config(pathlib.Path(path))
  return huggingface.from_tensors(read_tensors(pathlib.Path(path)), config), config


def padded_inputs(length, seed=0):
  """Draws token ids and a mask, [4, S]: a full row, a half one, and two short ones."""
  rng = np.random.default_rng(seed)
  mask = np.arange(length) < np.asarray([length, length // 2, 2, 1])[:, None]
  return np.where(mask, rng.integers(5, 120, mask.shape), 0), mask


def torch_states(model, ids, mask):
  """Computes the states after the embeddings, before the last layer and at the end."""
  found = model(
    input_ids=torch.tensor(ids),
    attention_mask=torch.tensor(mask.astype(int)),
    output_hidden_states=True,
  )
  return found.hidden_states[0], found.hidden_states[-2], found.last_hidden_state

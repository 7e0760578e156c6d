"""DistilBERT as Hugging Face has it: BERT without segments or pooler, other names.

Holds what `huggingface` needs of a family; the module is `bert`'s.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from dcse_jax.hub import bert as names
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import LINEAR
from dcse_jax.hub.tables import NORM
from dcse_jax.model import bert

ARCHITECTURES = {"distilbert": "DistilBertModel"}
_LAYER = "transformer.layer.{i}"
TENSORS = {
  "embeddings.word": names.TENSORS["embeddings.word"],
  "embeddings.position": names.TENSORS["embeddings.position"],
  "embeddings.norm": names.TENSORS["embeddings.norm"],
  "layers.query": (f"{_LAYER}.attention.q_lin", LINEAR),
  "layers.key": (f"{_LAYER}.attention.k_lin", LINEAR),
  "layers.value": (f"{_LAYER}.attention.v_lin", LINEAR),
  "layers.attention_output": (f"{_LAYER}.attention.out_lin", LINEAR),
  "layers.attention_norm": (f"{_LAYER}.sa_layer_norm", NORM),
  "layers.up": (f"{_LAYER}.ffn.lin1", LINEAR),
  "layers.down": (f"{_LAYER}.ffn.lin2", LINEAR),
  "layers.norm": (f"{_LAYER}.output_layer_norm", NORM),
}
_HEAD = {
  "dense": ("vocab_transform", LINEAR),
  "norm": ("vocab_layer_norm", NORM),
  "": ("vocab_projector", {"bias": "bias"}),
  "decoder": ("vocab_projector", EMBEDDING),
}
ABSENT: dict[str, float] = {}
IGNORED = re.compile(
  r"embeddings\.position_ids|"
  r"(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier|"
  r"qa_outputs|mlp)\..*"
)
rename = names.rename

_SIZES = {
  "vocab_size": "vocab_size",
  "dim": "hidden_size",
  "n_layers": "num_layers",
  "n_heads": "num_heads",
  "hidden_dim": "intermediate_size",
  "max_position_embeddings": "max_positions",
}
_FRACTIONS = {
  "dropout": ("dropout", 0.1),
  "attention_dropout": ("attention_dropout", 0.1),
  "initializer_range": ("initializer_range", 0.02),
}
# Names that transformers takes in place of its own.
_OTHER_NAMES = {
  "hidden_size": "dim",
  "num_attention_heads": "n_heads",
  "num_hidden_layers": "n_layers",
}
READ = {
  *_SIZES,
  *_FRACTIONS,
  *_OTHER_NAMES,
  "model_type",
  "activation",
  "pad_token_id",
}
# Positions begin as sinusoids, which the weights hold.
HARMLESS = {
  "qa_dropout",
  "seq_classif_dropout",
  "sinusoidal_pos_embds",
  "tie_weights_",
}


def read_config(settings: Settings) -> bert.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: no encoder has such numbers.
  """
  values = dict(settings.values)
  for other, own in _OTHER_NAMES.items():
    value = values.setdefault(own, values.get(other))
    is_right = values.get(other, value) == value
    settings.check(other, values.get(other), is_right, f"{value!r}, as {own}")
  settings = dataclasses.replace(
    settings, values={name: v for name, v in values.items() if v is not None}
  )
  return bert.EncoderConfig(
    **names.read_fields(settings, _SIZES, _FRACTIONS, "activation"),
    type_vocab_size=0,
    pad_token_id=settings.token_id("pad_token_id", 0),
  )


def config_to_json(config: bert.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  content = names.write_fields(config, _SIZES, _FRACTIONS, ARCHITECTURES)
  return {**content, "activation": config.activation}


def head_tensors(
  config: bert.EncoderConfig,
) -> Mapping[str, tuple[str, Mapping[str, str]]]:
  """Returns the table like `TENSORS` for the masked-language model's head."""
  return _HEAD

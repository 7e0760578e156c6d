"""ALBERT as Hugging Face has it: what `huggingface` needs of a family."""

from collections.abc import Mapping
import re
from typing import Any

from dcse_jax.hub import bert as names
from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import LINEAR
from dcse_jax.hub.tables import NORM
from dcse_jax.model import albert

ARCHITECTURES = {"albert": "AlbertModel"}
_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
TENSORS = {
  "embeddings.word": names.TENSORS["embeddings.word"],
  "embeddings.position": names.TENSORS["embeddings.position"],
  "embeddings.token_type": names.TENSORS["embeddings.token_type"],
  "embeddings.norm": names.TENSORS["embeddings.norm"],
  "embeddings.project": ("encoder.embedding_hidden_mapping_in", LINEAR),
  "layers.query": (f"{_LAYER}.attention.query", LINEAR),
  "layers.key": (f"{_LAYER}.attention.key", LINEAR),
  "layers.value": (f"{_LAYER}.attention.value", LINEAR),
  "layers.attention_output": (f"{_LAYER}.attention.dense", LINEAR),
  "layers.attention_norm": (f"{_LAYER}.attention.LayerNorm", NORM),
  "layers.up": (f"{_LAYER}.ffn", LINEAR),
  "layers.down": (f"{_LAYER}.ffn_output", LINEAR),
  "layers.norm": (f"{_LAYER}.full_layer_layer_norm", NORM),
  "pooler": ("pooler", LINEAR),
}
_HEAD = {
  "dense": ("predictions.dense", LINEAR),
  "norm": ("predictions.LayerNorm", NORM),
  "": ("predictions", {"bias": "bias"}),
  "decoder": ("predictions.decoder", EMBEDDING),
}
ABSENT: dict[str, float] = {}
IGNORED = re.compile(
  r"embeddings\.(position_ids|token_type_ids)|"
  r"(predictions|sop_classifier|classifier|qa_outputs|mlp)\..*"
)
rename = names.rename

_SIZES = {
  **SIZES,
  "type_vocab_size": "type_vocab_size",
  "embedding_size": "embedding_size",
}
_FRACTIONS = {
  **names.FRACTIONS,
  "hidden_dropout_prob": ("dropout", 0.0),
  "attention_probs_dropout_prob": ("attention_dropout", 0.0),
}
_GROUPS = ("num_hidden_groups", "inner_group_num")
READ = {*names.READ, *_SIZES, *_GROUPS}
HARMLESS = {
  "classifier_dropout_prob",
  "down_scale_factor",
  "gap_size",
  "net_structure_type",
  "num_memory_blocks",
}


def read_config(settings: Settings) -> albert.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: the kind of encoder is not supported, or no encoder has such numbers.
  """
  settings.choice("position_embedding_type", "absolute", ["absolute"])
  for name in _GROUPS:
    number = settings.values.get(name, 1)
    settings.check(name, number, number == 1, "1: no other groups are supported")
  return albert.EncoderConfig(
    **names.read_fields(settings, _SIZES, _FRACTIONS, "hidden_act", "gelu_new"),
    pad_token_id=settings.token_id("pad_token_id", 0),
    has_pooler=True,
  )


def config_to_json(config: albert.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  content = names.write_fields(config, _SIZES, _FRACTIONS, ARCHITECTURES)
  return {**content, "hidden_act": config.activation}


def head_tensors(
  config: albert.EncoderConfig,
) -> Mapping[str, tuple[str, Mapping[str, str]]]:
  """Returns the table like `TENSORS` for the masked-language model's head."""
  return _HEAD

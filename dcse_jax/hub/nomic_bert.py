"""NomicBERT as transformers 5.24 and later read and write it, without its own code.

Tensors have the names of the code that it came with, config.json has new ones. This
holds what `huggingface` needs of a family: config.json's keys, and the tensors' names.
"""

from collections.abc import Mapping
import re
from typing import Any

from dcse_jax.hub import rotary
from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import LINEAR
from dcse_jax.hub.tables import NORM
from dcse_jax.hub.tables import without_prefix
from dcse_jax.model import nomic_bert

# The class that transformers names in config.json, by model_type.
ARCHITECTURES = {"nomic_bert": "NomicBertModel"}

# The encoder's module -> (Hugging Face module, its parameters), as `tables` has it.
TENSORS = {
  "embeddings.word": ("embeddings.word_embeddings", EMBEDDING),
  "embeddings.token_type": ("embeddings.token_type_embeddings", EMBEDDING),
  "embeddings.norm": ("emb_ln", NORM),
  "layers.attention.query": ("encoder.layers.{i}.attn.Wqkv", LINEAR, (0, 3)),
  "layers.attention.key": ("encoder.layers.{i}.attn.Wqkv", LINEAR, (1, 3)),
  "layers.attention.value": ("encoder.layers.{i}.attn.Wqkv", LINEAR, (2, 3)),
  "layers.attention.output": ("encoder.layers.{i}.attn.out_proj", LINEAR),
  "layers.attention_norm": ("encoder.layers.{i}.norm1", NORM),
  "layers.mlp.gate": ("encoder.layers.{i}.mlp.fc12", LINEAR),
  "layers.mlp.up": ("encoder.layers.{i}.mlp.fc11", LINEAR),
  "layers.mlp.down": ("encoder.layers.{i}.mlp.fc2", LINEAR),
  "layers.norm": ("encoder.layers.{i}.norm2", NORM),
}
# The same table for a masked-language model's head.
_HEAD = {
  "dense": ("cls.predictions.transform.dense", LINEAR),
  "norm": ("cls.predictions.transform.layer_norm", NORM),
  "": ("cls.predictions", {"bias": "bias"}),
  "decoder": ("cls.predictions.decoder", EMBEDDING),
}
ABSENT: dict[str, float] = {}
# What a checkpoint may hold besides the encoder: buffers, and heads.
IGNORED = re.compile(
  r"(rotary_emb\.)?(original_)?inv_freq|(cls|classifier|qa_outputs|pooler)\..*"
)

_FRACTIONS = {
  "layer_norm_eps": ("layer_norm_eps", 1e-12),
  "initializer_range": ("initializer_range", 0.02),
  "hidden_dropout_prob": ("dropout", 0.0),
  "attention_probs_dropout_prob": ("attention_dropout", 0.0),
}
# The keys that are read here.
READ = {
  *SIZES,
  *_FRACTIONS,
  "model_type",
  "hidden_act",
  "head_dim",
  "pad_token_id",
  "rope_parameters",
  "rope_scaling",
  "rope_theta",
  "type_vocab_size",
}
# Keys of this family that change no embedding.
HARMLESS: set[str] = set()


def read_config(settings: Settings) -> nomic_bert.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: the kind of encoder is not supported, or no encoder has such numbers.
  """
  fields = rotary.read_fields(
    settings,
    fractions=_FRACTIONS,
    activation="hidden_act",
    default_activation="silu",
    default_pad=0,
  )
  rotary.check_heads(settings, fields)
  size, head = fields["hidden_size"] // fields["num_heads"], settings.values
  is_right = head.get("head_dim") in (None, size)
  settings.check("head_dim", head.get("head_dim"), is_right, f"{size}, a head's share")
  return nomic_bert.EncoderConfig(
    type_vocab_size=settings.size("type_vocab_size"),
    theta=rotary.read_theta(settings, None, "rope_theta", 1000.0),
    **fields,
  )


def config_to_json(config: nomic_bert.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  return {
    "architectures": [ARCHITECTURES[config.model_type]],
    "model_type": config.model_type,
    **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
    **{theirs: getattr(config, ours) for theirs, (ours, _) in _FRACTIONS.items()},
    "hidden_act": config.activation,
    "type_vocab_size": config.type_vocab_size,
    "rope_parameters": rotary.rope_to_json(config.theta),
    "pad_token_id": config.pad_token_id,
    "dtype": "float32",
  }


def rename(name: str) -> str:
  """Returns a tensor's name without the model's prefix."""
  return without_prefix(name, "nomic_bert")


def head_tensors(
  config: nomic_bert.EncoderConfig,
) -> Mapping[str, tuple[str, Mapping[str, str]]]:
  """Returns the table like `TENSORS` for the masked-language model's head."""
  return _HEAD

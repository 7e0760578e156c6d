"""BERT, RoBERTa, XLM-R and CamemBERT as Hugging Face has them.

Holds what `huggingface` needs of a family: config.json's keys, and the tensors' names.
"""

from collections.abc import Mapping
import re
from typing import Any

from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import LINEAR
from dcse_jax.hub.tables import NORM
from dcse_jax.model import bert
from dcse_jax.model import layers

# The class that transformers names in config.json, by model_type.
ARCHITECTURES = {
  "bert": "BertModel",
  "roberta": "RobertaModel",
  "xlm-roberta": "XLMRobertaModel",
  "camembert": "CamembertModel",
}

# The encoder's module -> (Hugging Face module, its parameters), as `tables` has it.
TENSORS = {
  "embeddings.word": ("embeddings.word_embeddings", EMBEDDING),
  "embeddings.position": ("embeddings.position_embeddings", EMBEDDING),
  "embeddings.token_type": ("embeddings.token_type_embeddings", EMBEDDING),
  "embeddings.norm": ("embeddings.LayerNorm", NORM),
  "layers.query": ("encoder.layer.{i}.attention.self.query", LINEAR),
  "layers.key": ("encoder.layer.{i}.attention.self.key", LINEAR),
  "layers.value": ("encoder.layer.{i}.attention.self.value", LINEAR),
  "layers.attention_output": (
    "encoder.layer.{i}.attention.output.dense",
    LINEAR,
  ),
  "layers.attention_norm": (
    "encoder.layer.{i}.attention.output.LayerNorm",
    NORM,
  ),
  "layers.up": ("encoder.layer.{i}.intermediate.dense", LINEAR),
  "layers.down": ("encoder.layer.{i}.output.dense", LINEAR),
  "layers.norm": ("encoder.layer.{i}.output.LayerNorm", NORM),
  "pooler": ("pooler.dense", LINEAR),
}

# The same table for a masked-language model's head, whose decoder has a matrix of its own
# only where config.json says so.
_BERT_HEAD = {
  "dense": ("cls.predictions.transform.dense", LINEAR),
  "norm": ("cls.predictions.transform.LayerNorm", NORM),
  "": ("cls.predictions", {"bias": "bias"}),
  "decoder": ("cls.predictions.decoder", EMBEDDING),
}
ROBERTA_HEAD = {
  "dense": ("lm_head.dense", LINEAR),
  "norm": ("lm_head.layer_norm", NORM),
  "": ("lm_head", {"bias": "bias"}),
  "decoder": ("lm_head.decoder", EMBEDDING),
}

# Parameters of ours that no checkpoint holds.
ABSENT: dict[str, float] = {}
# What a checkpoint may hold besides the encoder: buffers that old releases
# saved, and the heads of other tasks.
IGNORED = re.compile(
  r"embeddings\.(position_ids|token_type_ids)|"
  r"(cls|lm_head|classifier|qa_outputs|mlp)\..*"
)
_PREFIX = re.compile(r"(bert|roberta|mpnet|distilbert|electra|albert)\.")
# Names in checkpoints that were converted from TensorFlow.
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}

# config.json's fractions of 1 and the fields of `bert.EncoderConfig`, with their defaults.
FRACTIONS = {
  "layer_norm_eps": ("layer_norm_eps", 1e-12),
  "hidden_dropout_prob": ("dropout", 0.1),
  "attention_probs_dropout_prob": ("attention_dropout", 0.1),
  "initializer_range": ("initializer_range", 0.02),
}
# The keys that are read here.
READ = {
  *SIZES,
  *FRACTIONS,
  "type_vocab_size",
  "model_type",
  "hidden_act",
  "pad_token_id",
  "position_embedding_type",
}
# Keys of this family that change no embedding.
HARMLESS = {
  "directionality",
  "pooler_fc_size",
  "pooler_num_attention_heads",
  "pooler_num_fc_layers",
  "pooler_size_per_head",
  "pooler_type",
}


def read_config(settings: Settings) -> bert.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: the kind of encoder is not supported, or no encoder has such numbers.
  """
  model_type = settings.take("model_type")
  settings.choice("position_embedding_type", "absolute", ["absolute"])
  config = bert.EncoderConfig(
    **read_fields(settings, SIZES, FRACTIONS, "hidden_act"),
    type_vocab_size=settings.size("type_vocab_size"),
    pad_token_id=settings.token_id("pad_token_id", 0 if model_type == "bert" else 1),
    has_pooler=True,
  )
  check_length(settings, config)
  return config


def read_fields(
  settings: Settings,
  sizes: Mapping[str, str],
  fractions: Mapping[str, tuple[str, float]],
  activation: str,
  default_activation: str = "gelu",
) -> dict[str, Any]:
  """Reads fields of `bert.EncoderConfig`.

  Args:
    settings: those of config.json.
    sizes: a table like `settings.SIZES`.
    fractions: a table like `FRACTIONS`.
    activation: the activation's name there.
    default_activation: stands for an activation that is not there.
  """
  fields = {field: settings.size(name) for name, field in sizes.items()}
  for name, (field, default) in fractions.items():
    fields[field] = settings.fraction(name, default)
  names = {field: name for name, field in sizes.items()}
  heads, width = fields["num_heads"], names["hidden_size"]
  is_right = fields["hidden_size"] % heads == 0
  settings.check(names["num_heads"], heads, is_right, f"a divisor of {width}")
  fields["activation"] = settings.choice(
    activation, default_activation, layers.ACTIVATIONS
  )
  return {"model_type": settings.take("model_type"), **fields}


def check_length(settings: Settings, config: bert.EncoderConfig) -> None:
  """Refuses a shape that takes no token."""
  longest, is_right = config.max_positions, config.max_tokens > 0
  settings.check("max_position_embeddings", longest, is_right, "above pad_token_id")


def config_to_json(config: bert.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  content = write_fields(config, SIZES, FRACTIONS, ARCHITECTURES)
  return {
    **content,
    "type_vocab_size": config.type_vocab_size,
    "hidden_act": config.activation,
  }


def write_fields(
  config: bert.EncoderConfig,
  sizes: Mapping[str, str],
  fractions: Mapping[str, tuple[str, float]],
  architectures: Mapping[str, str],
) -> dict[str, Any]:
  """Inverts `read_fields`, but for the activation's name."""
  content = {name: getattr(config, field) for name, field in sizes.items()}
  content |= {name: getattr(config, field) for name, (field, _) in fractions.items()}
  return {
    "architectures": [architectures[config.model_type]],
    "model_type": config.model_type,
    **content,
    "pad_token_id": config.pad_token_id,
    "dtype": "float32",
  }


def rename(name: str) -> str:
  """Returns a tensor's present-day name, without the model's prefix."""
  name = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
  module, _, last = name.rpartition(".")
  return f"{module}.{_OLD_NAMES.get(last, last)}" if module else name


def head_tensors(
  config: bert.EncoderConfig,
) -> Mapping[str, tuple[str, Mapping[str, str]]]:
  """Returns the table like `TENSORS` for the masked-language model's head."""
  return ROBERTA_HEAD if config.is_roberta else _BERT_HEAD

"""ModernBERT, Ettin, mmBERT and gte-modernbert as Hugging Face has them.

Holds what `huggingface` needs of a family: config.json's keys, and the tensors' names.
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
from dcse_jax.model import layers
from dcse_jax.model import modernbert

# The class that transformers names in config.json, by model_type.
ARCHITECTURES = {"modernbert": "ModernBertModel"}

# The encoder's module -> (Hugging Face module, its parameters), as `tables` has it.
TENSORS = {
  "embeddings.word": ("embeddings.tok_embeddings", EMBEDDING),
  "embeddings.norm": ("embeddings.norm", NORM),
  "layers.attention_norm": ("layers.{i}.attn_norm", NORM),
  "layers.attention.query": ("layers.{i}.attn.Wqkv", LINEAR, (0, 3)),
  "layers.attention.key": ("layers.{i}.attn.Wqkv", LINEAR, (1, 3)),
  "layers.attention.value": ("layers.{i}.attn.Wqkv", LINEAR, (2, 3)),
  "layers.attention.output": ("layers.{i}.attn.Wo", LINEAR),
  "layers.norm": ("layers.{i}.mlp_norm", NORM),
  "layers.mlp.gate": ("layers.{i}.mlp.Wi", LINEAR, (0, 2)),
  "layers.mlp.up": ("layers.{i}.mlp.Wi", LINEAR, (1, 2)),
  "layers.mlp.down": ("layers.{i}.mlp.Wo", LINEAR),
  "norm": ("final_norm", NORM),
}
# The same table for a masked-language model's head.
_HEAD = {
  "dense": ("head.dense", LINEAR),
  "norm": ("head.norm", NORM),
  "": ("decoder", {"bias": "bias"}),
  "decoder": ("decoder", EMBEDDING),
}
# Parameters of ours that no checkpoint holds: the first layer reads no norm.
ABSENT = {"layers.0.attn_norm.weight": 1.0, "layers.0.attn_norm.bias": 0.0}
# Heads, which a checkpoint may hold besides the encoder.
IGNORED = re.compile(r"(head|decoder|classifier)\..*")

_FRACTIONS = {
  "norm_eps": ("layer_norm_eps", 1e-5),
  "initializer_range": ("initializer_range", 0.02),
  "attention_dropout": ("attention_dropout", 0.0),
  "embedding_dropout": ("embedding_dropout", 0.0),
  "mlp_dropout": ("mlp_dropout", 0.0),
}
_FLAGS = {
  "norm_bias": False,
  "attention_bias": False,
  "mlp_bias": False,
  "classifier_bias": False,
  "decoder_bias": True,
}
# The keys that are read here.
READ = {
  *SIZES,
  *_FRACTIONS,
  *_FLAGS,
  "model_type",
  "hidden_activation",
  "classifier_activation",
  "pad_token_id",
  "layer_types",
  "global_attn_every_n_layers",
  "local_attention",
  "rope_parameters",
  "rope_scaling",
  "global_rope_theta",
  "local_rope_theta",
}
# Keys of this family that change no embedding; positions are rotary whatever
# position_embedding_type says, and the norms' epsilon is norm_eps.
HARMLESS = {
  "classifier_pooling",
  "deterministic_flash_attn",
  "initializer_cutoff_factor",
  "layer_norm_eps",
  "position_embedding_type",
  "reference_compile",
  "repad_logits_with_grad",
  "sliding_window",
  "sparse_pred_ignore_index",
  "sparse_prediction",
}


def read_config(settings: Settings) -> modernbert.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: the kind of encoder is not supported, or no encoder has such numbers.
  """
  fields = rotary.read_fields(
    settings,
    fractions=_FRACTIONS,
    activation="hidden_activation",
    default_activation="gelu",
    default_pad=50283,
  )
  rotary.check_heads(settings, fields)
  fields |= {name: settings.flag(name, default) for name, default in _FLAGS.items()}
  num_layers, every = fields["num_layers"], 3
  if settings.values.get("global_attn_every_n_layers") is not None:
    every = settings.size("global_attn_every_n_layers")
  pattern = tuple(i % every > 0 for i in range(num_layers))
  if settings.values.get("local_attention") is not None:
    fields["local_attention"] = settings.size("local_attention")
  return modernbert.EncoderConfig(
    is_local=rotary.read_local(settings, num_layers, pattern),
    global_theta=rotary.read_theta(
      settings, rotary.FULL, "global_rope_theta", 160_000.0
    ),
    local_theta=rotary.read_theta(settings, rotary.LOCAL, "local_rope_theta", 10_000.0),
    classifier_activation=settings.choice(
      "classifier_activation", "gelu", layers.ACTIVATIONS
    ),
    **fields,
  )


def config_to_json(config: modernbert.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  same = (*_FLAGS, "local_attention", "classifier_activation")
  return {
    "architectures": [ARCHITECTURES[config.model_type]],
    "model_type": config.model_type,
    **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
    **{theirs: getattr(config, ours) for theirs, (ours, _) in _FRACTIONS.items()},
    **{name: getattr(config, name) for name in same},
    "hidden_activation": config.activation,
    "layer_types": rotary.layer_types(config.is_local),
    "rope_parameters": rotary.rope_to_json(config.global_theta, config.local_theta),
    # transformers 4 reads these, if the layers have a pattern that it can say.
    **_old_pattern(config),
    "pad_token_id": config.pad_token_id,
    "dtype": "float32",
  }


def _old_pattern(config: modernbert.EncoderConfig) -> dict[str, Any]:
  every = next((i for i in range(1, config.num_layers) if not config.is_local[i]), None)
  every = every or config.num_layers
  if config.is_local != tuple(i % every > 0 for i in range(config.num_layers)):
    return {}
  return {
    "global_attn_every_n_layers": every,
    "global_rope_theta": config.global_theta,
    "local_rope_theta": config.local_theta,
  }


def rename(name: str) -> str:
  """Returns a tensor's name without the model's prefix."""
  return without_prefix(name, "model")


def head_tensors(
  config: modernbert.EncoderConfig,
) -> Mapping[str, tuple[str, Mapping[str, str]]]:
  """Returns the table like `TENSORS` for the masked-language model's head."""
  return _HEAD

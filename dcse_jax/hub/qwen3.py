"""Qwen3 as Hugging Face has it, as in Qwen3-Embedding.

Holds what `huggingface` needs of a family: config.json's keys, and the tensors' names.
"""

from typing import Any

from dcse_jax.hub import rotary
from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import NORM
from dcse_jax.hub.tables import without_prefix
from dcse_jax.model import qwen3

# The class that transformers names in config.json, by model_type.
ARCHITECTURES = {"qwen3": "Qwen3Model"}

# The encoder's module -> (Hugging Face module, its parameters), as `tables` has it.
TENSORS = {
  "embeddings.word": ("embed_tokens", EMBEDDING),
  **rotary.ATTENTION,
  "layers.attention.query_norm": ("layers.{i}.self_attn.q_norm", NORM),
  "layers.attention.key_norm": ("layers.{i}.self_attn.k_norm", NORM),
  "layers.attention_norm": ("layers.{i}.input_layernorm", NORM),
  "layers.norm": ("layers.{i}.post_attention_layernorm", NORM),
  **rotary.MLP,
  "norm": ("norm", NORM),
}
ABSENT: dict[str, float] = {}
# Heads, which a checkpoint may hold besides the encoder.
IGNORED = rotary.DECODER_HEADS

_FRACTIONS = {
  "rms_norm_eps": ("layer_norm_eps", 1e-6),
  "initializer_range": ("initializer_range", 0.02),
  "attention_dropout": ("attention_dropout", 0.0),
}
# The keys that are read here.
READ = {
  *SIZES,
  *rotary.DECODER_READ,
  *_FRACTIONS,
  "hidden_act",
  "sliding_window",
  "use_sliding_window",
  "max_window_layers",
  "rope_theta",
}
# Keys of this family that change no embedding.
HARMLESS: set[str] = set()


def read_config(settings: Settings) -> qwen3.EncoderConfig:
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
  fields |= rotary.read_heads(settings, fields["num_heads"])
  num_layers, window = fields["num_layers"], 4096
  pattern = (False,) * num_layers
  if settings.flag("use_sliding_window", False):
    window = settings.size("sliding_window")
    first = settings.values.get("max_window_layers", 28)
    settings.check("max_window_layers", first, type(first) is int, "a whole number")
    pattern = tuple(i >= first for i in range(num_layers))
  is_local = rotary.read_local(settings, num_layers, pattern)
  is_right = settings.flag("use_sliding_window", False) or not any(is_local)
  settings.check("use_sliding_window", False, is_right, "true, as layer_types has it")
  return qwen3.EncoderConfig(
    is_local=is_local,
    sliding_window=window,
    theta=rotary.read_theta(settings, None, "rope_theta", 10_000.0),
    **fields,
  )


def config_to_json(config: qwen3.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  return {
    "architectures": [ARCHITECTURES[config.model_type]],
    **rotary.decoder_to_json(config),
    "hidden_act": config.activation,
    "sliding_window": config.sliding_window if any(config.is_local) else None,
    "use_sliding_window": any(config.is_local),
    "max_window_layers": config.num_layers,
    "rope_parameters": rotary.rope_to_json(config.theta),
    # transformers 4 reads these.
    "rope_theta": config.theta,
  }


def rename(name: str) -> str:
  """Returns a tensor's name without the model's prefix."""
  return without_prefix(name, "model")

"""Gemma 3 for text as Hugging Face has it, as in EmbeddingGemma.

Holds what `huggingface` needs of a family: config.json's keys, and the tensors' names.
"""

from typing import Any

from dcse_jax.hub import rotary
from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import NORM
from dcse_jax.hub.tables import without_prefix
from dcse_jax.model import gemma3

# The class that transformers names in config.json, by model_type.
ARCHITECTURES = {"gemma3_text": "Gemma3TextModel"}

# The encoder's module -> (Hugging Face module, its parameters), as `tables` has it.
TENSORS = {
  "embeddings.word": ("embed_tokens", EMBEDDING),
  **rotary.ATTENTION,
  "layers.attention.query_norm": ("layers.{i}.self_attn.q_norm", NORM),
  "layers.attention.key_norm": ("layers.{i}.self_attn.k_norm", NORM),
  "layers.attention_norm": ("layers.{i}.input_layernorm", NORM),
  "layers.attended_norm": ("layers.{i}.post_attention_layernorm", NORM),
  "layers.norm": ("layers.{i}.pre_feedforward_layernorm", NORM),
  **rotary.MLP,
  "layers.mlp_norm": ("layers.{i}.post_feedforward_layernorm", NORM),
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
# The keys that are read here. A limit of the scores, attn_logit_softcapping, is not
# read, and refused unless it is null.
READ = {
  *SIZES,
  *rotary.DECODER_READ,
  *_FRACTIONS,
  "hidden_activation",
  "query_pre_attn_scalar",
  "sliding_window",
  "sliding_window_pattern",
  "use_bidirectional_attention",
  "rope_theta",
  "rope_local_base_freq",
}
# Keys of this family that change no embedding: the layers' pattern again, and a limit
# of the vocabulary's scores.
HARMLESS = {
  "_sliding_window_pattern",
  "final_logit_softcapping",
  "cache_implementation",
}


def read_config(settings: Settings) -> gemma3.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: the kind of encoder is not supported, or no encoder has such numbers.
  """
  fields = rotary.read_fields(
    settings,
    fractions=_FRACTIONS,
    activation="hidden_activation",
    default_activation="gelu_pytorch_tanh",
    default_pad=0,
  )
  fields |= rotary.read_heads(settings, fields["num_heads"])
  every, scalar = 6, settings.values.get("query_pre_attn_scalar", 256)
  is_right = type(scalar) in (int, float) and scalar > 0
  settings.check("query_pre_attn_scalar", scalar, is_right, "a number above 0")
  if settings.values.get("sliding_window_pattern") is not None:
    every = settings.size("sliding_window_pattern")
  num_layers = fields["num_layers"]
  pattern = tuple((i + 1) % every > 0 for i in range(num_layers))
  window = "sliding_window" in settings.values and settings.size("sliding_window")
  return gemma3.EncoderConfig(
    is_local=rotary.read_local(settings, num_layers, pattern),
    sliding_window=window or 4096,
    is_bidirectional=settings.flag("use_bidirectional_attention", False),
    scalar=float(scalar),
    global_theta=rotary.read_theta(settings, rotary.FULL, "rope_theta", 1_000_000.0),
    local_theta=rotary.read_theta(
      settings, rotary.LOCAL, "rope_local_base_freq", 10_000.0
    ),
    **fields,
  )


def config_to_json(config: gemma3.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  return {
    "architectures": [ARCHITECTURES[config.model_type]],
    **rotary.decoder_to_json(config),
    "hidden_activation": config.activation,
    "query_pre_attn_scalar": int(config.scalar),
    "sliding_window": config.sliding_window,
    "use_bidirectional_attention": config.is_bidirectional,
    "rope_parameters": rotary.rope_to_json(config.global_theta, config.local_theta),
    # transformers 4 reads these.
    "rope_theta": config.global_theta,
    "rope_local_base_freq": config.local_theta,
  }


def rename(name: str) -> str:
  """Returns a tensor's name without the model's prefix."""
  return without_prefix(name, "model")

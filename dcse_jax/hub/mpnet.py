"""MPNet as Hugging Face has it: what `huggingface` needs of a family."""

from collections.abc import Mapping
from typing import Any

from dcse_jax.hub import bert as names
from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import LINEAR
from dcse_jax.hub.tables import NORM
from dcse_jax.model import mpnet

ARCHITECTURES = {"mpnet": "MPNetModel"}
_LAYER = "encoder.layer.{i}"
TENSORS = {
  "embeddings.word": names.TENSORS["embeddings.word"],
  "embeddings.position": names.TENSORS["embeddings.position"],
  "embeddings.norm": names.TENSORS["embeddings.norm"],
  "relative_bias": ("encoder.relative_attention_bias", EMBEDDING),
  "layers.query": (f"{_LAYER}.attention.attn.q", LINEAR),
  "layers.key": (f"{_LAYER}.attention.attn.k", LINEAR),
  "layers.value": (f"{_LAYER}.attention.attn.v", LINEAR),
  "layers.attention_output": (f"{_LAYER}.attention.attn.o", LINEAR),
  "layers.attention_norm": (f"{_LAYER}.attention.LayerNorm", NORM),
  "layers.up": names.TENSORS["layers.up"],
  "layers.down": names.TENSORS["layers.down"],
  "layers.norm": names.TENSORS["layers.norm"],
  "pooler": names.TENSORS["pooler"],
}
ABSENT: dict[str, float] = {}
IGNORED, rename = names.IGNORED, names.rename

READ = {
  *SIZES,
  *names.FRACTIONS,
  "model_type",
  "hidden_act",
  "pad_token_id",
  "relative_attention_num_buckets",
}
HARMLESS = set()


def read_config(settings: Settings) -> mpnet.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: no encoder has such numbers.
  """
  buckets = settings.values.get("relative_attention_num_buckets", mpnet.NUM_BUCKETS)
  is_right = type(buckets) is int and buckets >= mpnet.NUM_BUCKETS
  wanted = f"a whole number from {mpnet.NUM_BUCKETS}, into as many distances fall"
  settings.check("relative_attention_num_buckets", buckets, is_right, wanted)
  pad = settings.token_id("pad_token_id", 1)
  settings.check("pad_token_id", pad, pad == 1, "1, after which positions are counted")
  config = mpnet.EncoderConfig(
    **names.read_fields(settings, SIZES, names.FRACTIONS, "hidden_act"),
    type_vocab_size=0,
    pad_token_id=pad,
    has_pooler=True,
    num_buckets=buckets,
  )
  names.check_length(settings, config)
  return config


def config_to_json(config: mpnet.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  content = names.write_fields(config, SIZES, names.FRACTIONS, ARCHITECTURES)
  return {
    **content,
    "hidden_act": config.activation,
    "relative_attention_num_buckets": config.num_buckets,
  }


def head_tensors(
  config: mpnet.EncoderConfig,
) -> Mapping[str, tuple[str, Mapping[str, str]]]:
  """Returns the table like `TENSORS` for the masked-language model's head."""
  return names.ROBERTA_HEAD

"""ELECTRA as Hugging Face has it: what `huggingface` needs of a family."""

from collections.abc import Mapping
import re
from typing import Any

from dcse_jax.hub import bert as names
from dcse_jax.hub.settings import SIZES
from dcse_jax.hub.settings import Settings
from dcse_jax.hub.tables import EMBEDDING
from dcse_jax.hub.tables import LINEAR
from dcse_jax.hub.tables import NORM
from dcse_jax.model import electra

ARCHITECTURES = {"electra": "ElectraModel"}
TENSORS = {
  **{ours: theirs for ours, theirs in names.TENSORS.items() if ours != "pooler"},
  "embeddings.project": ("embeddings_project", LINEAR),
}
# The head of a generator; a discriminator has none.
_HEAD = {
  "dense": ("generator_predictions.dense", LINEAR),
  "norm": ("generator_predictions.LayerNorm", NORM),
  "": ("generator_lm_head", {"bias": "bias"}),
  "decoder": ("generator_lm_head", EMBEDDING),
}
ABSENT: dict[str, float] = {}
IGNORED = re.compile(
  r"embeddings\.(position_ids|token_type_ids)|"
  r"(generator_predictions|generator_lm_head|discriminator_predictions|classifier|"
  r"qa_outputs|mlp)\..*"
)
rename = names.rename

_SIZES = {
  **SIZES,
  "type_vocab_size": "type_vocab_size",
  "embedding_size": "embedding_size",
}
READ = {*names.READ, *_SIZES}
# Tensors of models other than the discriminator.
HARMLESS = {"generator_size"}


def read_config(settings: Settings) -> electra.EncoderConfig:
  """Reads the shape of an encoder.

  Raises:
    UserError: the kind of encoder is not supported, or no encoder has such numbers.
  """
  settings.choice("position_embedding_type", "absolute", ["absolute"])
  return electra.EncoderConfig(
    **names.read_fields(settings, _SIZES, names.FRACTIONS, "hidden_act"),
    pad_token_id=settings.token_id("pad_token_id", 0),
  )


def config_to_json(config: electra.EncoderConfig) -> dict[str, Any]:
  """Returns the config.json that Hugging Face's AutoModel reads."""
  content = names.write_fields(config, _SIZES, names.FRACTIONS, ARCHITECTURES)
  return {**content, "hidden_act": config.activation}


def head_tensors(
  config: electra.EncoderConfig,
) -> Mapping[str, tuple[str, Mapping[str, str]]]:
  """Returns the table like `TENSORS` for the masked-language model's head."""
  return _HEAD

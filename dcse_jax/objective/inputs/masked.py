"""Masked tokens, and a language model's scores for them."""

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.model.flops import encoder_flops
from dcse_jax.model.flops import score_flops
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.objective.inputs.rows import flat_views
from dcse_jax.objective.inputs.rows import number_views
from dcse_jax.objective.inputs.rows import side_by_side

# Devlin et al. predict 15 % of tokens; 80 % of these are masked, 10 %
# replaced by a random token, 10 % left.
PREDICTED = 0.15
SHOWN_AS = (0.8, 0.1)


def mask_views(
  objective, batch, rng, share: float, views: int, shown_as=SHOWN_AS
) -> dict[str, jax.Array]:
  """Masks a share of the tokens of views, different ones at each step.

  Args:
    objective: knows which tokens may be masked, and the mask token.
    batch: `input_ids` and `attention_mask`, [B, C, S].
    rng: a key.
    share: the share of words that is chosen.
    views: how many; the columns of the text, or its only column this many times.
    shown_as: the shares of chosen words shown as a mask and as a random token.

  Returns:
    `masked_ids` and `masked_mask`, [B, views, S]; `position`, `masked_labels` and
    `is_masked` of a few slots, [B, views, K], so that only these are multiplied with
    the vocabulary.
  """
  masked = []
  for view in range(views):
    column = view if batch["input_ids"].shape[1] > 1 else 0
    key = jax.random.fold_in(rng, view) if view else rng
    ids, mask = (batch[n][:, column] for n in ("input_ids", "attention_mask"))
    masked.append(_mask_tokens(objective, ids, mask, key, share, shown_as))
  return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *masked)


def _mask_tokens(objective, input_ids, attention_mask, rng, share, shown_as):
  choice_rng, kind_rng, token_rng = jax.random.split(rng, 3)
  special = jnp.isin(input_ids, jnp.asarray(objective.special_token_ids))
  # A prompt that the pooling leaves out is marked by another number.
  is_word = (attention_mask == 1) & ~special
  slots = max(1, round(share * input_ids.shape[1]))
  score = jnp.where(is_word, jax.random.uniform(choice_rng, input_ids.shape), -1)
  _, position = jax.lax.top_k(score, slots)
  wanted = jnp.maximum(1, jnp.round(share * is_word.sum(axis=1)))
  wanted = jnp.minimum(wanted, is_word.sum(axis=1))
  is_masked = jnp.arange(slots) < wanted[:, None]
  row = jnp.arange(len(input_ids))[:, None]
  labels = input_ids[row, position]
  kind = jax.random.uniform(kind_rng, labels.shape)
  other = _random_words(objective, token_rng, labels.shape)
  masked, replaced = shown_as
  shown = jnp.where(kind < masked, objective.mask_token_id, labels)
  shown = jnp.where(kind >= 1 - replaced, other, shown)
  shown = jnp.where(is_masked, shown, labels)
  return {
    "masked_ids": input_ids.at[row, position].set(shown),
    "masked_mask": attention_mask.astype(bool),
    "position": position,
    "masked_labels": labels,
    "is_masked": is_masked,
  }


def _random_words(objective, rng, shape):
  """Draws token ids that are words: no special token, and none without a token.

  BERT's code and transformers' collator draw from all of the tokenizer's tokens, special
  ones included, fairseq's RoBERTa from its words alone, as here. Rows that only pad the
  table of embeddings to a round size are nobody's.
  """
  size = objective.tokenizer_size or objective.config.vocab_size
  special = np.asarray([i for i in sorted(objective.special_token_ids) if i < size])
  number = jax.random.randint(rng, shape, 0, size - len(special))
  # The number of a word is its id less the special tokens before it.
  before = jnp.searchsorted(special - np.arange(len(special)), number, side="right")
  return number + before.astype(number.dtype)


def validate_mask(objective, start) -> str:
  """Says that a start has no masked-language model or mask token, or ""."""
  if objective.config.language_model is None:
    return (
      f"{start.name} is a {objective.config.model_type}, a family without a "
      "masked-language model: leave the term out, or use another model"
    )
  if start.has_mask_token:
    return ""
  return f"the tokenizer of {start.name} has no mask token"


class Masked(Provider):
  """Scores and labels of masked tokens, [B, K, V] and [B, K], and which count, [B, K].

  They belong to the first view, or to two views side by side, as the term's setting
  `masked_views` says.
  """

  offers = ("masked_logits", "masked_labels", "is_masked")
  of_tokens = True

  def validate(self, objective, start):
    return validate_mask(objective, start)

  def init_params(self, objective, encoder, init, language_model):
    head = language_model or init("language_model", heads.LanguageModelHead)
    return {"language_model": head}

  def flops(self, objective, size):
    config, slots = objective.config, max(1, round(PREDICTED * size.max_length))
    masked = size.batch * objective.setting("masked_views")
    flops = encoder_flops(
      config,
      sentences=masked,
      positions=slots,
      **size.lengths,
    )
    return flops + masked * slots * score_flops(config), 0.0

  def prepare(self, objective, inputs):
    rng, views = jax.random.fold_in(inputs.rng, 1), objective.setting("masked_views")
    rows = mask_views(objective, inputs.batch, rng, PREDICTED, views)
    return {f"guessed_{name}": value for name, value in rows.items()}

  def embed(self, objective, sentences, offered):
    masked = objective.prepared(sentences, "guessed_")
    views, packing = masked["position"].shape[1], sentences.packing
    if sentences.rows["input_ids"].shape[1] == 1:
      packing = packing and packing.times(views)
    masked = flat_views(masked)
    states = encoder_lib.states_at(
      sentences.params["encoder"],
      objective.config,
      masked["masked_ids"],
      masked["masked_mask"],
      masked["position"],
      rng=jax.random.fold_in(sentences.rng, 4),
      dtype=objective.dtype,
      packing=packing,
      row_ids=number_views(sentences.row_ids, views),
    )
    logits = encoder_lib.score_tokens(
      sentences.params["language_model"],
      sentences.params["encoder"],
      objective.config,
      states,
      dtype=objective.dtype,
    )
    return {
      "masked_logits": side_by_side(logits, views),
      "masked_labels": side_by_side(masked["masked_labels"], views),
      "is_masked": side_by_side(masked["is_masked"], views),
    }

  def count(self, arrays):
    guess = jnp.argmax(arrays["masked_logits"], axis=-1)
    is_right = (guess == arrays["masked_labels"]) & arrays["is_masked"]
    return {"accuracy": (is_right.sum(axis=1), arrays["is_masked"].sum(axis=1))}

"""Sentences that a frozen language model edits, and where it edited them."""

import jax
import jax.numpy as jnp

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.model.flops import encoder_flops
from dcse_jax.model.flops import score_flops
from dcse_jax.objective.inputs.masked import mask_views
from dcse_jax.objective.inputs.masked import validate_mask
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.objective.inputs.rows import flat_views
from dcse_jax.objective.inputs.rows import number_views
from dcse_jax.objective.inputs.rows import side_by_side

_ALL_MASKED = (1.0, 0.0)


class Replaced(Provider):
  """Logits that tokens were replaced, whether they were, and which count, [B, S].

  They belong to the first view, or to two side by side (see the term), after a frozen
  language model, the one that training starts from, filled in words.
  """

  offers = ("replaced_logits", "is_replaced", "is_token")
  needs_views = needs_pairs = True
  of_tokens = True

  def validate(self, objective, start):
    if problem := validate_mask(objective, start):
      return problem
    if not start.has_language_model:
      return (
        "replaced_token_detection fills in words by the language-model head of what it "
        f"starts from, which {start.name} lacks: start from a round with "
        "masked_language_model, or use another model"
      )
    return objective.validate_width("replaced_logits", start)

  def init_params(self, objective, encoder, init, language_model):
    head = init("discriminator", heads.TokenHead)
    return {"discriminator": {"encoder": encoder, "head": head}}

  def frozen_params(self, objective, encoder, language_model):
    return {"generator": {"encoder": encoder, "language_model": language_model}}

  def flops(self, objective, size):
    config = objective.config
    edited, slots = size.batch, objective.setting("mask_probability") * size.length
    positions = round(slots)
    if objective.setting("edits") == "published":
      edited, slots, positions = 2 * size.batch, size.length, 0
    count = lambda positions: encoder_flops(
      config, sentences=edited, positions=positions, **size.lengths
    )
    return count(0), count(positions) + edited * slots * score_flops(config)

  def prepare(self, objective, inputs):
    share, rng = (
      objective.setting("mask_probability"),
      jax.random.fold_in(inputs.rng, 6),
    )
    if objective.setting("edits") == "published":
      rows = mask_views(objective, inputs.batch, rng, share, 2)
    else:
      rows = mask_views(objective, inputs.batch, rng, share, 1, _ALL_MASKED)
    return {f"edited_{name}": value for name, value in rows.items()}

  def embed(self, objective, sentences, offered):
    edited = objective.prepared(sentences, "edited_")
    views = edited["masked_ids"].shape[1]
    embeddings = [offered["anchors"], offered.get("positives")][:views]
    embeddings = jnp.stack(embeddings, axis=1)
    embeddings = embeddings.reshape(-1, objective.config.hidden_size)
    edited, row_ids = flat_views(edited), number_views(sentences.row_ids, views)
    generator = jax.lax.stop_gradient(sentences.frozen["generator"])
    rng, mask = jax.random.fold_in(sentences.rng, 7), edited["masked_mask"]
    if objective.setting("edits") == "published":
      original = sentences.rows["input_ids"][:, :2]
      original = jnp.broadcast_to(original, (len(original), 2, original.shape[2]))
      original = original.reshape(mask.shape)
      generator_rng, rng = jax.random.split(rng)
      guess = _fill_in_all(objective, generator, edited, row_ids, generator_rng)
      guess = guess.astype(original.dtype).at[:, 0].set(original[:, 0])
      ids = jnp.where(mask, guess, objective.config.pad_token_id)
      is_replaced, is_token = (ids != original) & mask, jnp.ones_like(mask)
    else:
      # The slots that are not masked hold the words that stand there.
      original, labels = sentences.rows["input_ids"][:, 0], edited["masked_labels"]
      guess = _fill_in_masked(objective, generator, edited).astype(labels.dtype)
      guess = jnp.where(edited["is_masked"], guess, labels)
      row = jnp.arange(len(mask))[:, None]
      ids = original.at[row, edited["position"]].set(guess)
      is_replaced, is_token = ids != original, mask
    found = encoder_lib.detect_replaced(
      sentences.params["discriminator"],
      objective.config,
      ids,
      mask,
      embeddings,
      rng=rng,
      dtype=objective.dtype,
      row_ids=row_ids,
    )
    return {
      "replaced_logits": side_by_side(found, views),
      "is_replaced": side_by_side(is_replaced, views),
      "is_token": side_by_side(is_token, views),
    }


def _fill_in_masked(objective, generator, edited):
  """Guesses masked tokens with the language model, [n, K]."""
  states = encoder_lib.states_at(
    generator["encoder"],
    objective.config,
    edited["masked_ids"],
    edited["masked_mask"],
    edited["position"],
    dtype=objective.dtype,
  )
  return _best_guess(objective, generator, states)


def _fill_in_all(objective, generator, edited, row_ids, rng):
  """Guesses every token with the language model, under dropout, [n, S]."""
  states = encoder_lib.hidden_states(
    generator["encoder"],
    objective.config,
    edited["masked_ids"],
    edited["masked_mask"],
    rng=rng,
    dtype=objective.dtype,
    row_ids=row_ids,
  )[-1]
  # One position after the other: the scores of all at once would not fit the memory.
  guess = lambda states: _best_guess(objective, generator, states)
  return jax.lax.map(guess, states.swapaxes(0, 1)).swapaxes(0, 1)


def _best_guess(objective, generator, states):
  logits = encoder_lib.score_tokens(
    generator["language_model"],
    generator["encoder"],
    objective.config,
    states,
    dtype=objective.dtype,
  )
  return jnp.argmax(logits, axis=-1)

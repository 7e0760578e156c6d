"""Poolings: from the states of a sentence's tokens to its embedding.

One table has all that anybody must know about each; `get` also reads names that join
several by "+", which puts their embeddings side by side.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from dcse_jax.model.family import EncoderConfig

# What a mask holds for a token that attention sees and the pooling leaves out, such as a
# prompt's; 1 or True is for all others.
LEFT_OUT = 2


@dataclasses.dataclass(frozen=True)
class Pooling:
  """A way to make an embedding from states.

  Attributes:
    summary: what the embedding is, in words for a model card.
    reduce: turns states [B, S, D] and the mask [B, S], with padding on either side,
      into embeddings [B, width * D] float32. Masks here may mark tokens that are there
      and not pooled by `LEFT_OUT`.
    beside: the layer whose states are averaged with the last ones before, 0 for the
      embedding layer, negative from the end; None for the last states alone.
    token: finds in the mask [B, S] the place of the one token that is read, [B]; None
      where there are more.
    projected: whether embeddings pass through a projection in training, which
      evaluation and export drop.
    same_as: the pooling that it equals in evaluation, where only training tells them
      apart; folders hold that one's name.
    recorded: what digests and workdirs hold in place of a name that changed its
      meaning: what was written before the change must not be taken for the new one.
    width: numbers in an embedding for each number in a state.
  """

  summary: str
  reduce: Callable[[jax.Array, jax.Array], jax.Array]
  beside: int | None = None
  token: Callable[[jax.Array], jax.Array] | None = None
  projected: bool = False
  same_as: str | None = None
  recorded: str | None = None
  width: int = 1

  @property
  def joins(self) -> bool:
    """Whether a name may join this pooling with others."""
    return self.beside is None and self.same_as is None


def _pooled(attention_mask):
  """Returns which tokens are pooled, [B, S]."""
  return attention_mask if attention_mask.dtype == bool else attention_mask == 1


def _first(attention_mask):
  return jnp.argmax(_pooled(attention_mask), axis=1)


def _last(attention_mask):
  return attention_mask.shape[1] - 1 - _first(attention_mask[:, ::-1])


def _state_of(token, state, attention_mask):
  """Returns the state of one token of each sentence."""
  place = token(attention_mask)[:, None, None]
  return jnp.take_along_axis(state, place, axis=1)[:, 0].astype(jnp.float32)


def _largest(state, attention_mask):
  state = state.astype(jnp.float32)
  mask = _pooled(attention_mask).astype(jnp.float32)[:, :, None]
  # A finite mask: a row of padding alone must not become infinite.
  return jnp.where(mask > 0, state, -1e30).max(axis=1)


def _mean(state, attention_mask, *, by_position=False, by_root=False):
  """Means over tokens, weighted by position from 1 if asked, or the sum by a root."""
  state = state.astype(jnp.float32)
  mask = _pooled(attention_mask).astype(jnp.float32)
  if by_position:
    # Positions count from the first token, also where it is not pooled.
    first = _first(attention_mask.astype(bool))
    places = jnp.arange(1, mask.shape[1] + 1) - first[:, None]
    mask = mask * places.astype(jnp.float32)
  mask = mask[:, :, None]
  total, count = (state * mask).sum(axis=1), jnp.maximum(mask.sum(axis=1), 1.0)
  return total / (jnp.sqrt(count) if by_root else count)


def _of_token(summary, token, **fields):
  reduce = functools.partial(_state_of, token)
  return Pooling(summary, reduce, token=token, **fields)


POOLINGS = {
  "cls": _of_token("the first token's last state", _first, projected=True),
  "cls_before_pooler": _of_token("the first token's last state", _first, same_as="cls"),
  "max": Pooling("the largest of the last states", _largest),
  "mean": Pooling("the mean of the last states", _mean),
  "mean_sqrt_len": Pooling(
    "the sum of the last states by the root of their number",
    functools.partial(_mean, by_root=True),
  ),
  "weightedmean": Pooling(
    "the mean of the last states weighted by position",
    functools.partial(_mean, by_position=True),
  ),
  "lasttoken": _of_token("the last token's last state", _last),
  "mean_top2": Pooling("the mean of the last two layers' states", _mean, beside=-2),
  "mean_first_last": Pooling(
    "the mean of the first layer's and the last states",
    _mean,
    beside=1,
    recorded="mean_first_last of layer 1",
  ),
  "mean_embedding_last": Pooling(
    "the mean of the embedding layer's and the last states",
    _mean,
    beside=0,
    recorded="mean_first_last",
  ),
}


def is_pooling(name: str) -> bool:
  """Returns whether a text names a pooling, or several that "+" may join."""
  modes = name.split("+")
  return name in POOLINGS or all(
    mode in POOLINGS and POOLINGS[mode].joins for mode in modes
  )


def get(name: str) -> Pooling:
  """Returns the pooling of a name that `is_pooling` knows."""
  if name in POOLINGS:
    return POOLINGS[name]
  parts = [POOLINGS[mode] for mode in name.split("+")]

  def reduce(state, attention_mask):
    return jnp.concatenate(
      [part.reduce(state, attention_mask) for part in parts], axis=-1
    )

  summary = " beside ".join(part.summary for part in parts)
  return Pooling(summary, reduce, width=len(parts))


def unprojected(name: str) -> str:
  """Returns the pooling that evaluates alike and trains without a projection."""
  if not get(name).projected:
    return name
  return next(twin for twin, each in POOLINGS.items() if each.same_as == name)


def recorded(name: str) -> str:
  """Returns the name that digests and workdirs hold for a pooling."""
  return get(name).recorded or name


def fault(config: EncoderConfig, name: str) -> str:
  """Says why embeddings of an encoder would mean nothing by a pooling, or ""."""
  sees_others = any(reach.after != 0 for reach in config.work.reaches)
  if sees_others or get(name).token is not _first:
    return ""
  return (
    f"{name} pools the first token, which in a decoder such as {config.model_type} sees "
    "no other: use lasttoken or mean"
  )


def embedding_size(config: EncoderConfig, name: str) -> int:
  """Returns the width of an embedding."""
  return config.hidden_size * get(name).width

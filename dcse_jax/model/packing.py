"""Where tokens stand: in a padded grid, or side by side without the padding.

Layers that see one token at a time run on the packed tokens; attention alone
needs them by sentence, and gets them by a gather whose backward pass is the
inverse gather.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The share of batches that each packing shall hold, and the number of steps from which
# it pays: each is compiled, which costs as much time as packing saves in dozens of
# steps. A batch that fits none keeps its padding.
_SHARES = ((0.999, 100), (0.67, 1000))
_SAMPLED_BATCHES = 1000
# The packings of batches of like length: this many at most, and one for as many steps.
_BUCKETS, _STEPS_OF_BUCKET = 6, 100
# Sizes are multiples of the first, and at most this share of the padded batch.
_MULTIPLE, _WORTH = 32, 0.97


@dataclasses.dataclass(frozen=True)
class Packing:
  """The static shape of a packed batch.

  Attributes:
    tokens: how many each group holds; if the sentences of a group have more in all,
      tokens are lost.
    groups: equal parts of the batch, in order, each packed by itself: one for
      each device, so that no token leaves its device.
    length: that of the padded grid, which is cut there before it is packed; None
      leaves it as it is.
  """

  tokens: int
  groups: int = 1
  length: int | None = None

  def times(self, number: int) -> "Packing":
    """Scales the packing for a batch `number` times as large; groups stay."""
    return dataclasses.replace(self, tokens=number * self.tokens)


def make_packings(
  num_tokens: np.ndarray,
  *,
  batch_size: int,
  padded: int,
  num_steps: int,
  groups: int = 1,
) -> tuple[Packing, ...]:
  """Finds packings for random batches of a corpus, the tightest first.

  Args:
    num_tokens: the tokens of each row, [rows].
    batch_size: rows of a batch.
    padded: tokens of a row with its padding.
    num_steps: how many steps the training has.
    groups: see `Packing`.

  Returns:
    One that fits nearly all batches and, for a long training, one that fits two of
    three; only those that are smaller than the padded batch.
  """
  rng = np.random.default_rng(0)
  rows = rng.integers(len(num_tokens), size=(_SAMPLED_BATCHES, batch_size))
  fullest = np.asarray([count_tokens(num_tokens[batch], groups) for batch in rows])
  sizes = {
    rounded(np.quantile(fullest, share))
    for share, least_steps in _SHARES
    if num_steps >= least_steps
  }
  limit = _WORTH * padded * batch_size / groups
  return tuple(Packing(size, groups) for size in sorted(sizes) if size <= limit)


def make_bucket_packings(
  num_tokens: np.ndarray,
  longest: np.ndarray,
  *,
  batch_size: int,
  columns: int,
  max_length: int,
  together: int,
  num_steps: int,
  groups: int = 1,
) -> tuple[Packing, ...]:
  """Finds packings for batches of rows of like length, the shortest first.

  Args:
    num_tokens: the tokens of each row, [rows].
    longest: those of its longest column, [rows].
    batch_size: rows of a batch.
    columns: sentences of a row.
    max_length: tokens of a padded sentence.
    together: how many batches are sorted together, as in training.
    num_steps: how many steps the training has.
    groups: see `Packing`.

  Returns:
    Those with which batches compute the fewest tokens.
  """
  number = min(_BUCKETS, num_steps // _STEPS_OF_BUCKET)
  if not number:
    return ()
  rng = np.random.default_rng(0)
  windows = -(-_SAMPLED_BATCHES // together)
  rows = rng.integers(len(num_tokens), size=(windows, together * batch_size))
  order = np.argsort(longest[rows], axis=1)
  rows = np.take_along_axis(rows, order, axis=1).reshape(-1, batch_size)
  rows = rng.permuted(rows, axis=1)
  fullest = np.asarray([count_tokens(num_tokens[batch], groups) for batch in rows])
  order = np.argsort(longest[rows].max(axis=1), kind="stable")
  lengths = longest[rows].max(axis=1)[order]
  # What holds a batch of some length holds all shorter ones.
  fullest = np.maximum.accumulate(fullest[order])
  packings = {}
  for last in _cut_points(fullest, number):
    length = min(rounded(lengths[last]), max_length)
    padded, tokens = columns * length * batch_size // groups, rounded(fullest[last])
    packings[length] = tokens if tokens <= _WORTH * padded else padded
  return tuple(Packing(tokens, groups, length) for length, tokens in packings.items())


def _cut_points(sizes: np.ndarray, number: int) -> list[int]:
  """Divides batches among some sizes so that these are as small as possible in the mean.

  Args:
    sizes: what each batch needs, ascending, [batches].
    number: how many sizes there may be.

  Returns:
    The places of the batches whose sizes to take, ascending; the last one's is last.
  """
  place = np.arange(len(sizes) + 1)
  # Batches from i to j - 1 all take the size of the last.
  cost = np.where(place[:-1, None] < place[1:], place[1:] - place[:-1, None], np.inf)
  cost = cost * sizes
  # The least for the first j batches, with one size more in each turn.
  least, choices = np.where(place > 0, np.inf, 0.0), []
  for _ in range(number):
    sums = least[:-1, None] + cost
    choices.append(sums.argmin(axis=0))
    least = np.concatenate([[np.inf], sums.min(axis=0)])
  points, end = [], len(sizes)
  for choice in reversed(choices):
    if end > 0:
      points.append(end - 1)
      end = int(choice[end - 1])
  return points[::-1]


def rounded(tokens: float) -> int:
  """Returns the smallest size of a group that holds as many tokens."""
  return int(-(-tokens // _MULTIPLE) * _MULTIPLE)


def count_tokens(num_tokens: np.ndarray, groups: int) -> int:
  """Counts the tokens of a batch's fullest group, given those of its rows, [B]."""
  return int(num_tokens.reshape(groups, -1).sum(axis=1).max())


def choose_packing(
  packings: Sequence[Packing], num_tokens: int, longest: int = 0
) -> Packing | None:
  """Returns the tightest that holds a batch; None if none does.

  Args:
    packings: the tightest first.
    num_tokens: the tokens of the batch's fullest group.
    longest: those of its longest sentence.
  """
  fits = lambda p: p.tokens >= num_tokens and (p.length is None or p.length >= longest)
  return next(filter(fits, packings), None)


def fit(
  packings: Sequence[Packing], batch: dict[str, Any]
) -> tuple[dict[str, Any], Packing | None]:
  """Chooses a packing for a batch of `make_batches`, and cuts the batch to its length.

  Args:
    packings: the tightest first.
    batch: with `num_tokens` and `longest`; those of several models may be stacked.

  Returns:
    The batch without these two, and its packing; None leaves the padding in.
  """
  sizes = (batch[name].max() for name in ("num_tokens", "longest"))
  packing = choose_packing(packings, *sizes)
  length = packing and packing.length
  is_cut = lambda name: name in ("input_ids", "attention_mask")
  rest = {n: x for n, x in batch.items() if n not in ("num_tokens", "longest")}
  return {n: x[..., :length] if is_cut(n) else x for n, x in rest.items()}, packing


@jax.custom_vjp
def _rearrange(x, to, back):
  """Returns x[g, to[g, i]], any row where `to` is out of range; `back` undoes it."""
  return jax.vmap(lambda rows, i: rows.at[i].get(mode="clip"))(x, to)


def _rearrange_fwd(x, to, back):
  return _rearrange(x, to, back), (to, back)


def _rearrange_bwd(residuals, g):
  to, back = residuals
  zeros = lambda i: np.zeros(i.shape, jax.dtypes.float0)
  # A row that was not read has no gradient, and must not get another row's.
  take = lambda rows, i: rows.at[i].get(mode="fill", fill_value=0)
  return jax.vmap(take)(g, back), zeros(to), zeros(back)


_rearrange.defvjp(_rearrange_fwd, _rearrange_bwd)


class Layout:
  """How the tokens of one batch are laid out.

  Args:
    mask: true for tokens, [N, S].
    packing: None leaves them in the grid.
    row_ids: where the sentences stand in a larger batch that these are part of, [N];
      by default their places here.

  Attributes:
    mask: as given.
    rows: for each token of the layout, its number in the whole batch's grid.
    grid_rows: the same for each token of the grid.
    places: for each sentence where its tokens begin in its group, and where S rows begin
      that are its part of those beyond the group's last token, [N, 2] int32; None
      without packing.
  """

  def __init__(
    self,
    mask: jax.Array,
    packing: Packing | None,
    row_ids: jax.Array | None = None,
  ):
    if packing and packing.tokens * packing.groups >= mask.size:
      packing = None
    self.mask, self._packing = mask, packing
    length = mask.shape[1]
    is_whole = row_ids is None
    if is_whole:
      row_ids = np.arange(len(mask), dtype=np.int32)
    self._first_rows = row_ids * length
    self.grid_rows = self._first_rows[:, None] + np.arange(length, dtype=np.int32)
    self.rows, self.places = self.grid_rows, None
    if packing is None:
      return
    groups, size = packing.groups, mask.size // packing.groups
    mask = mask.reshape(groups, size)
    place = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    # Both indices are out of range where there is no token.
    self._to_flat = jax.vmap(
      lambda m: jnp.nonzero(m, size=packing.tokens, fill_value=size)[0]
    )(mask).astype(jnp.int32)
    self._to_grid = jnp.where(mask, place, packing.tokens)
    # Computed once: each of a thousand elements of a row would else count tokens anew.
    self._to_flat, self._to_grid = jax.lax.optimization_barrier(
      (self._to_flat, self._to_grid)
    )
    start = self._to_grid[:, ::length]
    parts = length * np.arange(start.shape[1], dtype=np.int32)
    spare = mask.sum(axis=1, keepdims=True, dtype=jnp.int32) + parts
    self.places = jnp.stack([start, spare], axis=-1).reshape(-1, 2)
    if is_whole:
      self.rows = self._to_flat + size * np.arange(groups, dtype=np.int32)[:, None]
    else:
      take = lambda rows, i: rows.at[i].get(mode="clip")
      self.rows = jax.vmap(take)(self.grid_rows.reshape(groups, size), self._to_flat)

  def flat(self, x: jax.Array) -> jax.Array:
    """Packs [N, S, ...] into [groups, tokens, ...]; without a packing returns x.

    Beyond the last token the result holds anything finite.
    """
    if self._packing is None:
      return x
    grouped = x.reshape(self._packing.groups, -1, *x.shape[2:])
    return _rearrange(grouped, self._to_flat, self._to_grid)

  def grid(self, x: jax.Array) -> jax.Array:
    """Unpacks [groups, tokens, ...] to [N, S, ...]; padding holds anything finite."""
    if self._packing is None:
      return x
    rows = _rearrange(x, self._to_grid, self._to_flat)
    return rows.reshape(*self.mask.shape, *x.shape[2:])

  def select(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the tokens at positions [N, K] of their sentences, [N, K, ...]."""
    if self._packing is None:
      return jnp.take_along_axis(x, positions[..., None], axis=1)
    groups = self._packing.groups
    place = jnp.take_along_axis(
      self._to_grid.reshape(self.mask.shape), positions, axis=1
    )
    rows = jax.vmap(lambda rows, i: rows[i])(x, place.reshape(groups, -1))
    return rows.reshape(*positions.shape, *x.shape[2:])

  def rows_at(self, positions: jax.Array) -> jax.Array:
    """Returns `rows` for the tokens that `select` gives, [N, K]."""
    return self._first_rows[:, None] + positions

"""Batches beyond memory: encoded part by part, with the gradient of the whole.

A part's activations are forgotten when its embeddings are there, and computed again
in the backward pass; the loss is of the embeddings of all parts. That is gradient
caching, after Gao et al., 2021 (arXiv:2101.06983), by rematerialisation.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dcse_jax.packing import Packing


@dataclasses.dataclass(frozen=True)
class Microbatches:
  """How a batch is divided.

  Attributes:
    number: of parts, one after the other.
    groups: equal parts of the batch, one for each device: every microbatch has
      as many rows of each, so that none leaves its device.
  """

  number: int = 1
  groups: int = 1

  def map(self, fn: Callable[[Any, jax.Array | None], Any], rows: Any) -> Any:
    """Calls a function part by part.

    Args:
      fn: from a tree of rows [n, ...], and their numbers in the batch [n] or None
        if they are all of it, to another tree of rows.
      rows: the batch, [B, ...] each; B is a multiple of number times groups.

    Returns:
      What fn gives for all rows, [B, ...], in their order.
    """
    if self.number == 1:
      return fn(rows, None)
    numbers = jnp.arange(len(jax.tree.leaves(rows)[0]), dtype=jnp.int32)
    parts = jax.tree.map(self._split, (rows, numbers))
    # The loop keeps what is computed twice apart, so that XLA need not.
    once_more = jax.checkpoint(fn, prevent_cse=False)
    results = jax.lax.map(lambda part: once_more(*part), parts)
    return jax.tree.map(self._join, results)

  def packing_of_one(self, packing: Packing | None) -> Packing | None:
    """Of a batch with a group for each device and part, the packing of one part."""
    return packing and dataclasses.replace(
      packing, groups=packing.groups // self.number
    )

  def _split(self, x: jax.Array) -> jax.Array:
    grid = x.reshape(self.groups, self.number, -1, *x.shape[1:])
    return grid.swapaxes(0, 1).reshape(self.number, -1, *x.shape[1:])

  def _join(self, x: jax.Array) -> jax.Array:
    grid = x.reshape(self.number, self.groups, -1, *x.shape[2:])
    return grid.swapaxes(0, 1).reshape(-1, *x.shape[2:])

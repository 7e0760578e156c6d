"""Batches beyond memory: computed chunk by chunk, with the gradient of the whole.

A chunk's activations are forgotten when its result is there, and computed again in
the backward pass. Where chunks are sentences (microbatches), that is gradient caching,
after Gao et al., 2021 (arXiv:2101.06983), by rematerialisation; where they are rows of
a loss, it keeps [B, B] similarities out of memory.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dcse_jax.model.packing import Packing


@dataclasses.dataclass(frozen=True)
class Chunks:
  """How a batch is divided.

  Attributes:
    number: how many chunks there are, one after the other.
    groups: equal parts of the batch, one for each device: every chunk has the same
      number of rows of each, so that no row leaves its device.
  """

  number: int = 1
  groups: int = 1

  def map(self, fn: Callable[[Any, jax.Array | None], Any], rows: Any) -> Any:
    """Calls a function chunk by chunk.

    Args:
      fn: takes a tree of rows [n, ...], and their numbers in the batch [n] or None
        if they are the whole batch, and returns another tree of rows.
      rows: the batch, [B, ...] each; B is a multiple of number times groups.

    Returns:
      The results of fn for all rows, [B, ...], in their order.
    """
    if self.number == 1:
      return fn(rows, None)
    row_ids = jnp.arange(len(jax.tree.leaves(rows)[0]), dtype=jnp.int32)
    chunks = jax.tree.map(self._split, (rows, row_ids))
    # The loop already keeps the two computations apart: XLA need not prevent CSE.
    once_more = jax.checkpoint(fn, prevent_cse=False)
    results = jax.lax.map(lambda chunk: once_more(*chunk), chunks)
    return jax.tree.map(self._join, results)

  def packing_of_chunk(self, packing: Packing | None) -> Packing | None:
    """Returns a chunk's packing; that of the batch has a group a device and chunk."""
    return packing and dataclasses.replace(
      packing, groups=packing.groups // self.number
    )

  def _split(self, x: jax.Array) -> jax.Array:
    grid = x.reshape(self.groups, self.number, -1, *x.shape[1:])
    return grid.swapaxes(0, 1).reshape(self.number, -1, *x.shape[1:])

  def _join(self, x: jax.Array) -> jax.Array:
    grid = x.reshape(self.number, self.groups, -1, *x.shape[2:])
    return grid.swapaxes(0, 1).reshape(-1, *x.shape[2:])

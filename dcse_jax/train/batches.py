"""The batches that the loop asks for, and what is joined to them."""

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol

import grain
import numpy as np

Batch = dict[str, np.ndarray]
# (batch, number of steps done before, function that returns the trained parameters as
# they are now, as `mesh.gathered` gives them) -> the batch with more in it.
Join = Callable[[Batch, int, Callable[[], Any]], Batch]


class Batches(Protocol):
  """Endless batches of one run."""

  def next(self, step: int, params: Callable[[], Any]) -> Batch:
    """Returns the next batch.

    Args:
      step: how many steps were done before.
      params: returns the trained parameters as they are now, from `mesh.gathered`, for
        batches that depend on the model. It is called at the same steps in every
        process.
    """

  def get_state(self) -> Any:
    """Returns the position in the data, JSON."""

  def set_state(self, state: Any) -> None:
    """Continues from a position."""


@dataclasses.dataclass(frozen=True)
class JoinedBatches:
  """Batches of the data, each with what is joined for its sentences.

  Attributes:
    iterator: iterates over the data.
    join: adds to a batch; it has no part in the position.
  """

  iterator: grain.DatasetIterator
  join: Join

  def next(self, step: int, params: Callable[[], Any]) -> Batch:
    """Returns the next batch: see `Batches`."""
    return self.join(next(self.iterator), step, params)

  def get_state(self) -> Any:
    """Returns the iterator's position."""
    return self.iterator.get_state()

  def set_state(self, state: Any) -> None:
    """Sets the iterator's position."""
    self.iterator.set_state(state)

"""Which device holds what: batches over "data", everything else everywhere."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np


def make_mesh() -> Mesh:
  """A mesh of every device of every host, one axis "data"."""
  # Explicit axes, jax's default, refuse x @ y.T of two batch-sharded arrays.
  return jax.make_mesh(
      (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of parameters, optimizer state and metrics."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """The sharding of an array whose leading axis is the global batch."""
  return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Makes the global batch of each host's part."""
  sharding = over_batch(mesh)
  return {
      name: jax.make_array_from_process_local_data(sharding, value)
      for name, value in batch.items()
  }

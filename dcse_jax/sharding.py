"""Which device holds what: batches over "data", everything else everywhere."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with one axis, "data", of these devices or all of every host."""
  devices = jax.devices() if devices is None else devices
  # Explicit axes, jax's default, refuse x @ y.T of two batch-sharded arrays.
  return jax.make_mesh(
    (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
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

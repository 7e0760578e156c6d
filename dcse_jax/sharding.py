"""Which device holds what: batches over "data", everything else everywhere."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """The sharding of an array of which this axis is the global batch."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put_batch(batch: Any, sharding: NamedSharding) -> Any:
  """Makes the global batch, a tree of arrays, of each host's part."""
  return jax.tree.map(
    lambda value: jax.make_array_from_process_local_data(sharding, value), batch
  )


def put_everywhere(tree: Any, mesh: Mesh) -> Any:
  """Copies a tree of host arrays to every device."""
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      x.shape, replicated(mesh), lambda index: x[index]
    ),
    tree,
  )


def abstract(tree: Any, mesh: Mesh) -> Any:
  """Shapes of a tree that is to be on every device."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree
  )


def wait_for_hosts(what: str) -> None:
  """Waits until every host is at the point of this name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)

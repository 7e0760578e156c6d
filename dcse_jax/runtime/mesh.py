"""The mesh of devices, and which device holds what.

Batches are divided over both axes of the mesh. Parameters, the optimizer's moments and
teachers are repeated along "data", and divided along "fsdp" by `RULES`: memory falls
with the size of that axis, and each matrix is gathered where it is needed.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import re
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from dcse_jax.runtime.errors import UserError

# The end of an array's path, and which of its axes "fsdp" divides, counted from the
# last, because stacks of layers, teachers or models add axes at the front. An array
# that no rule names, or whose axis does not divide evenly, is on every device.
RULES = (
  ("kernel", -2),  # [..., in, out]
  ("embedding", -1),  # [rows, H]: vocabularies seldom divide evenly, H does.
)


def make_mesh(
  devices: Sequence[jax.Device] | None = None, *, data: int = -1, fsdp: int = 1
) -> Mesh:
  """Makes a mesh with the axes "data" and "fsdp".

  Args:
    devices: the devices of the mesh; None takes all of every host.
    data: size of that axis; -1 takes what "fsdp" leaves.
    fsdp: size of the axis that parameters are divided over.

  Raises:
    UserError: the sizes do not make up the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  size = len(devices) // fsdp if data == -1 else data
  if size * fsdp != len(devices):
    raise UserError(
      f"mesh.data={data}, mesh.fsdp={fsdp}: their product must be the number of "
      f"devices, {len(devices)}; data=-1 takes what fsdp leaves"
    )
  # Explicit axes, jax's default, refuse x @ y.T of two batch-sharded arrays.
  return jax.make_mesh(
    (size, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that puts a whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Returns the sharding of an array whose given axis is the global batch."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))


def by_rules(tree: Any, mesh: Mesh) -> Any:
  """Returns the sharding of each array of a tree of parameters, by `RULES`.

  Args:
    tree: arrays or their shapes; parameters, or everything that training keeps.
    mesh: with an axis "fsdp".
  """
  size = mesh.shape["fsdp"]

  def sharding(path, leaf) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for end, axis in RULES:
      if re.search(rf"(^|/){end}$", name) and leaf.shape[axis] % size == 0:
        spec = [None] * len(leaf.shape)
        spec[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))
    return replicated(mesh)

  return jax.tree.map_with_path(sharding, tree)


_mesh = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def traced_over(mesh: Mesh | None) -> Iterator[None]:
  """Makes the mesh known to programs that are traced in this block; None is none."""
  token = _mesh.set(mesh)
  try:
    yield
  finally:
    _mesh.reset(token)


def divides(rows: int) -> bool:
  """Returns whether rows divide among the devices that a program is traced for.

  They do not where it is not known which of several devices those are.
  """
  mesh = _mesh.get()
  if mesh is None:
    return jax.device_count() == 1
  return rows % mesh.size == 0


def over_rows(
  fn: Callable[..., Any], rows: Sequence[jax.Array], whole: Sequence[jax.Array]
) -> Any:
  """Calls a function on each device with the rows that lie there.

  XLA divides its own operations by itself, and gathers what a kernel is given.

  Args:
    fn: from parts of rows and whole arrays to rows, one array or several.
    rows: arrays of rows of the batch, as many for each device.
    whole: arrays that every device has.
  """
  mesh = _mesh.get()
  if mesh is None or mesh.size == 1:
    return fn(*rows, *whole)
  by_batch = over_batch(mesh).spec
  specs = (by_batch,) * len(rows) + (PartitionSpec(),) * len(whole)
  divided = jax.shard_map(
    fn, mesh=mesh, in_specs=specs, out_specs=by_batch, check_vma=False
  )
  return divided(*rows, *whole)


def by_row(x: jax.Array) -> jax.Array:
  """Keeps an array [rows of the batch or groups of them, ...] divided by rows.

  Otherwise, where parameters are divided, XLA may move activations between devices
  instead of parameters, though they are larger.
  """
  mesh = _mesh.get()
  if mesh is None or mesh.shape["fsdp"] == 1 or len(x) % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, over_batch(mesh))


def whole(x: jax.Array) -> jax.Array:
  """Gathers an array to every device of the mesh that a program is traced over."""
  mesh = _mesh.get()
  return x if mesh is None else jax.lax.with_sharding_constraint(x, replicated(mesh))


def put_batch(batch: Any, sharding: NamedSharding) -> Any:
  """Makes the global batch, a tree of arrays, from each host's part."""
  return jax.tree.map(
    lambda value: jax.make_array_from_process_local_data(sharding, value), batch
  )


def put_params(tree: Any, mesh: Mesh) -> Any:
  """Copies host arrays, the same on every host, to the devices by `RULES`."""
  return jax.tree.map(
    lambda x, sharding: jax.make_array_from_callback(
      x.shape, sharding, lambda index: x[index]
    ),
    tree,
    by_rules(tree, mesh),
  )


def gathered(tree: Any, mesh: Mesh) -> Any:
  """Returns a tree of arrays that each process can read by itself.

  A process that has all devices gets the tree itself; otherwise each array is copied,
  whole, to a device of every process. All processes must call it together.
  """
  if jax.process_count() == 1:
    return tree
  everywhere = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
  return jax.tree.map(lambda x: x.addressable_data(0), everywhere)


def constrain(tree: Any, mesh: Mesh) -> Any:
  """Constrains a tree, under jit, to the shardings of `RULES`."""
  return jax.lax.with_sharding_constraint(tree, by_rules(tree, mesh))


def abstract(tree: Any, mesh: Mesh) -> Any:
  """Returns the shapes of a tree, with the shardings of `RULES`."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    tree,
    by_rules(tree, mesh),
  )

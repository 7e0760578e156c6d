"""Tables of weights: the tensor of a checkpoint for each parameter of ours.

A family's table has, for each of the encoder's modules, a Hugging Face module and the
names of its parameters. "{i}" is the layer, which is a leading axis on our side. Where
theirs holds several of ours, stacked on its first axis, a third entry says which part
ours is, and of how many equal ones.
"""

from collections.abc import Mapping

LINEAR = {"kernel": "weight", "bias": "bias"}
NORM = {"scale": "weight", "bias": "bias"}
EMBEDDING = {"embedding": "weight"}

Entry = tuple[str, Mapping[str, str]] | tuple[str, Mapping[str, str], tuple[int, int]]
Table = Mapping[str, Entry]


def find(
  table: Table, module: str, parameter: str, num_layers: int
) -> tuple[list[str], tuple[int, int]]:
  """Finds the tensors of a parameter, one or one a layer, and its part of each."""
  theirs, names, *part = table[module]
  key = f"{theirs}.{names[parameter]}"
  keys = [key.format(i=i) for i in range(num_layers)] if "{i}" in key else [key]
  return keys, part[0] if part else (0, 1)


def without_prefix(name: str, prefix: str) -> str:
  """Returns a tensor's name without that of the model that a head stands on."""
  return name.removeprefix(f"{prefix}.")

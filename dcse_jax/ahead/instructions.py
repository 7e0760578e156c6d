"""The instructions of a program's HLO text."""

import math
import re
from typing import NamedTuple

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
  """An array that an instruction gives."""

  bytes: int
  is_in_memory: bool  # On-chip memories, S(1) and up in layouts, do not count.


class Instruction(NamedTuple):
  """One line of the text; `rest` begins with its operands."""

  is_root: bool
  name: str
  op: str
  results: list[Array]
  operands: list[str]
  rest: str

  @property
  def size(self) -> int:
    """Bytes of all that it gives."""
    return sum(array.bytes for array in self.results)

  def called(self, attribute: str) -> list[str]:
    """Returns the computations that an attribute such as "body" names."""
    found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
    return _NAME.findall(found[1]) if found else []


def read(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Reads the instructions of every computation, by name, and the entry's name."""
  computations: dict[str, dict[str, Instruction]] = {}
  current, entry = {}, ""
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations[header[2]] = {}
      entry = header[2] if header[1] else entry
    elif found := _INSTRUCTION.match(line):
      instruction = _instruction(*found.groups())
      current[instruction.name] = instruction
  return computations, entry


def _instruction(root, name, shape, op, rest) -> Instruction:
  results = [
    Array(_bytes(dtype, dims), "S(" not in layout or "S(0)" in layout)
    for dtype, dims, layout in _SHAPE.findall(shape)
  ]
  depth, end = 1, 0
  while depth and end < len(rest):
    depth += {"(": 1, ")": -1}.get(rest[end], 0)
    end += 1
  return Instruction(
    bool(root), name, op, results, _NAME.findall(rest[: max(end - 1, 0)]), rest
  )


def _bytes(dtype: str, dims: str) -> int:
  if dtype in ("token", "opaque"):
    return 0
  bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
  return math.prod(map(int, filter(None, dims.split(",")))) * bits // 8

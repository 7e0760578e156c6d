"""Reads a compiled program's HLO text: its collectives, and what memory it moves.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it
runs.
"""

from collections.abc import Iterator
import dataclasses
import math
import re
from typing import NamedTuple

from dcse_jax.ahead import instructions as instructions_lib
from dcse_jax.ahead.instructions import Instruction
from dcse_jax.ahead.sources import Sources

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

# These instructions name other arrays, or take no time of their own.
_FREE = {
  "after-all",
  "bitcast",
  "call",
  "conditional",
  "constant",
  "custom-call",
  "get-tuple-element",
  "opt-barrier",
  "parameter",
  "partition-id",
  "tuple",
  "while",
}
# These run other computations.
_CALLS = ("call", "conditional", "while")
# A custom call with this is a GPU's kernel, a library's or one of ours.
_KERNEL = 'custom_call_target="__'
# These read as much of their first operand as they return.
_SLICES = ("dynamic-slice", "gather", "slice")
# These read nothing until another instruction reads their result.
_SAME = ("bitcast", "get-tuple-element", "tuple", "custom-call")


class _Place(NamedTuple):
  """A computation, and how it is run from one place."""

  name: str
  times: int
  is_fused: bool


@dataclasses.dataclass(frozen=True)
class Collective:
  """The use of one kind of collective in a program.

  Attributes:
    count: calls in a run.
    bytes: the bytes of the arrays in a run, each counted where it is whole: before a
      reduce-scatter, after an all-gather.
    sent: bytes that each device sends at least, in a ring.
    beside: how many of the calls begin before other work and end after it.
  """

  count: int = 0
  bytes: int = 0
  sent: float = 0.0
  beside: int = 0


@dataclasses.dataclass(frozen=True)
class Mover:
  """What moves memory.

  Attributes:
    count: instructions a run.
    bytes: that they read and write.
  """

  count: int = 0
  bytes: int = 0


class Program:
  """A compiled program.

  Args:
    text: the scheduled program from `jax.stages.Compiled.as_text`.
    num_devices: how many devices run it.
  """

  def __init__(self, text: str, num_devices: int):
    self._num_devices = num_devices
    self._sources = Sources(text)
    self._computations, entry = instructions_lib.read(text)
    self._places = list(self._run(_Place(entry, 1, False)))

  def collectives(self) -> dict[str, Collective]:
    """Counts the collectives of a run, by kind; sizes are those of one device."""
    totals = dict.fromkeys(COLLECTIVES, Collective())
    seen, beside = set(), set(self._beside())
    for place in self._places:
      for instruction in self._computations[place.name].values():
        kind = instruction.op.removesuffix("-start")
        if kind not in totals:
          continue
        if place.is_fused:
          # A collective that runs beside other work is in each fusion beside it.
          channel = re.search(r"channel_id=(\d+)", instruction.rest)
          key = (kind, channel and channel[1], instruction.size)
          if key in seen:
            continue
          seen.add(key)
        if place.name.startswith("all-reduce-scatter"):
          kind = "reduce-scatter"  # TPUs' form of it: only a part is kept.
        size, sent = self._traffic(kind, place, instruction)
        is_beside = place.is_fused or not beside.isdisjoint(
          (place.name, instruction.name)
        )
        old = totals[kind]
        totals[kind] = Collective(
          old.count + place.times,
          old.bytes + place.times * size,
          old.sent + place.times * sent,
          old.beside + place.times * is_beside,
        )
    return {kind: total for kind, total in totals.items() if total.count}

  def _beside(self) -> Iterator[str]:
    """Yields what begins before other work and ends after it.

    It is an instruction, or a computation that one starts.
    """
    for computation, instructions in self._computations.items():
      begun: dict[str, bool] = {}
      for instruction in instructions.values():
        if instruction.op.endswith("-start"):
          begun[instruction.name] = False
        elif instruction.op.endswith("-done"):
          start = instruction.operands[0]
          if begun.pop(start, False):
            yield start
            yield from instructions[start].called("calls")
        elif instruction.op in _CALLS or self._moved(computation, instruction):
          begun = dict.fromkeys(begun, True)

  def memory_bytes(self) -> int:
    """Counts the bytes that a run reads from the device's memory and writes to it.

    Of an array that is cut into slices where it is read, only these count.
    """
    return sum(mover.bytes for mover in self.movers().values())

  def kernels(self) -> int:
    """Counts what a run launches: all that reads memory or writes to it."""
    return sum(mover.count for mover in self.movers().values())

  def movers(self) -> dict[str, Mover]:
    """Returns what moves memory by the name of the code that asked for it.

    The largest come first.
    """
    totals: dict[str, Mover] = {}
    for place in self._places:
      if place.is_fused:
        continue
      for instruction in self._computations[place.name].values():
        moved = self._moved(place.name, instruction)
        if moved:
          name = self._sources.name(self._attributes(instruction))
          old = totals.get(name, Mover())
          totals[name] = Mover(old.count + place.times, old.bytes + place.times * moved)
    return dict(sorted(totals.items(), key=lambda item: -item[1].bytes))

  def sources(self) -> dict[str, str]:
    """Returns by the name of each instruction that of the code that asked for it."""
    return {
      instruction.name: self._sources.name(self._attributes(instruction))
      for place in self._places
      if not place.is_fused
      for instruction in self._computations[place.name].values()
    }

  def _attributes(self, instruction: Instruction) -> str:
    """Returns what says who asked: a fusion that does not may be known by its root."""
    if instruction.op != "fusion" or "op_name=" in instruction.rest:
      return instruction.rest
    (called,) = instruction.called("calls")
    (root,) = (i for i in self._computations[called].values() if i.is_root)
    return root.rest

  def _run(self, place: _Place) -> Iterator[_Place]:
    """Yields a computation and all that it calls, except for scalar functions."""
    yield place
    for instruction in self._computations[place.name].values():
      times, is_fused = place.times, place.is_fused
      names = []
      if instruction.op == "while":
        (condition,) = instruction.called("condition")
        names = instruction.called("body")
        times *= self._trips(instruction, condition)
      elif instruction.op == "fusion":
        names, is_fused = instruction.called("calls"), True
      elif instruction.op == "async-start":
        names = instruction.called("calls")
      elif instruction.op == "call":
        names = instruction.called("to_apply")
      elif instruction.op == "conditional":
        # Any of the branches may run.
        for attribute in (
          "branch_computations",
          "true_computation",
          "false_computation",
        ):
          names += instruction.called(attribute)
      for name in names:
        yield from self._run(_Place(name, times, is_fused))

  def _trips(self, loop: Instruction, condition: str) -> int:
    """Returns how often a loop that counts from 0 runs."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
      return int(known[1])
    instructions = self._computations[condition]
    (root,) = (i for i in instructions.values() if i.is_root)
    for operand in root.operands:
      constant = instructions[operand]
      if constant.op == "constant" and "direction=LT" in root.rest:
        return int(constant.rest.partition(")")[0])
    raise ValueError(f"{loop.name}: it is not known how often it turns")

  def _traffic(self, kind, place, instruction) -> tuple[int, float]:
    """Counts the bytes of a collective's arrays, and those that a device sends."""
    computation = self._computations[place.name]
    size = sum(computation[name].size for name in instruction.operands)
    n = _group_size(instruction.rest, self._num_devices)
    if kind == "all-gather":
      size *= n
    if kind == "collective-permute":
      return size, size
    passes = 2 if kind == "all-reduce" else 1
    return size, passes * size * (n - 1) / n

  def _moved(self, computation: str, instruction: Instruction) -> int:
    """Counts the bytes that an instruction outside a fusion reads and writes."""
    op, known = instruction.op, self._computations[computation]
    is_kernel = op == "custom-call" and _KERNEL in instruction.rest
    if (op in _FREE and not is_kernel) or op.endswith("-done"):
      return 0
    if is_kernel:
      # It may read an array in parts that it is given several times.
      names = dict.fromkeys(instruction.operands)
      reads = sum(known[name].size for name in names)
      # What a library's product gives beside its result is room to work in.
      is_product = "__cublas" in instruction.rest
      return reads + (instruction.results[0].bytes if is_product else instruction.size)
    operands = [known[name] for name in instruction.operands]
    if op in ("copy-start", "slice-start"):
      # It copies from one memory to another; the results name the source too.
      target = instruction.results[0 if op == "copy-start" else 1]
      source = operands[0].results[0]
      return target.bytes * (source.is_in_memory + target.is_in_memory)
    reads = [operand.size for operand in operands]
    writes = [array.bytes for array in instruction.results]
    if op == "fusion":
      (called,) = instruction.called("calls")
      reads, writes = self._fusion_reads(called), self._fusion_writes(called)
    elif op in _SLICES:
      reads[0] = instruction.size
    elif op == "dynamic-update-slice":
      reads[0], writes[0] = 0, reads[1]  # It works in place.
    moved = zip(
      (*reads, *writes),
      (*(operand.results[0] for operand in operands), *instruction.results),
    )
    return sum(size for size, array in moved if array.is_in_memory)

  def _fusion_reads(self, computation: str) -> list[int]:
    """Counts the bytes that a fusion reads of each parameter."""
    instructions = self._computations[computation]
    number = lambda parameter: int(parameter.rest.partition(")")[0])
    parameters = (i for i in instructions.values() if i.op == "parameter")
    return [
      min(parameter.size, self._read(instructions, parameter.name))
      for parameter in sorted(parameters, key=number)
    ]

  def _read(self, instructions, name: str) -> int:
    """Counts the bytes that instructions of a computation read of an array."""
    total, operand_size = 0, instructions[name].size
    for user in instructions.values():
      for i, operand in enumerate(user.operands):
        if operand != name:
          continue
        if user.op in _SAME:
          total += self._read(instructions, user.name)
        elif user.op == "convert":
          share = self._used(instructions, user) / max(user.size, 1)
          total += int(share * operand_size)
        elif i == 0 and user.op in _SLICES:
          total += self._used(instructions, user)
        elif i == 0 and user.op in ("dynamic-update-slice", "scatter"):
          pass  # It works in place.
        elif user.op.removesuffix("-start") in COLLECTIVES:
          pass  # It counts by its bytes on the links.
        elif user.op == "fusion":
          (called,) = user.called("calls")
          total += self._fusion_reads(called)[i]
        else:
          total += operand_size
    return total

  def _used(self, instructions, made: Instruction) -> int:
    """Counts the bytes of what is made in a computation that are read or returned."""
    if self._is_returned(instructions, made):
      return made.size
    return min(made.size, self._read(instructions, made.name))

  def _is_returned(self, instructions, made: Instruction) -> bool:
    """Says whether a computation returns what is made in it."""
    others = (i for i in instructions.values() if made.name in i.operands)
    return made.is_root or any(
      other.op in _SAME and self._is_returned(instructions, other) for other in others
    )

  def _fusion_writes(self, computation: str) -> list[int]:
    """Counts the bytes that a fusion writes of each result."""
    instructions = self._computations[computation]
    (root,) = (i for i in instructions.values() if i.is_root)
    if root.op != "tuple":
      return self._written(instructions, root)
    parts = [instructions[name] for name in root.operands]
    return [sum(self._written(instructions, part)) for part in parts]

  def _written(self, instructions, result: Instruction) -> list[int]:
    """Counts the bytes that are written of each array that an instruction returns."""
    while result.op == "bitcast":
      result = instructions[result.operands[0]]
    if result.op == "dynamic-update-slice":
      return [instructions[result.operands[1]].size]
    # An array that passes through was there, or counts by its bytes on the links.
    is_new = result.op not in ("parameter", *_SAME)
    return [array.bytes * is_new for array in result.results]


def _group_size(attributes: str, num_devices: int) -> int:
  """Returns the devices in a group of a collective, from any of three notations."""
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    # This is an axis by name, or a part of one: 'name':(before)size.
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part or sizes[axis]) for axis, part in parts)
  if found := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", attributes):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return len(found[1].split(","))
  return num_devices

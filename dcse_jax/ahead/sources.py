"""Who asked for what: the names that a program's HLO text has for its instructions."""

import re

_SECTIONS = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_ENTRY = re.compile(r"(\d+) (.*)")
_FIELD = re.compile(r"(\w+)=(\d+)")
# Code of this package is named; of other libraries, whoever here called them.
_PACKAGE = "/dcse_jax/"


class Sources:
  """The tables at the beginning of a text: files, functions, lines, stack frames.

  Args:
    text: as `jax.stages.Compiled.as_text` gives it.
  """

  def __init__(self, text: str):
    tables: dict[str, dict[int, str]] = {name: {} for name in _SECTIONS}
    section = None
    for line in text.splitlines():
      if line in tables:
        section = tables[line]
      elif section is not None and (found := _ENTRY.fullmatch(line)):
        section[int(found[1])] = found[2]
      elif line.startswith(("%", "ENTRY")):
        break
    self._files, self._functions, self._locations, self._frames = tables.values()

  def name(self, attributes: str) -> str:
    """Names what asked for an instruction, by its attributes.

    Returns:
      A file of this package and a function in it, what that called, and whether it is
      its backward pass; "the compiler" for what it adds by itself.
    """
    asked = re.search(r'op_name="([^"]*)"', attributes)
    if not asked:
      return "the compiler"
    *_, operation = asked[1].split("/")
    frame = re.search(r"stack_frame_id=(\d+)", attributes)
    where = self._caller(int(frame[1])) if frame else ""
    parts = [where or "elsewhere", operation]
    if "transpose(" in asked[1]:
      parts.append("backward")
    return ", ".join(parts)

  def _caller(self, frame: int) -> str:
    """Returns the innermost file and function of this package, or ""."""
    while frame in self._frames:
      fields = _numbers(self._frames[frame])
      place = _numbers(self._locations[fields["file_location_id"]])
      file = self._files[place["file_name_id"]].strip('"')
      if _PACKAGE in file:
        function = self._functions[place["function_name_id"]].strip('"')
        return f"{file.rpartition(_PACKAGE)[2]} {function.rpartition('.')[2]}"
      parent = fields.get("parent_frame_id", frame)
      if parent == frame:
        return ""
      frame = parent
    return ""


def _numbers(fields: str) -> dict[str, int]:
  return {name: int(value) for name, value in _FIELD.findall(fields)}

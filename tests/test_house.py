"""The habits that a machine keeps: formatting, docstrings, and who may know whom."""

import ast
import doctest
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

from tests import processes

# The tools are beside the Python that runs the tests.
BIN = pathlib.Path(sys.executable).parent


@pytest.mark.parametrize(
  "command",
  [
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("lint-imports", "--no-cache"),
  ],
  ids=" ".join,
)
def test_the_code_keeps_its_contracts(command):
  name, *arguments = command
  result = subprocess.run(
    [BIN / name, *arguments], cwd=processes.ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["contrastive", "distillation"])
def test_the_examples_of_terms_are_right(name):
  module = importlib.import_module(f"dcse_jax.losses.{name}")
  found = doctest.testmod(module)
  assert found.attempted and not found.failed


def test_every_room_says_what_it_is_for():
  rooms = [path.parent for path in (processes.ROOT / "dcse_jax").glob("*/__init__.py")]
  design = (processes.ROOT / "docs/design.md").read_text(encoding="utf-8")
  assert len(rooms) > 8
  for room in rooms:
    assert (room / "__init__.py").read_text(encoding="utf-8").startswith('"""'), room
    assert f"| `{room.name}/` |" in design, room


def test_the_docstring_of_a_function_opens_with_a_verb():
  found = []
  for path in (processes.ROOT / "dcse_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if not isinstance(node, ast.FunctionDef):
        continue
      # A property's names the thing, and a term's its loss.
      marks = " ".join(map(ast.unparse, node.decorator_list))
      first = (ast.get_docstring(node) or "Returns").partition("\n")[0]
      if not re.match(r"[A-Z][\w-]*s\b", first) and not re.search(
        r"\bproperty|cached_property|^term\(", marks
      ):
        found.append(f"{path}:{node.lineno}: {first}")
  assert not found, "\n".join(found)


def test_no_sentence_or_argument_is_described_by_a_genitive():
  # A comment that begins with "Of", an argument that is "of" something: what is it?
  fragment = re.compile(r'(#|"""|\. ) *(Of|By) |^ +\w+: (of|by) |\bso[ ]many\b')
  found = []
  for room in ("benchmarks", "configs", "dcse_jax", "tests"):
    for path in (processes.ROOT / room).rglob("*.py"):
      for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if fragment.search(line):
          found.append(f"{path}:{number}: {line}")
  assert not found, "\n".join(found)

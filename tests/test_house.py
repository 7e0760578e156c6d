"""The habits that a machine keeps: formatting, docstrings, and who may know whom."""

import doctest
import importlib
import pathlib
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
  readme = (processes.ROOT / "README.md").read_text(encoding="utf-8")
  assert len(rooms) > 8
  for room in rooms:
    assert (room / "__init__.py").read_text(encoding="utf-8").startswith('"""'), room
    assert f"| `{room.name}/` |" in readme, room

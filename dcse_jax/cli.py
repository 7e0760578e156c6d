"""The command `dcse-jax`: one name for every command of the package.

`dcse-jax NAME ...` does what `python -m dcse_jax.MODULE ...` does, with its flags.
"""

import ast
import importlib.util
import os
import pathlib
import runpy
import sys

# The module behind each command, in the order in which people need them.
COMMANDS = {
  "train": "main",
  "encode": "encode",
  "index": "index",
  "search": "search",
  "evaluate": "evaluate",
  "report": "report",
  "demo": "demo",
  "convert": "convert",
  "compile": "compile",
  "embed-with": "embed_with",
  "words": "words",
  "mine": "mine",
  "prepare": "prepare",
}


def _summary(module: str) -> str:
  """Reads the first line of a command's docstring, without importing its libraries."""
  source = pathlib.Path(importlib.util.find_spec(f"dcse_jax.{module}").origin)
  doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
  return doc.partition("\n")[0]


def _usage() -> str:
  width = max(map(len, COMMANDS))
  return "\n".join(
    [
      "dcse-jax train --config quickstart --workdir runs/quickstart",
      "dcse-jax encode --model runs/quickstart/export --input my.txt --output my.npy",
      "",
      *(f"  {name:<{width}}  {_summary(COMMANDS[name])}" for name in COMMANDS),
      "",
      "dcse-jax NAME --help has the examples and flags of each.",
    ]
  )


def _print(text: str) -> None:
  """Prints what nobody may read to its end, as in `dcse-jax --help | head`."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # Python closes the stream once more as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
  """Runs the command that the first argument names."""
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in ("--help", "-h", "help"):
    _print(_usage())
  elif name == "--version":
    _print(f"dcse-jax {sys.modules['dcse_jax'].__version__}")
  elif name not in COMMANDS:
    commands = ", ".join(COMMANDS)
    print(f"error: {name!r} is no command: use one of {commands}", file=sys.stderr)
    sys.exit(2)
  else:
    from dcse_jax.runtime import command_line

    command_line.program = f"dcse-jax {name}"
    del sys.argv[1]
    runpy.run_module(f"dcse_jax.{COMMANDS[name]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()

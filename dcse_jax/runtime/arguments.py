"""What may be written on a command line: dashes, names of packaged configs, --help."""

import ast
from collections.abc import Sequence
import contextlib
import pathlib
import re
import sys

from absl import flags

from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

# The configs of the repository, which are packaged beside the code.
_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
_FLAG = re.compile(r"--?([A-Za-z][^=]*)(=.*)?", re.DOTALL)


def find_config(name: str) -> str:
  """Finds the file of a config.

  Args:
    name: a file's path; or the name of a config that comes with the package, with or
      without .py, which counts where there is no such file. Either may end in
      :VARIANT.

  Returns:
    The path of the file, with the variant.

  Raises:
    UserError: there is no such file.
  """
  path, colon, variant = name.partition(":")
  file = files.user_path(path)
  if not file.is_file():
    # A name with a slash says where it is.
    file = _CONFIGS / f"{path.removesuffix('.py')}.py"
    if "/" in path or not file.is_file():
      names = ", ".join(sorted(each.stem for each in _CONFIGS.glob("*.py")))
      raise UserError(
        f"there is no config file {path}: name one, or one that comes with the "
        f"package: {names}"
      )
  return str(file) + colon + variant


def normalize(arguments: Sequence[str]) -> list[str]:
  """Writes flags as they are defined: with underscores, and with a config's own path.

  Args:
    arguments: those of a command whose flags are defined already.

  Raises:
    UserError: there is no such config.
  """
  result, known, arguments = [], flags.FLAGS, list(arguments)
  while arguments and arguments[0] != "--":
    argument = arguments.pop(0)
    match = _FLAG.fullmatch(argument)
    if not match:
      result.append(argument)
      continue
    name, value = match.groups()
    if name not in known:
      # A round may have dashes in its name: --config.rounds['my-round'].seeds.
      name = re.sub(r"-(?![^\[]*\])", "_", name)
      if name.startswith("no_") and name[3:] in known:
        name = f"no{name[3:]}"
    takes_next = value is None and name in known and not known[name].boolean
    values = [value] if value else []
    if takes_next and arguments:
      values = [f"={arguments.pop(0)}"]
    if name == "config" and values:
      values = [f"={find_config(values[0][1:])}"]
    result.append("".join([f"--{name}", *values]))
  return result + arguments


def unknown_field(error: AttributeError | KeyError) -> UserError:
  """Returns what to say where ml_collections does not know a field of a config."""
  # Its message is quoted, or is another error's, and has a line with a guess.
  message = str(error.args[0] if error.args else error)
  with contextlib.suppress(SyntaxError, ValueError):
    message = str(ast.literal_eval(message))
  name, _, guess = " ".join(message.split()).partition(" Did you mean ")
  guess = f"did you mean {guess.partition(' ')[0]}? " if guess else ""
  return UserError(f"unknown config field {name}: {guess}dcse_jax/config.py lists them")


def help_text(doc: str, program: str) -> str:
  """Returns what --help prints: a command's docstring, and then its flags.

  Args:
    doc: the docstring of its module, which has examples in backticks.
    program: what the examples are to call the command.
  """
  doc = re.sub(r"^`(.*)`$", r"  \1", doc.strip(), flags=re.MULTILINE)
  doc = re.sub(r"python -m dcse_jax\.\w+", program, doc)
  parts = [doc, ""]
  # absl names the main module by its file; other flags are libraries'.
  for flag in flags.FLAGS.flags_by_module_dict().get(sys.argv[0], []):
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = ""
    if not flag.boolean and flag.value not in (None, []):
      default = f" ({flag.default_as_str.strip(chr(39))} unless told)"
    # absl adds to some that they may be repeated.
    about = flag.help.partition(";\n")[0] + default
    about = flags.text_wrap(about, indent=" " * 6)
    parts.append(f"  {name}\n{about}")
  return "\n".join(parts)

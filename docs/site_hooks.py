"""What the site has besides the pages of docs/, made as mkdocs builds it.

The pages link as a checkout does. What they link to outside of docs/ becomes a page of the
site: Markdown as it is, with the README as the first page; a program or a list of names in
a block of code; a notebook's cells one after the other. The pages of commands and of losses are made
from their docstrings and flags, without importing any.
"""

import ast
import json
import pathlib
import posixpath
import re
import runpy

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
_PAGES = {
  "README.md": "index.md",
  "CHANGELOG.md": "changelog.md",
  "CONTRIBUTING.md": "contributing.md",
  "benchmarks/README.md": "benchmarks.md",
  "launch/README.md": "launch.md",
}
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
_FENCE = "`" * 4


def on_config(config):
  """Puts pages that the menu does not name at the end of its guide."""
  named = re.findall(r"[\w/]+\.md", str(config.nav))
  guide = next(part["Guide"] for part in config.nav if "Guide" in part)
  pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
  guide += [name for name in pages if name not in named]
  return config


def on_files(files, config):
  """Puts every page into the site, with its links as the site has them."""
  pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
  notebooks = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.ipynb")]
  waiting = [*_PAGES, *(path.as_posix() for path in pages + notebooks)]
  seen = set(waiting)
  for uri in [file.src_uri for file in files if file.src_uri.endswith(("md", "ipynb"))]:
    files.remove(files.get_file_from_path(uri))
  while waiting:
    path = waiting.pop()
    page = _uri(path)

    def link(match, path=path, page=page):
      target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
      if not (ROOT / target).exists():
        return match[1]  # The build says so.
      if target not in seen and _uri(target) != target.removeprefix("docs/"):
        seen.add(target)
        waiting.append(target)
      return posixpath.relpath(_uri(target), posixpath.dirname(page))

    content = _LINK.sub(link, _content(ROOT / path))
    files.append(File.generated(config, page, content=content))
  files.append(File.generated(config, "commands.md", content=_commands()))
  files.append(File.generated(config, "losses.md", content=_losses()))
  return files


def _uri(path):
  """Returns where the site has a file of the repository."""
  if path in _PAGES:
    return _PAGES[path]
  inside = path.removeprefix("docs/")
  if inside != path and path.endswith((".md", ".svg", ".png")):
    return inside
  if inside != path and path.endswith(".ipynb"):
    return inside.removesuffix("ipynb") + "md"
  return f"source/{path.lstrip('.')}.md"  # Hidden folders are no part of a site.


def _content(path):
  """Returns a file of the repository as Markdown."""
  if path.suffix == ".ipynb":
    return _notebook(json.loads(path.read_text(encoding="utf-8")))
  if path.suffix == ".md":
    return path.read_text(encoding="utf-8")
  name = path.relative_to(ROOT).as_posix()
  if path.is_dir():
    names = sorted(p.name for p in path.iterdir() if not p.name.startswith(("_", ".")))
    lines = [f"- [`{each}`]({each})" for each in names if (path / each).is_file()]
    # Links are relative to the folder's parent, where the page lies.
    lines = [line.replace("](", f"]({path.name}/") for line in lines]
    body = "\n".join(lines)
  else:
    kind = {".py": "python", ".sh": "bash", ".yaml": "yaml"}.get(path.suffix, "text")
    code = path.read_text(encoding="utf-8").rstrip()
    body = f"{_FENCE}{kind}\n{code}\n{_FENCE}"
  return f"---\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n{body}\n"


def _notebook(notebook):
  cells = []
  for cell in notebook["cells"]:
    source = "".join(cell["source"])
    is_code = cell["cell_type"] == "code"
    cells.append(f"```python\n{source}\n```" if is_code else source)
  return "\n\n".join(cells) + "\n"


def _commands():
  commands = runpy.run_path(str(ROOT / "dcse_jax/cli.py"))["COMMANDS"]
  parts = [
    "# Commands",
    "`dcse-jax NAME` of the installed package is `python -m dcse_jax.MODULE` of a checkout; "
    "`dcse-jax NAME --help` prints what stands here. Dashes and underscores in flags are "
    "the same. There is no shell completion: absl, which reads the flags, gives none.",
  ]
  for name, module in commands.items():
    tree = ast.parse((ROOT / f"dcse_jax/{module}.py").read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree).replace(
      f"python -m dcse_jax.{module}", f"dcse-jax {name}"
    )
    # An example has a line of its own.
    doc = re.sub(r"(?m)((?:^`.*`$\n?)+)", _block, doc)
    flags = [f"- `--{flag}`: {about}" for flag, about in _flags(tree)]
    parts += [f"## {name}", doc, "\n".join(flags)]
  return "\n\n".join(parts) + "\n"


def _losses():
  parts = [
    "# Losses",
    "Each is a term of [`config.objective`](objectives.md); its keyword arguments are "
    "`config.TERM.SETTING`. B is the batch, b rows of it, D the width of an embedding.",
  ]
  for path in sorted((ROOT / "dcse_jax/losses").glob("*.py")):
    if "\n@term(" in path.read_text(encoding="utf-8"):
      parts.append(f"::: dcse_jax.losses.{path.stem}")
  return "\n\n".join(parts) + "\n"


def _block(match):
  lines = [line[1:-1] for line in match[1].strip().split("\n")]
  return "\n".join(["```bash", *lines, "```", ""])


def _flags(tree):
  """Yields the names of the flags that a command defines itself, and what they are."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
      continue
    texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
    texts += [k.value.value for k in node.keywords if k.arg == "help_string"]
    texts = [text for text in texts if isinstance(text, str)]
    if node.func.attr.startswith("DEFINE_") and len(texts) > 1:
      yield texts[0], texts[-1]

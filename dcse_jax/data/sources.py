"""What `config.text` names: a file or several, patterns, and shares of them."""

from collections.abc import Iterator, Sequence
import dataclasses
import glob
import itertools
import re

import numpy as np

from dcse_jax.data import decoding
from dcse_jax.data import readers
from dcse_jax.runtime import files

_SHARE = re.compile(r"(.+)\*(\d*\.?\d+)", re.DOTALL)
_DRAWN_AT_ONCE = 4096

# A name, or several.
Names = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Source:
  """One place that text is read from.

  Attributes:
    name: a path, or what begins with one of `readers.PREFIXES`.
    share: which share of its rows is read, in (0, 1].
  """

  name: str
  share: float = 1.0

  def drawn(self, place: int) -> Iterator[bool]:
    """Yields for each row whether it is read; the same at every time.

    Args:
      place: the source's number among the sources, which the draw depends on.
    """
    if self.share == 1:
      return itertools.repeat(True)
    rng = np.random.default_rng(place)
    blocks = (rng.random(_DRAWN_AT_ONCE) < self.share for _ in itertools.count())
    return itertools.chain.from_iterable(block.tolist() for block in blocks)


def expand(text: Names) -> list[Source]:
  """Lists the sources that names stand for, patterns in the order of their files.

  `NAME*SHARE`, as in "b.parquet*0.3", is a share of the rows, and "data/*.txt" all files
  that fit; but a name that is that of a file is that file.

  Args:
    text: a name as `text.read_text` takes it, or several.

  Raises:
    UserError: a share is no share, or no file fits a pattern.
  """
  names = [text] if isinstance(text, str) else text
  return list(itertools.chain.from_iterable(map(_expand, names)))


def _expand(name: str) -> list[Source]:
  share = 1.0
  if not _is_there(name) and (match := _SHARE.fullmatch(name)):
    name, share = match[1], float(match[2])
    if not 0 < share <= 1:
      raise decoding.user_error(
        f"{name}*{match[2]}: a share of its rows is above 0 and 1 at most: to meet a "
        "sentence more often, read less of the others"
      )
  if name.startswith(readers.PREFIXES):
    return [Source(name, share)]
  path = str(files.user_path(name))
  if _is_there(name) or not glob.has_magic(path):
    return [Source(path, share)]
  found = sorted(glob.glob(path, recursive=True))
  if not found:
    raise decoding.user_error(f"{name}: no file fits this pattern; check the path")
  return [Source(each, share) for each in found]


def _is_there(name: str) -> bool:
  return not name.startswith(readers.PREFIXES) and files.user_path(name).exists()

"""Approximate search by faiss in lists on disk: what is nearest, nearly always.

Rows are divided among lists by the nearest of as many centres (IVF), and each is kept as
a product code of its difference from that centre (PQ; Jégou, Douze and Schmid, Product
Quantization for Nearest Neighbor Search, PAMI 2011). A query looks at the lists of the
nearest centres. Codes tell rows apart only roughly, so that what is found is a shortlist.
"""

from collections.abc import Iterable, Iterator
import contextlib
import ctypes
import os
import pathlib

import numpy as np

from dcse_jax.embed.neighbours import import_faiss
from dcse_jax.runtime.errors import UserError

# Numbers of an embedding that have one byte of a code.
_NUMBERS = 8
# faiss advises 4 to 16 times the square root of the rows; more lists take longer to
# build.
_LISTS, _MOST_LISTS = 4, 32_768
# Rows for each centre that it is trained on.
_TRAINED = 50
# Rows whose codes are in memory at a time.
_PART_ROWS = 1 << 20
_LIST_FILE, _DATA_FILE = "lists.faiss", "lists.ivfdata"


def layout(rows: int, width: int) -> tuple[int, int]:
  """Returns the number of lists for as many rows, and the bytes of a code."""
  lists = min(round(_LISTS * rows**0.5), _MOST_LISTS)
  return lists, -(-width // _NUMBERS)


def trained_rows(lists: int) -> int:
  """Returns how many rows the centres and codes are to be trained on, at most."""
  return lists * _TRAINED


def write(
  folder: pathlib.Path,
  layout: tuple[int, int],
  sample: np.ndarray,
  blocks: Iterable[np.ndarray],
) -> None:
  """Trains lists, fills them with rows, and writes them into a folder.

  Args:
    folder: it also gets files that are removed again, of as many bytes.
    layout: see `layout`.
    sample: the rows to train on, [n, D] of unit length.
    blocks: all rows, [m, D] of unit length at a time.

  Raises:
    UserError: faiss is not installed.
    OSError: the disk is full.
  """
  faiss = import_faiss()
  from faiss.contrib import ondisk

  lists, size = layout
  index = faiss.index_factory(
    size * _NUMBERS, f"IVF{lists},PQ{size}", faiss.METRIC_INNER_PRODUCT
  )
  # It would complain about small samples, of which it says nothing that is not known.
  index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
  index.train(_padded(sample, size))
  parts, row = [], 0

  def write_part():
    parts.append(str(folder / f"{len(parts)}.part"))
    _write(faiss, index, parts[-1])
    index.reset()

  for block in blocks:
    index.add_with_ids(_padded(block, size), np.arange(row, row + len(block)))
    row += len(block)
    if index.ntotal >= _PART_ROWS:
      write_part()
  write_part()
  with _silent():
    ondisk.merge_ondisk(index, parts, str(folder / _DATA_FILE))
  _write(faiss, index, str(folder / _LIST_FILE))
  for part in parts:
    os.unlink(part)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Keeps what C code prints from standard output."""
  flush = lambda: ctypes.CDLL(None).fflush(None)
  flush()
  kept = os.dup(1)
  with open(os.devnull, "w") as nothing:
    os.dup2(nothing.fileno(), 1)
  try:
    yield
  finally:
    flush()
    os.dup2(kept, 1)
    os.close(kept)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
  """Adds zeros to rows, so that each byte of a code has as many numbers."""
  missing = size * _NUMBERS - rows.shape[1]
  return np.pad(rows, ((0, 0), (0, missing))) if missing else rows


def _write(faiss, index, path: str) -> None:
  try:
    faiss.write_index(index, path)
  except RuntimeError as error:
    raise OSError(str(error).rpartition("Error: ")[-1]) from error


class InvertedLists:
  """Lists in a folder, of which a search reads those that it looks at.

  Args:
    folder: where `write` has put them.

  Raises:
    UserError: faiss is not installed, or cannot read them.
  """

  def __init__(self, folder: pathlib.Path):
    faiss = import_faiss()
    try:
      self._index = faiss.read_index(
        str(folder / _LIST_FILE), faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_IVF_DATA
      )
      # The folder was renamed; faiss's own flag for that prints a line.
      lists = faiss.downcast_InvertedLists(self._index.invlists)
      lists.filename = str(folder / _DATA_FILE)
      lists.do_mmap()
    except RuntimeError as error:
      raise UserError(
        f"faiss cannot read {folder / _LIST_FILE}: build the index anew"
      ) from error

  def search(self, queries: np.ndarray, depth: int, probes: int) -> np.ndarray:
    """Returns a shortlist of rows for each query, [q, depth], -1 where there is none.

    Args:
      queries: [q, D] of unit length.
      depth: how many rows.
      probes: how many lists each query looks at.
    """
    self._index.nprobe = probes
    return self._index.search(_padded(queries, self._index.pq.M), depth)[1]

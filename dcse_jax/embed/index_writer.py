"""Writes an index into a folder, in blocks, and measures what it finds.

Exact search over the embeddings as they were given says what it should find, for queries
that nothing was trained on.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import itertools
import logging
import pathlib
from typing import Any

import numpy as np

from dcse_jax.data import kept_text
from dcse_jax.embed import embedded
from dcse_jax.embed import index_folder
from dcse_jax.embed import inverted_lists
from dcse_jax.embed.neighbours import import_faiss
from dcse_jax.embed.precision import quantize
from dcse_jax.embed.precision import ranges_of
from dcse_jax.embed.recall import recalls
from dcse_jax.model.vectors import is_finite
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime import digests
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# Fewer sentences are searched one by one.
_EXACT_ROWS = 100_000
# The ranges of eight bits are measured on as many rows, or more.
_RANGED = 10_000
# Rows that are held out as queries: half of them choose, half measure.
_HELD_OUT = 1000
# At most this part of the lists is looked at.
_MOST_SHARE = 4
# More lists must find more by this.
_NEAR = 0.001
# Rows that tell whether embeddings are those of a model and a text.
_CHECKED = 32


def check_installed(rows: int) -> None:
  """Refuses what so large an index needs and is not installed."""
  if rows >= _EXACT_ROWS:
    import_faiss()


def write(
  folder: pathlib.Path,
  source: embedded.Embedded,
  origin: dict[str, str],
  *,
  queries: np.ndarray | None = None,
  recall: float = 0.95,
  check: Callable[[list[str], np.ndarray], None] = lambda sentences, rows: None,
) -> dict[str, Any]:
  """Writes the files of an index into an empty folder.

  Args:
    folder: where they go.
    source: embeddings and sentences.
    origin: digests of model and text.
    queries: what recall is measured on, [q, D]; None holds some of the rows out.
    recall: see `build`.
    check: refuses sentences and rows that do not belong together.

  Returns:
    What the index says of itself.

  Raises:
    UserError: hardly a row is finite, or faiss is needed and missing.
  """
  return _Writer(folder, source, origin, check).run(queries, recall)


@dataclasses.dataclass(frozen=True)
class _Sample:
  """Some rows of an index.

  Attributes:
    trained: those to train on, [t, D] of unit length.
    numbers: their numbers, [t].
    queries: those that are held out, [q, D].
    own: their numbers, [q].
  """

  trained: np.ndarray
  numbers: np.ndarray
  queries: np.ndarray
  own: np.ndarray


class _Writer:
  """The state of `write`."""

  def __init__(self, folder, source, origin, check):
    self._folder, self._source, self._check = folder, source, check
    lists, size = 0, 0
    if source.rows >= _EXACT_ROWS:
      lists, size = inverted_lists.layout(source.rows, source.width)
    self._about = {
      "format": index_folder.FORMAT,
      **origin,
      "rows": 0,
      "width": source.width,
      "lists": lists,
      "code_bytes": size,
      "probes": 0,
    }

  def run(self, queries: np.ndarray | None, recall: float) -> dict[str, Any]:
    """Writes all files, and returns what the index says of itself."""
    _log.info("reading %d embeddings", self._source.rows)
    sample = self._survey()
    step = max(len(sample.numbers) // _CHECKED, 1)
    text = kept_text.KeptText(self._folder)
    sentences = [text[int(row)] for row in sample.numbers[::step]]
    self._check(sentences, sample.trained[::step])
    ranges = ranges_of([sample.trained, sample.queries])
    np.save(self._folder / index_folder.RANGES, ranges)
    blocks, lists = self._written(ranges), self._about["lists"]
    if lists:
      _log.info("training and filling %d lists", lists)
      layout = lists, self._about["code_bytes"]
      inverted_lists.write(self._folder, layout, sample.trained, blocks)
    else:
      for _ in blocks:
        pass
    own = sample.own if queries is None else None
    queries = sample.queries if queries is None else queries
    _log.info("measuring recall on %d queries", len(queries))
    self._write_about()
    self._measure(queries, own, recall)
    return self._write_about()

  def _survey(self) -> _Sample:
    """Reads all once: writes the sentences, and takes a sample of the rows.

    Rows with NaN or infinity are left out, with their sentences.
    """
    source = self._source
    held_out = max(2, min(_HELD_OUT, source.rows // 10))
    wanted = max(_RANGED, inverted_lists.trained_rows(self._about["lists"])) + held_out
    rng = np.random.default_rng(0)
    wanted = rng.choice(source.rows, min(wanted, source.rows), replace=False)
    order = np.argsort(wanted)
    wanted, is_query = wanted[order], order < held_out
    vectors = np.empty((len(wanted), source.width), np.float32)
    rows, is_there, first, kept = np.zeros(len(wanted), np.int64), [], 0, 0
    with kept_text.writing(self._folder) as text:
      sentences = source.sentences()
      for block in source.blocks():
        finite = is_finite(block)
        text.add(
          [s for s, ok in zip(itertools.islice(sentences, len(block)), finite) if ok]
        )
        start, stop = np.searchsorted(wanted, (first, first + len(block)))
        places = wanted[start:stop] - first
        vectors[start:stop] = unit_length(block[places])
        rows[start:stop] = kept + np.cumsum(finite)[places] - 1
        is_there.append(finite[places])
        first, kept = first + len(block), kept + int(finite.sum())
    if kept < first:
      _log.warning(
        "%d of %d embeddings hold NaN or infinity and are left out", first - kept, first
      )
    is_there = np.concatenate(is_there)
    held, trained = is_there & is_query, is_there & ~is_query
    if held.sum() < 2:
      raise UserError("nearly all embeddings hold NaN or infinity: check the model")
    self._about["rows"] = kept
    return _Sample(vectors[trained], rows[trained], vectors[held], rows[held])

  def _unit_blocks(self) -> Iterator[np.ndarray]:
    """Yields all rows that are finite, float32 [m, D] of unit length."""
    for block in self._source.blocks():
      block = block[is_finite(block)]
      if len(block):
        yield unit_length(block).astype(np.float32)

  def _written(self, ranges: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows, of unit length, and writes them in eight bits."""
    shape = (self._about["rows"], self._about["width"])
    with (self._folder / index_folder.ROWS).open("wb") as file:
      header = {"descr": "|i1", "fortran_order": False, "shape": shape}
      np.lib.format.write_array_header_1_0(file, header)
      for block in self._unit_blocks():
        file.write(quantize(block, "int8", ranges).tobytes())
        yield block

  def _write_about(self) -> dict[str, Any]:
    names = [n for n in digests.names_in(self._folder) if n != index_folder.ABOUT]
    sizes = {name: (self._folder / name).stat().st_size for name in sorted(names)}
    about = {**self._about, "files": sizes}
    files.write_json(self._folder / index_folder.ABOUT, about)
    return about

  def _measure(
    self, queries: np.ndarray, own: np.ndarray | None, recall: float
  ) -> None:
    """Measures recall, and chooses how many lists a query looks at.

    Args:
      queries: [q, D].
      own: see `recalls`.
      recall: what is to be reached on every second query. The others say what is.
    """
    index = index_folder.IndexFolder(self._folder)
    most = max(self._about["lists"] // _MOST_SHARE, 1)
    probes = [1 << i for i in range(most.bit_length())]
    searches = [functools.partial(index.search, probes=each) for each in probes]
    shares = recalls(searches, queries, own, self._unit_blocks())
    chosen, measured = shares[:, ::2].mean(axis=1), shares[:, 1::2].mean(axis=1)
    # Where it cannot be reached, what comes near the best will do.
    wanted = recall if chosen.max() >= recall else chosen.max() - _NEAR
    place = int(np.argmax(chosen >= wanted))
    if self._about["lists"]:
      self._about["probes"] = probes[place]
    self._about["recall@10"] = round(float(measured[place]), 4)
    self._about["queries"] = shares[:, 1::2].shape[1]

"""What is done with a part: it is read, embedded, rounded and written."""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import itertools
import pathlib
from typing import Any

import numpy as np

from dcse_jax.cluster import manifest
from dcse_jax.cluster import tables
from dcse_jax.cluster.embedders import Embedder
from dcse_jax.cluster.parts import Part
from dcse_jax.embed import calibration as calibration_lib
from dcse_jax.embed import precision as precision_lib
from dcse_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
  """What is the same for all parts.

  Attributes:
    embedder: the model.
    layout: the columns that are read.
    output: the folder that parts are written to.
    precision: one of `precision.PRECISIONS`.
    skip_bad_rows: whether bad rows are left out and counted.
  """

  embedder: Embedder
  layout: tables.Layout
  output: str
  precision: str
  skip_bad_rows: bool


class Worker:
  """One that has the model, and does part after part.

  Args:
    job: what is to be done.

  Raises:
    UserError: the model cannot be loaded here.
  """

  def __init__(self, job: Job):
    self._job = job
    self._loaded = job.embedder.load()

  def describe(self) -> tuple[dict[str, Any], int]:
    """Returns the model's origin, JSON, and the width of its embeddings."""
    return self._loaded.origin, self._loaded.width

  def measure(self, parts: Sequence[Part], source: str | None) -> np.ndarray:
    """Measures the ranges that eight bits divide, [2, D].

    Args:
      parts: those that are measured.
      source: a text or a .npy file that is measured instead, as `calibrate` takes it.
    """
    if source:
      return calibration_lib.calibrate(self._loaded.stream, (), source)
    sentences = (
      s for part in parts for rows in self._read(part) for s in rows.sentences
    )
    return precision_lib.ranges_of(self._loaded.stream(sentences))

  def embed(
    self, part: Part, origin: dict[str, Any], ranges: np.ndarray | None
  ) -> dict[str, Any]:
    """Writes a part and its entry, which it returns.

    Args:
      part: which rows.
      origin: that of the model that all parts are of.
      ranges: see `measure`; None where the precision has none.

    Raises:
      UserError: this worker has another model, a row is bad, or the part cannot be
        written.
    """
    if origin != self._loaded.origin:
      raise UserError(
        f"{self._job.embedder.model} is another model here than where the others are: "
        "copy the same folder to all machines"
      )
    folder, counts = manifest.Folder(self._job.output), {}

    def write(path: pathlib.Path) -> None:
      counts.update(self._write(path, part, ranges))

    folder.put(f"{part.name}.parquet", write)
    entry = {
      "part": part.number,
      "name": f"{part.name}.parquet",
      "file": part.shown,
      "first_row": part.first,
      "input_rows": part.rows,
      **counts,
    }
    folder.finish_part(entry)
    return entry

  def _read(self, part: Part) -> Iterator[tables.Rows]:
    return tables.read(part, self._job.layout, skip_bad_rows=self._job.skip_bad_rows)

  def _write(
    self, path: pathlib.Path, part: Part, ranges: np.ndarray | None
  ) -> dict[str, Any]:
    """Writes a part as Parquet; returns its counts and digests."""
    import pyarrow as pa

    waiting: collections.deque[Any] = collections.deque()
    text, bad = hashlib.blake2b(digest_size=16), 0

    def sentences() -> Iterator[str]:
      nonlocal bad
      for rows in self._read(part):
        waiting.append(rows.table)
        bad += rows.bad
        for sentence in rows.sentences:
          text.update(f"{sentence}\n".encode())
        yield from rows.sentences

    blank = np.zeros((0, self._loaded.width), np.float32)
    writer, done = None, 0
    # The last, of no sentence, writes what has none: a part whose rows are all bad.
    for embeddings in itertools.chain(self._loaded.stream(sentences()), [blank]):
      rows = pa.concat_tables(waiting)
      waiting.clear()
      waiting.append(rows.slice(len(embeddings)))
      numbers = precision_lib.quantize(
        embeddings, self._job.precision, ranges, first_row=part.first + done
      )
      table = rows.slice(0, len(embeddings)).append_column(
        tables.EMBEDDING, _lists(numbers)
      )
      writer = writer or _open(path, table.schema)
      if len(table):
        writer.write_table(table)
      done += len(embeddings)
    writer.close()
    return {
      "rows": done,
      "bad_rows": bad,
      "text": text.hexdigest(),
      "bytes": path.stat().st_size,
      "sha256": _sha256(path),
    }


def _lists(numbers: np.ndarray) -> Any:
  """Returns rows of numbers, [n, E], as fixed-size lists."""
  import pyarrow as pa

  return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])


def _open(path: pathlib.Path, schema: Any) -> Any:
  import pyarrow.parquet as pq

  # Embeddings are noise to a compressor, and have no extremes that anyone looks for.
  others = [name for name in schema.names if name != tables.EMBEDDING]
  return pq.ParquetWriter(
    path,
    schema,
    compression={
      **{name: "zstd" for name in others},
      f"{tables.EMBEDDING}.list.element": "none",
    },
    use_dictionary=others,
    write_statistics=others,
  )


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

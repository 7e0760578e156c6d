"""Embeds a text of any size into a folder of Parquet parts."""

import functools
import logging
import sys
from typing import Any

import numpy as np
import tqdm

from dcse_jax.cluster import engine as engine_lib
from dcse_jax.cluster import manifest
from dcse_jax.cluster import parts as parts_lib
from dcse_jax.cluster import tables
from dcse_jax.cluster import work
from dcse_jax.cluster.embedders import Embedder
from dcse_jax.embed import calibration as calibration_lib
from dcse_jax.embed import precision as precision_lib
from dcse_jax.runtime import signals

_log = logging.getLogger(__name__)

# Ranges are measured on the first sentences of as many parts, evenly spread, or fewer.
_SAMPLED_PARTS = 100


def embed_parts(
  embedder: Embedder,
  source: str,
  output: str,
  *,
  columns: tables.Columns = tables.Columns(),
  precision: str = "float32",
  calibration: str | None = None,
  skip_bad_rows: bool = False,
  part_rows: int = parts_lib.PART_ROWS,
  engine: str = "local",
  address: str | None = None,
  workers: int | None = None,
) -> None:
  """Writes the embeddings of a text as Parquet parts with a manifest.

  A part has the columns id, those that are kept, and embedding, a list of fixed size.
  Finished parts stay, and the same call goes on after them.

  Args:
    embedder: the model.
    source: see `places.find`.
    output: the folder, also of a bucket.
    columns: those that are read.
    precision: one of `precision.PRECISIONS`.
    calibration: what "int8" and "uint8" measure ranges on, a text or a .npy file; None
      is a sample of the source.
    skip_bad_rows: see `tables.read`.
    part_rows: rows of a part.
    engine: see `engine.opened`.
    address: likewise.
    workers: likewise.

  Raises:
    UserError: bad input; the folder is of another model or text, or in use.
  """
  precision_lib.check_precision(precision)
  text = parts_lib.divide(source, columns, part_rows)
  layout, folder = text.layout, manifest.Folder(output)
  job = work.Job(embedder, layout, output, precision, skip_bad_rows)
  make = functools.partial(work.Worker, job)
  opened = engine_lib.opened(engine, make, address=address, workers=workers)
  with folder.locked(), opened as pool:
    ((model, width),) = pool.map([("describe", ())])
    origin = {
      "model": model,
      "text": text.files,
      "columns": [layout.text, layout.id, *layout.kept],
      "part_rows": part_rows,
      "precision": precision,
    }
    if calibration and precision_lib.has_ranges(precision):
      origin["calibration"] = calibration_lib.digest(calibration)
    entries = folder.begin(origin)
    ranges = None
    if precision_lib.has_ranges(precision):
      ranges = _kept_ranges(folder, pool, text, calibration)
    _embed_all(pool, text, entries, folder, (model, ranges))
    numbers = precision_lib.row_size(precision, width)
    about = {
      "columns": [tables.ID, *layout.kept, tables.EMBEDDING],
      "embedding": {"numbers": numbers, "precision": precision},
    }
    if ranges is not None:
      about["embedding"]["ranges"] = manifest.ranges_digest(ranges)
    total = folder.finish(origin, about, [entries[n] for n in sorted(entries)])
    _log.info(
      "%s rows in %s parts, %s bad rows left out, %s",
      *(f"{n:,}" for n in (total["rows"], len(entries), total["bad_rows"])),
      pool.summary(),
    )


def _embed_all(
  pool: Any,
  text: parts_lib.Source,
  entries: dict[int, dict[str, Any]],
  folder: manifest.Folder,
  arguments: tuple[Any, ...],
) -> None:
  """Has all parts made that have no entry yet, and adds their entries."""
  todo = [part for part in text.parts if part.number not in entries]
  if entries:
    done, number = f"{len(entries):,}", f"{len(text.parts):,}"
    _log.info("going on: %s of %s parts are there", done, number)
  bar = tqdm.tqdm(
    total=text.rows,
    initial=text.rows - sum(part.rows for part in todo),
    unit="sentence",
    disable=not sys.stderr.isatty(),
  )
  with bar:
    for entry in pool.map([("embed", (part, *arguments)) for part in todo]):
      entries[entry["part"]] = entry
      bar.update(entry["input_rows"])
      signals.check()


def _kept_ranges(
  folder: manifest.Folder, pool: Any, text: parts_lib.Source, calibration: str | None
) -> np.ndarray:
  """Returns the ranges of a folder that was begun, or measures and keeps them."""
  ranges = folder.ranges()
  if ranges is None:
    step = -(-len(text.parts) // _SAMPLED_PARTS)
    sampled = text.parts[::step]
    rows = -(-calibration_lib.SAMPLE // len(sampled))
    sampled = [part.begin(rows) for part in sampled]
    (ranges,) = pool.map([("measure", (sampled, calibration))])
    folder.put_ranges(ranges)
  return ranges

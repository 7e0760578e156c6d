"""Prepares text for training: cleans it, and leaves out what repeats, in three passes.

All rows are read and cleaned, chunk by chunk in several processes, into files that grow
beside the output; then digests and signatures say which sentences repeat earlier ones;
then the others are written. An interrupted run goes on in each pass, and the output has
the same bytes whatever the number of processes.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from dcse_jax.data import cleaning
from dcse_jax.data import duplicates
from dcse_jax.data import near_duplicates
from dcse_jax.data import parts
from dcse_jax.data import raw_text
from dcse_jax.data import splitting
from dcse_jax.data.unfinished import Chunk
from dcse_jax.data.unfinished import Unfinished
from dcse_jax.runtime import files
from dcse_jax.runtime import locks
from dcse_jax.runtime import pool
from dcse_jax.runtime.errors import UserError

# Rows that go to a process at a time.
_CHUNK_ROWS = 8192
# Fewer sentences are searched for duplicates sooner than a process starts.
_FEW = 100_000
# Why a sentence is left out in the second pass; 0 is for one that stays.
_REPEATS = {1: "exact_duplicates", 2: "near_duplicates"}
_WHYS = ("undrawn", *cleaning.FAULTS, *_REPEATS.values())


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is done to the rows.

  Attributes:
    column: the column of text of files that have columns.
    id_column: that of ids; "" makes ids of a file's name and the row's number.
    split: what makes sentences of documents: see `splitting.make`.
    rules: what a sentence must be to stay.
    near_duplicates: from which Jaccard similarity to an earlier one a sentence is left
      out, in [0.5, 1]; 0 leaves out equal ones alone.
  """

  column: str = "text"
  id_column: str = ""
  split: str = ""
  rules: cleaning.Rules = cleaning.Rules()
  near_duplicates: float = 0.8

  def validate(self) -> None:
    """Raises a UserError where a setting has no meaning here."""
    if problem := splitting.fault(self.split):
      raise UserError(f"--split={self.split!r}: {problem}")
    if self.split:
      splitting.make(self.split)
    if self.near_duplicates and not 0.5 <= self.near_duplicates <= 1:
      raise UserError(
        f"--near_duplicates={self.near_duplicates:g}: give a similarity from 0.5 to 1, or "
        "0 to leave out equal sentences alone"
      )
    if self.near_duplicates:
      near_duplicates.check_library()
    if self.rules.min_characters > self.rules.max_characters:
      raise UserError(
        f"--min_characters={self.rules.min_characters} is above "
        f"--max_characters={self.rules.max_characters}: no sentence would stay"
      )


def _clean(settings: Settings, rows: Sequence[tuple[str, str] | None]) -> Chunk:
  """Cleans a chunk of rows; None is one that a share leaves out."""
  split = _splitter(settings.split)
  counts, ids, sentences = collections.Counter(rows=len(rows)), [], []
  for row in rows:
    if row is None:
      counts["undrawn"] += 1
      continue
    own, text = row
    found = [row]
    if split:
      found = [(f"{own}:{i}", each) for i, each in enumerate(split(text))]
    # A document without a sentence counts as a blank one.
    for name, sentence in found or [(own, "")]:
      counts["sentences"] += 1
      sentence = cleaning.clean(sentence)
      if why := cleaning.fault(sentence, settings.rules):
        counts[why] += 1
        continue
      ids.append(name)
      sentences.append(sentence)
  digests = lambda texts: np.asarray(
    [duplicates.digest(each.encode()) for each in texts], np.uint64
  )
  lines = {"ids": ids, "sentences": sentences}
  joined = {k: "".join(f"{each}\n" for each in v).encode() for k, v in lines.items()}
  arrays = {"digests": digests(sentences)}
  if settings.id_column:
    arrays["id_digests"] = digests(ids)
  if settings.near_duplicates:
    arrays["signatures"] = near_duplicates.signatures(sentences)
    arrays["sizes"] = np.asarray([len(s.encode()) + 1 for s in sentences], np.uint32)
  return Chunk({**joined, **arrays}, counts)


@functools.lru_cache(maxsize=1)
def _splitter(split: str):
  return splitting.make(split) if split else None


def prepare(
  names: Sequence[str],
  output: str,
  settings: Settings,
  run: pool.Map,
  here: pool.Map | None = None,
) -> dict[str, Any]:
  """Prepares text; what is there already of the same text and settings is kept.

  Args:
    names: files, folders of files and patterns.
    output: the folder of parts to write, or a .txt file.
    settings: what is done.
    run: maps chunks of work, in order.
    here: the same on this machine, for work on files beside the output; None for `run`.

  Returns:
    What the manifest says: `rows` that are in the output, `read` rows and `sentences`,
    how many are `left_out` by why, the `parts`, and where all comes from.

  Raises:
    UserError: something cannot be read or written, the output is something else's, or
      no sentence is left.
  """
  settings.validate()
  path = parts.check_output(output)
  found = raw_text.find(names)
  with locks.output_locked(path):
    if not path.exists():  # What is finished needs no look at the rows.
      raw_text.check(found, settings.column, settings.id_column)
    origin = {
      "input": [file.identity() for file in found],
      "settings": dataclasses.asdict(settings),
    }
    work = path.with_name(f".{path.name}.part")
    if path.exists():
      manifest = _finished(path, origin)
    else:
      try:
        manifest = _prepare(
          Unfinished(work, origin), found, path, settings, run, here or run
        )
      except OSError as error:
        raise files.cannot_write(path, error) from error
    files.remove(work)
  return manifest


def _finished(path: pathlib.Path, origin: dict[str, Any]) -> dict[str, Any]:
  """Returns the manifest of an output, or refuses it."""
  manifest = parts.read_manifest(path) or {}
  if "settings" not in manifest:
    raise UserError(
      f"{path} is there already and `prepare` has not made it: name another output"
    )
  for key, what in (("input", "text"), ("settings", "settings")):
    if manifest.get(key) != origin[key]:
      raise UserError(
        f"{path} is there already, of other {what}: name another output, or remove it"
      )
  return manifest


def _prepare(
  work: Unfinished,
  found: Sequence[raw_text.File],
  path: pathlib.Path,
  settings: Settings,
  run: pool.Map,
  here: pool.Map,
) -> dict[str, Any]:
  """Does what is left of the three passes, and returns the manifest."""
  if not work.about["is_read"]:
    chunks = _chunks(work, found, settings)
    chunks = itertools.islice(chunks, work.about["chunks"], None)
    work.grow(run(functools.partial(_clean, settings), chunks))
  reasons = _find_repeats(work, settings, here)
  counts = collections.Counter(work.about["counts"])
  for code, why in _REPEATS.items():
    counts[why] = int(np.count_nonzero(reasons == code))
  manifest = {
    "rows": int(np.count_nonzero(reasons == 0)),
    "read": counts["rows"],
    "sentences": counts["sentences"],
    "left_out": {why: counts[why] for why in _WHYS},
    **work.origin,
  }
  if not manifest["rows"]:
    files.remove(work.folder)
    raise UserError(
      f"no sentence is left: {describe(manifest)}; give other text or other bounds"
    )
  kept = lambda name: itertools.compress(work.lines(name), reasons == 0)
  rows = zip(kept("ids"), kept("sentences"))
  return parts.write(path, work.folder, rows, manifest)


def _chunks(
  work: Unfinished, found: Sequence[raw_text.File], settings: Settings
) -> Iterator[list[tuple[str, str] | None]]:
  """Yields the rows of all files, some at a time."""
  rows = itertools.chain.from_iterable(
    raw_text.rows(file, place, settings.column, settings.id_column)
    for place, file in enumerate(found)
  )
  while True:
    try:
      chunk = list(itertools.islice(rows, _CHUNK_ROWS))
    except UserError:
      # The file has to change, so that what is done will be another text's.
      files.remove(work.folder)
      raise
    if not chunk:
      return
    yield chunk


def _find_repeats(work: Unfinished, settings: Settings, run: pool.Map) -> np.ndarray:
  """Returns why each sentence that was cleaned is left out, [n]; 0 if it stays."""
  path = work.folder / "reasons.npy"
  if path.exists():
    return np.load(path)
  if settings.id_column:
    _check_ids(work, settings.id_column)
  reasons = duplicates.repeats(work.array("digests", np.uint64)).astype(np.uint8)
  if settings.near_duplicates and len(reasons):
    np.save(work.folder / "is_asked.npy", reasons == 0)
    np.save(
      work.folder / "ends.npy", np.cumsum(work.array("sizes", np.uint32), dtype=int)
    )
    search = functools.partial(_search, work, settings.near_duplicates)
    bands = range(near_duplicates.num_bands(settings.near_duplicates))
    # All processes write to one map: what one has found, no other looks for.
    is_near = np.memmap(work.folder / "is_near", bool, "w+", shape=reasons.shape)
    collections.deque((map if len(reasons) < _FEW else run)(search, bands), maxlen=0)
    reasons[is_near] = 2
  with files.whole(path) as new, new.open("wb") as file:
    np.save(file, reasons)
  return reasons


def _search(work: Unfinished, threshold: float, band: int) -> None:
  """Marks the near duplicates in a band."""
  signatures = work.array("signatures", np.uint8, near_duplicates.PLACES)
  is_asked, ends = (
    np.load(work.folder / name, mmap_mode="r") for name in ("is_asked.npy", "ends.npy")
  )
  sizes = work.array("sizes", np.uint32)
  with (work.folder / "sentences").open("rb") as file:

    def read(row: int) -> str:
      size = int(sizes[row])
      return os.pread(file.fileno(), size - 1, int(ends[row]) - size).decode()

    near_duplicates.find_in_band(
      np.memmap(work.folder / "is_near", bool, "r+"),
      signatures,
      is_asked,
      threshold,
      band,
      lambda row, other: near_duplicates.jaccard(read(row), read(other)) >= threshold,
    )


def _check_ids(work: Unfinished, column: str) -> None:
  """Refuses an id that stands twice among the sentences that were cleaned."""
  places = np.flatnonzero(duplicates.repeats(work.array("id_digests", np.uint64)))
  if len(places):
    own = next(itertools.islice(work.lines("ids"), int(places[0]), None))
    files.remove(work.folder)
    raise UserError(
      f"column {column!r} has the id {own!r:.80} twice, and {len(places)} such rows in "
      "all: give each row its own, or leave out --id_column"
    )


def describe(manifest: dict[str, Any]) -> str:
  """Says in a line what was read, and how much was left out by which rule."""
  about = f"{manifest['read']:,} rows read"
  if manifest["sentences"] != manifest["read"]:
    about += f", {manifest['sentences']:,} sentences"
  left_out = [
    f"{number:,} {why.replace('_', ' ')}"
    for why, number in manifest["left_out"].items()
    if number
  ]
  return f"{about}; left out: {', '.join(left_out) or 'none'}"

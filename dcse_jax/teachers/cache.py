"""The teacher cache: each teacher's embedding of every sentence, computed once.

A teacher's file holds a row for each sentence in the order of example ids, in a folder
named by what it was made from, so a changed teacher, tokenizer or text never
meets an old cache. It is built beside its final place, block by block, each with its
digest: a resumed run computes only the blocks that are missing or damaged. Hosts that
share the folder divide the blocks among them.
"""

import collections
from collections.abc import Iterable, Sequence
import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dcse_jax.data.tokens import TokenCache
from dcse_jax.model import model as model_lib
from dcse_jax.model.inference import encode_tokens
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime import files
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# This is part of every key: raise it when the layout or the arithmetic changes.
_LAYOUT = 2
_BLOCK_ROWS = 8192


class TeacherEmbeddings:
  """Cached embeddings of several teachers, read by example id.

  Args:
    files: [rows, D_t] for each teacher, as `build_teacher_cache` opens them.
  """

  def __init__(self, files: Sequence[np.ndarray]):
    self._files = files

  @property
  def widths(self) -> tuple[int, ...]:
    """The width D_t of each teacher's embeddings."""
    return tuple(file.shape[1] for file in self._files)

  def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `teacher_embeddings`, the teachers' side by side, [B, sum of D_t]."""
    parts = [file[rows] for file in self._files]
    return {"teacher_embeddings": np.concatenate(parts, axis=1)}


def teacher_key(model: model_lib.Model, tokens: TokenCache, *facts: str) -> str:
  """Returns a name for a teacher's embeddings of a corpus.

  Args:
    model: the teacher.
    tokens: the corpus in the teacher's tokens; its own key stands for the sentences,
      the tokenizer and max_length.
    *facts: what else the embeddings depend on.
  """
  about = [_LAYOUT, tokens.key, model_lib.digest(model), *facts]
  return hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()


def cache_bytes(rows: int, width: int, dtype: str) -> int:
  """Returns the bytes on disk that one teacher's embeddings take."""
  return rows * width * jnp.dtype(dtype).itemsize


def bytes_there(folder: pathlib.Path, sizes: Iterable[int]) -> int:
  """Counts the bytes on disk of files that are as large as some that are needed.

  A file of another size belongs to another text or teacher, and is no help.

  Args:
    folder: holds the caches.
    sizes: bytes of each file that is needed.
  """
  needed = collections.Counter(sizes)
  there = 0
  for file in folder.glob("*teacher-*/embeddings.bin"):
    size = file.stat().st_size
    if needed[size]:
      needed[size] -= 1
      there += min(file.stat().st_blocks * 512, size)
  return there


def check_disk(folder: pathlib.Path, need: int, what: str) -> None:
  """Refuses what does not fit the disk of a folder; `need` is in bytes.

  Raises:
    UserError: the disk has less free than is needed.
  """
  free = shutil.disk_usage(folder).free
  if need > free:
    raise UserError(
      f"{what} needs {need / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB "
      "free: make room, name another --workdir, or set teacher_cache='' to run "
      "the teachers at every step"
    )


def build_teacher_cache(
  folder: pathlib.Path,
  model: model_lib.Model,
  tokens: TokenCache,
  *,
  name: str,
  dtype: str,
  compute_dtype: str = "float32",
) -> np.ndarray:
  """Opens a teacher's embeddings of a corpus, after computing what is missing.

  The processes that share the folder divide the blocks among them.

  Args:
    folder: holds the caches, one folder each.
    model: the teacher.
    tokens: the corpus in the teacher's tokens.
    name: the teacher's, for the progress bar.
    dtype: that of the file, "float16", "bfloat16" or "float32".
    compute_dtype: that of the matrix products.

  Returns:
    [rows, D] embeddings of unit length, memory-mapped, in the order of example
    ids.

  Raises:
    UserError: the disk has no room.
  """
  path = folder / f"teacher-{teacher_key(model, tokens, dtype, compute_dtype)}"
  shape = (len(tokens), model.embedding_size)
  beside = folder / f".{path.name}.tmp"
  group = processes.sharing(folder)
  first, me = group[0], jax.process_index()
  intact = first == me and path.exists() and _is_intact(path, shape, dtype, name)
  # The first of each group decides: a shared folder may look different to others for
  # a while. All processes reach every wait below, whatever is there already.
  intact = processes.gather(intact)[first]
  if first == me and not intact:
    if path.exists():
      path.rename(beside)
    _make_room(beside, shape, dtype, name)
  processes.wait()
  if not intact:
    blocks = _blocks(len(tokens))[group.index(me) :: len(group)]
    try:
      _write_blocks(beside, model, tokens, name, dtype, compute_dtype, blocks)
    except OSError as error:
      raise files.cannot_write(beside, error) from error
  processes.wait()
  if first == me and not intact:
    beside.rename(path)
  processes.wait()
  return np.memmap(path / "embeddings.bin", jnp.dtype(dtype), "r", shape=shape)


def _blocks(rows: int) -> list[tuple[int, int]]:
  """Lists the first row and the end of each block."""
  starts = range(0, rows, _BLOCK_ROWS)
  return [(start, min(start + _BLOCK_ROWS, rows)) for start in starts]


def _mark(path: pathlib.Path, start: int) -> pathlib.Path:
  """Returns the path of the file that says what a block holds."""
  return path / f"done-{start}.json"


def _intact(
  path: pathlib.Path, shape: tuple[int, int], dtype: str, blocks: list
) -> list[bool]:
  """Returns whether each block is there and as its mark says."""
  row_bytes = cache_bytes(1, shape[1], dtype)

  def is_intact(block) -> bool:
    start, stop = block
    try:
      digest = json.loads(_mark(path, start).read_bytes())["sha256"]
      with (path / "embeddings.bin").open("rb") as file:
        file.seek(start * row_bytes)
        content = file.read((stop - start) * row_bytes)
    except (OSError, ValueError, KeyError, TypeError):
      return False
    return hashlib.sha256(content).hexdigest() == digest

  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(is_intact, blocks))


def _is_intact(path: pathlib.Path, shape, dtype: str, name: str) -> bool:
  """Returns whether a whole cache is as it was written; warns if not."""
  blocks = _blocks(shape[0])
  intact = _intact(path, shape, dtype, blocks)
  if all(intact):
    return True
  start, stop = blocks[intact.index(False)]
  _log.warning(
    "teacher cache %s of %s is damaged in %d of %d blocks, first that of rows %d to "
    "%d: embedding these anew",
    path,
    name,
    len(blocks) - sum(intact),
    len(blocks),
    start,
    stop - 1,
  )
  return False


def _make_room(beside: pathlib.Path, shape, dtype: str, name: str) -> None:
  """Reserves the whole file at once, so that a full disk shows here or never."""
  size = cache_bytes(*shape, dtype)
  try:
    beside.mkdir(parents=True, exist_ok=True)
    with open(beside / "embeddings.bin", "ab") as file:
      there = os.fstat(file.fileno()).st_size
      if there >= size:
        return
      check_disk(beside, size - there, f"the cache of teacher {name}")
      # macOS has no such call; a full disk then shows while writing.
      if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
      else:
        file.truncate(size)
  except OSError as error:
    raise UserError(
      f"cannot write the cache of teacher {name}, {size / 1e9:.2f} GB, in "
      f"{beside.parent} ({error.strerror}): make room or name another --workdir"
    ) from error


def _write_blocks(beside, model, tokens, name, dtype, compute_dtype, blocks) -> None:
  """Computes those blocks that are missing or damaged."""
  shape = (len(tokens), model.embedding_size)
  file = np.memmap(beside / "embeddings.bin", jnp.dtype(dtype), "r+", shape=shape)
  intact = _intact(beside, shape, dtype, blocks)
  missing = [block for block, is_intact in zip(blocks, intact) if not is_intact]
  size = lambda blocks: sum(stop - start for start, stop in blocks)
  mesh = mesh_lib.make_mesh(jax.local_devices())
  params = jax.device_put(model.params, mesh_lib.replicated(mesh))
  bar = tqdm.tqdm(
    desc=f"teacher cache: {name}",
    total=size(blocks),
    initial=size(blocks) - size(missing),
    unit="sentence",
    disable=not sys.stderr.isatty(),
    leave=False,
  )
  with bar:
    for start, stop in missing:
      signals.check()
      embeddings = encode_tokens(
        params,
        model.config,
        tokens.sentences(start, stop),
        pooling=model.pooling,
        left_out=sum(tokens.left_out[:1]),
        dtype=jnp.dtype(compute_dtype),
        mesh=mesh,
      )
      # At unit length float16 cannot overflow, and losses only see cosines anyway.
      file[start:stop] = unit_length(model.finish(embeddings, normalize=False))
      file.flush()
      # The mark says what the block holds, so it is written after the block.
      digest = hashlib.sha256(file[start:stop].view(np.uint8)).hexdigest()
      files.write_json(_mark(beside, start), {"sha256": digest})
      bar.update(stop - start)

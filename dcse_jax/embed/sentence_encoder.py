"""From sentences to embeddings, in batches of like length."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import tqdm

from dcse_jax.embed.index import ExactIndex
from dcse_jax.embed.index import FaissIndex
from dcse_jax.embed.index import unit_length
from dcse_jax.hub import folder
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.packing import Packing
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# Lengths are rounded up to these, so that few shapes are ever compiled.
_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# Sentences tokenised and sorted at a time: enough that batches are of like length,
# few enough that a stream of any length takes little memory.
_CHUNK = 16_384


@functools.partial(jax.jit, static_argnames=("config", "pooling", "dtype", "packing"))
def _encode(params, input_ids, attention_mask, *, config, pooling, dtype, packing):
  return encoder_lib.encode(
    params,
    config,
    input_ids,
    attention_mask,
    pooling=pooling,
    dtype=dtype,
    packing=packing,
  )


@dataclasses.dataclass(frozen=True)
class _Shape:
  """Of a device's part of a batch.

  Attributes:
    rows: sentences at most.
    length: tokens of the longest, rounded up.
    tokens: of all its sentences at most.
  """

  rows: int
  length: int
  tokens: int


def _packed_shape(longest: int, rows: int, limit: int) -> _Shape:
  """For sentences of like length, the longest first, about so many rows.

  One shape serves all lengths between two of `_LENGTHS`: there are as many tokens in
  fewer long sentences or in more short ones, and no padding but in attention.
  """
  rounded = -(-longest // _LENGTHS[-1]) * _LENGTHS[-1]
  length = min(next((n for n in _LENGTHS if n >= longest), rounded), limit)
  shorter = max((n for n in _LENGTHS if n < length), default=2)
  tokens = max(rows * (shorter + length) // 2, length)
  return _Shape(max(tokens // (shorter + 1), 1), length, tokens)


def _padded_shape(longest: int, rows: int, limit: int) -> _Shape:
  """For a few sentences of any length."""
  length = _packed_shape(longest, rows, limit).length
  return _Shape(rows, length, rows * length)


def encode_tokens(
  params: encoder_lib.Params,
  config: encoder_lib.EncoderConfig,
  token_ids: Sequence[Sequence[int]],
  *,
  pooling: str,
  batch_size: int = 64,
  dtype: Any = jnp.float32,
  mesh: Mesh | None = None,
) -> np.ndarray:
  """Embeddings of tokenised sentences, without dropout or projection.

  Args:
    params: the encoder's parameters.
    config: their shape.
    token_ids: of each sentence, special tokens included.
    pooling: as `encoder.encode` takes it.
    batch_size: sentences in a compiled batch, more or less: as many tokens as so
      many sentences of like length have.
    dtype: of the matrix products.
    mesh: divides each batch among its devices, all of this host; the parameters
      are on each. None leaves the arrays to jax.

  Returns:
    [n, D] float32, in the order given.
  """
  groups = 1 if mesh is None else mesh.size
  put = tuple
  if mesh is not None:
    put = functools.partial(jax.device_put, device=mesh_lib.over_batch(mesh))
  make_shape, rows = _packed_shape, -(-batch_size // groups)
  if len(token_ids) <= batch_size:
    # A few sentences need not be computed as many.
    few = -(-len(token_ids) // groups)
    make_shape, rows = _padded_shape, 1 << max(few - 1, 0).bit_length()
  width = encoder_lib.embedding_size(config, pooling)
  embeddings = np.zeros((len(token_ids), width), np.float32)
  lengths = np.asarray([len(ids) for ids in token_ids])
  # Longest first, so that too large a batch fails at once.
  order = np.argsort(-lengths, kind="stable")
  done, waiting = 0, []

  def fetch():
    rows, places, out = waiting.pop(0)
    embeddings[rows] = np.asarray(out)[places]

  while done < len(order):
    shape = make_shape(int(lengths[order[done]]), rows, config.max_tokens)
    input_ids = np.full(
      (groups * shape.rows, shape.length), config.pad_token_id, np.int32
    )
    mask = np.zeros(input_ids.shape, bool)
    first, places = done, []
    for group in range(groups):
      fits = np.cumsum(lengths[order[done : done + shape.rows]]) <= shape.tokens
      for i in range(int(fits.sum())):
        place, ids = group * shape.rows + i, token_ids[order[done]]
        input_ids[place, : len(ids)] = ids
        mask[place, : len(ids)] = True
        places.append(place)
        done += 1
    out = _encode(
      params,
      *put((input_ids, mask)),
      config=config,
      pooling=pooling,
      dtype=dtype,
      packing=Packing(shape.tokens, groups),
    )
    waiting.append((order[first:done], places, out))
    # Fetched one batch late: the device never waits for the host.
    if len(waiting) > 1:
      fetch()
  while waiting:
    fetch()
  return embeddings


class SentenceEncoder:
  """A model folder or hub id, ready to turn sentences into embeddings.

  Args:
    name: a folder that this project, transformers or sentence-transformers
      wrote; or a hub id, perhaps ID@REVISION.
    pooling: in place of the folder's own; see `encoder.encode`.
    num_layers: keeps only the first so many layers.
    max_length: cuts sentences at so many tokens, in place of the folder's own.

  Attributes:
    model: the folder, as `folder.load` gives it.

  Raises:
    UserError: the folder cannot be read or understood.
  """

  def __init__(
    self,
    name: str,
    *,
    pooling: str | None = None,
    num_layers: int | None = None,
    max_length: int | None = None,
  ):
    self.model = folder.load(
      str(name),
      pooling=pooling,
      num_layers=num_layers,
      max_length=max_length,
    )
    self._params = jax.device_put(self.model.params)
    self._sentences: Sequence[str] = ()
    self._index: ExactIndex | FaissIndex | None = None

  def encode(
    self,
    sentences: str | Iterable[str],
    *,
    batch_size: int = 64,
    normalize: bool | None = None,
    show_progress: bool = False,
  ) -> np.ndarray:
    """Embeddings of sentences.

    Args:
      sentences: any number of strings, from a list or as they come; or one.
      batch_size: sentences in a compiled batch.
      normalize: to unit length or not; None as the folder's own modules say.
      show_progress: a bar on the terminal.

    Returns:
      [n, D] float32, in the order given; [D] of one string.
    """
    if isinstance(sentences, str):
      return self.encode([sentences], normalize=normalize)[0]
    total = len(sentences) if isinstance(sentences, Sequence) else None
    with tqdm.tqdm(total=total, unit="sentence", disable=not show_progress) as bar:
      parts = []
      for part in self.encode_stream(
        sentences, batch_size=batch_size, normalize=normalize
      ):
        parts.append(part)
        bar.update(len(part))
    if not parts:
      return np.zeros((0, self.model.embedding_size), np.float32)
    return np.concatenate(parts)

  def encode_stream(
    self,
    sentences: Iterable[str],
    *,
    batch_size: int = 64,
    normalize: bool | None = None,
  ) -> Iterator[np.ndarray]:
    """Yields the embeddings [m, D] of the next sentences, some thousands at a time.

    Memory does not grow with the number of sentences. See `encode`.
    """
    model = self.model
    for chunk in _chunks(_checked(sentences), _CHUNK):
      embeddings = encode_tokens(
        self._params,
        model.config,
        model.tokenize(chunk, model.max_length),
        pooling=model.pooling,
        batch_size=batch_size,
      )
      yield model.finish(embeddings, normalize)

  def similarity(
    self,
    first: str | Sequence[str] | np.ndarray,
    second: str | Sequence[str] | np.ndarray,
  ) -> float | np.ndarray:
    """Compares every one of the first with every one of the second.

    As the folder says: by cosine, or dot product, or the Euclidean or Manhattan
    distance times -1. Most say cosine.

    Args:
      first: n sentences, or their embeddings [n, D]; or one sentence.
      second: m sentences, or their embeddings [m, D]; or one sentence.

    Returns:
      [n, m] float32, cosines in [-1, 1], without the dimension of what was one
      sentence.
    """
    first, second = (
      x if isinstance(x, np.ndarray) else self.encode(x) for x in (first, second)
    )
    kind = self.model.similarity
    if kind == "cosine":
      scores = unit_length(first) @ unit_length(second).T
    elif kind == "dot":
      scores = first @ second.T
    else:
      rows, columns = np.atleast_2d(first), np.atleast_2d(second)
      order = 2 if kind == "euclidean" else 1
      distances = [np.linalg.norm(columns - row, order, axis=1) for row in rows]
      scores = -np.reshape(distances, first.shape[:-1] + second.shape[:-1])
    return float(scores) if np.ndim(scores) == 0 else scores

  def build_index(
    self,
    sentences: Sequence[str],
    *,
    embeddings: np.ndarray | None = None,
    batch_size: int = 64,
    use_faiss: bool = False,
  ) -> None:
    """Makes sentences ready for `search`, by cosine, in place of those before.

    Args:
      sentences: what to search in; with embeddings read only as they are found,
        such as `data.lines.Lines`.
      embeddings: theirs, [n, D], where they are at hand, memory-mapped or not;
        None encodes them. Rows with NaN or infinity are never found; a warning
        counts them.
      batch_size: sentences in a compiled batch.
      use_faiss: hands them to faiss, for a fast approximate search among
        millions. Without, the search is exact.

    Raises:
      UserError: as many embeddings as sentences are wanted; faiss is missing.
    """
    if self.model.similarity != "cosine":
      _log.warning("searching by cosine; the model says %r", self.model.similarity)
    if embeddings is None:
      embeddings = self.encode(sentences, batch_size=batch_size)
    wanted = (len(sentences), self.model.embedding_size)
    if embeddings.shape != wanted:
      raise UserError(
        f"{len(sentences)} sentences and this model want embeddings of shape "
        f"{wanted}, not {embeddings.shape}: encode the same sentences with the "
        "same model"
      )
    self._index = (FaissIndex if use_faiss else ExactIndex)(embeddings)
    self._sentences = sentences

  def search(
    self,
    queries: str | Sequence[str],
    *,
    top_k: int = 5,
    threshold: float | None = None,
  ) -> list[Any]:
    """The sentences of the index that are most similar to each query.

    Args:
      queries: sentences, or one.
      top_k: at most so many.
      threshold: the least cosine, from -1 to 1; None leaves none out.

    Returns:
      A list for each query of (sentence, cosine), the most similar first; of one
      string that list alone.

    Raises:
      UserError: there is no index yet, or top_k or threshold is out of its range,
        or the model yields NaN or infinity for a query.
    """
    if self._index is None:
      raise UserError("there is nothing to search in: call build_index first")
    # NaN is in no range.
    if threshold is not None and not -1.0 <= threshold <= 1.0:
      raise UserError(f"threshold={threshold}: must be a cosine, from -1 to 1, or None")
    least = -1.0 if threshold is None else threshold
    if isinstance(queries, str):
      return self.search([queries], top_k=top_k, threshold=threshold)[0]
    cosines, rows = self._index.search(self.encode(queries), top_k)
    return [
      [
        (self._sentences[int(row)], float(cosine))
        for cosine, row in zip(*found)
        if cosine >= least
      ]
      for found in zip(cosines, rows)
    ]


def _checked(sentences: Iterable[str]) -> Iterator[str]:
  """Yields them; UserError with the place of the first that is none."""
  if isinstance(sentences, Mapping):
    raise UserError(
      f"sentences are a {type(sentences).__name__}, not strings: give a list of them"
    )
  for i, sentence in enumerate(sentences):
    if not isinstance(sentence, str):
      raise UserError(
        f"sentence {i} is a {type(sentence).__name__} ({sentence!r:.80}), not a "
        "string: leave it out, or make it one"
      )
    yield sentence


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
  items = iter(items)
  while chunk := list(itertools.islice(items, size)):
    yield chunk

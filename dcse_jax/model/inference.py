"""Embeddings of token ids, in batches of sentences of similar length."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.packing import Packing
from dcse_jax.runtime import mesh as mesh_lib

# Sentences tokenised and sorted at a time: enough that those of a batch have similar
# lengths, and few enough that a stream of any length takes little memory.
CHUNK = 16_384

# Lengths are rounded up to these, so that few shapes are ever compiled.
_LENGTHS = (
  *(8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536),
  *(2048, 2560, 3072, 4096, 5120, 6144, 8192),
)
# Batches of longer sentences than this have as many tokens as ones of this length.
_LONG = 512


@functools.partial(
  jax.jit, static_argnames=("config", "pooling", "dtype", "packing", "mesh")
)
def _encode(
  params, input_ids, attention_mask, *, config, pooling, dtype, packing, mesh
):
  with mesh_lib.traced_over(mesh):
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
  """The size of a device's part of a batch.

  Attributes:
    rows: sentences at most.
    length: tokens of the longest, rounded up.
    tokens: those of all its sentences together, at most.
  """

  rows: int
  length: int
  tokens: int


def _packed_shape(longest: int, rows: int, limit: int) -> _Shape:
  """Sizes a batch of about `rows` sentences of similar length, the longest first.

  One shape serves all lengths between two of `_LENGTHS`: the same tokens make up
  fewer long sentences or more short ones, and only attention sees padding.
  """
  rounded = -(-longest // _LENGTHS[-1]) * _LENGTHS[-1]
  length = min(next((n for n in _LENGTHS if n >= longest), rounded), limit)
  shorter = max((n for n in _LENGTHS if n < length), default=2)
  tokens = max(rows * min((shorter + length) // 2, _LONG), length)
  return _Shape(max(tokens // (shorter + 1), 1), length, tokens)


def _padded_shape(longest: int, rows: int, limit: int) -> _Shape:
  """Sizes a batch of `rows` sentences of any length, of fewer if they are long."""
  shape = _packed_shape(longest, rows, limit)
  if shape.length > _LONG:
    return shape
  return dataclasses.replace(shape, rows=rows, tokens=rows * shape.length)


def encode_tokens(
  params: encoder_lib.Params,
  config: encoder_lib.EncoderConfig,
  token_ids: Sequence[Sequence[int]],
  *,
  pooling: str,
  batch_size: int = 64,
  left_out: int = 0,
  dtype: Any = jnp.float32,
  mesh: Mesh | None = None,
) -> np.ndarray:
  """Computes embeddings of tokenised sentences, without dropout or projection.

  Args:
    params: the encoder's parameters.
    config: their shape.
    token_ids: those of each sentence, special tokens included.
    pooling: a name that `pooling.get` knows.
    batch_size: about how many sentences a compiled batch has: it holds as many
      tokens as this number of sentences of similar length, or of 512 tokens if they
      are longer.
    left_out: how many first tokens of each sentence the pooling leaves out.
    dtype: that of the matrix products.
    mesh: divides each batch among its devices, all on this host; each has the
      parameters. None leaves the placing of arrays to jax.

  Returns:
    [n, D] float32, in the order given.
  """
  groups = 1 if mesh is None else mesh.size
  put = tuple
  if mesh is not None:
    put = functools.partial(jax.device_put, device=mesh_lib.over_batch(mesh))
  make_shape, rows = _packed_shape, -(-batch_size // groups)
  if len(token_ids) <= batch_size:
    # A few sentences need not fill a whole batch.
    few = -(-len(token_ids) // groups)
    make_shape, rows = _padded_shape, 1 << max(few - 1, 0).bit_length()
  width = pooling_lib.embedding_size(config, pooling)
  embeddings = np.zeros((len(token_ids), width), np.float32)
  lengths = np.asarray([len(ids) for ids in token_ids])
  # The longest come first, so that a batch that is too large fails at once.
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
    mask = np.zeros(input_ids.shape, np.int8 if left_out else bool)
    first, places = done, []
    for group in range(groups):
      fits = np.cumsum(lengths[order[done : done + shape.rows]]) <= shape.tokens
      for i in range(int(fits.sum())):
        place, ids = group * shape.rows + i, token_ids[order[done]]
        input_ids[place, : len(ids)] = ids
        mask[place, : len(ids)] = 1
        mask[place, : min(left_out, len(ids))] = pooling_lib.LEFT_OUT
        places.append(place)
        done += 1
    out = _encode(
      params,
      *put((input_ids, mask)),
      config=config,
      pooling=pooling,
      dtype=dtype,
      packing=Packing(shape.tokens, groups),
      mesh=mesh,
    )
    waiting.append((order[first:done], places, out))
    # Results are fetched one batch late, so that the device never waits for the host.
    if len(waiting) > 1:
      fetch()
  while waiting:
    fetch()
  return embeddings


def chunks(sentences: Iterable[str]) -> Iterator[list[str]]:
  """Yields sentences in lists of `CHUNK`, the last one shorter."""
  sentences = iter(sentences)
  while chunk := list(itertools.islice(sentences, CHUNK)):
    yield chunk

"""From sentences to embeddings, in batches of like length."""

from collections.abc import Iterable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from dcse_jax import encoder as encoder_lib
from dcse_jax import folder
from dcse_jax import sharding

# Lengths are rounded up to these, so that few shapes are ever compiled.
_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@functools.partial(jax.jit, static_argnames=("config", "pooling", "dtype"))
def _encode(params, input_ids, attention_mask, *, config, pooling, dtype):
  return encoder_lib.encode(
    params, config, input_ids, attention_mask, pooling=pooling, dtype=dtype
  )


def _padded_length(longest: int, limit: int) -> int:
  rounded = -(-longest // _LENGTHS[-1]) * _LENGTHS[-1]
  return min(next((n for n in _LENGTHS if n >= longest), rounded), limit)


def unit_length(embeddings: np.ndarray) -> np.ndarray:
  """Embeddings [..., D] divided by their L2 norms; zeros stay zeros."""
  norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
  return embeddings / np.maximum(norms, 1e-12)


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
    pooling: one of `encoder.POOLINGS`.
    batch_size: sentences in a compiled batch.
    dtype: of the matrix products.
    mesh: divides each batch among its devices, all of this host; the parameters
      are on each. None leaves the arrays to jax.

  Returns:
    [n, D] float32, in the order given.
  """
  put = tuple
  if mesh is not None:
    batch_size = -(-batch_size // mesh.size) * mesh.size
    put = functools.partial(jax.device_put, device=sharding.over_batch(mesh))
  embeddings = np.zeros((len(token_ids), config.hidden_size), np.float32)
  # Longest first, so that too large a batch fails at once.
  order = np.argsort([-len(ids) for ids in token_ids], kind="stable")
  waiting = []
  for start in range(0, len(order), batch_size):
    rows = order[start : start + batch_size]
    length = _padded_length(len(token_ids[rows[0]]), config.max_tokens)
    input_ids = np.full((batch_size, length), config.pad_token_id, np.int32)
    mask = np.zeros((batch_size, length), bool)
    for i, row in enumerate(rows):
      ids = token_ids[row]
      input_ids[i, : len(ids)] = ids
      mask[i, : len(ids)] = True
    input_ids, mask = put((input_ids, mask))
    out = _encode(params, input_ids, mask, config=config, pooling=pooling, dtype=dtype)
    waiting.append((rows, out))
    # Fetched one batch late: the device never waits for the host.
    if len(waiting) > 1:
      rows, out = waiting.pop(0)
      embeddings[rows] = np.asarray(out)[: len(rows)]
  for rows, out in waiting:
    embeddings[rows] = np.asarray(out)[: len(rows)]
  return embeddings


class SentenceEncoder:
  """A model folder or hub id, ready to turn sentences into embeddings.

  Args:
    name: a folder that this project, transformers or sentence-transformers
      wrote, or a hub id.
    pooling: in place of the folder's own; see `encoder.pool`.
    num_layers: keeps only the first so many layers.
    max_length: cuts sentences at so many tokens, in place of the folder's own.
    revision: of the hub's repository.

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
    revision: str | None = None,
  ):
    self.model = folder.load(
      str(name),
      pooling=pooling,
      num_layers=num_layers,
      max_length=max_length,
      revision=revision,
    )
    self._params = jax.device_put(self.model.params)

  def encode(
    self, sentences: str | Iterable[str], *, batch_size: int = 64
  ) -> np.ndarray:
    """Embeddings of sentences.

    Args:
      sentences: any number of strings; one alone gives one row.
      batch_size: sentences in a compiled batch.

    Returns:
      [n, D] float32; of unit length where the folder's own modules normalise.
    """
    model = self.model
    sentences = [sentences] if isinstance(sentences, str) else list(sentences)
    if not sentences:
      return np.zeros((0, model.config.hidden_size), np.float32)
    embeddings = encode_tokens(
      self._params,
      model.config,
      folder.tokenize(model.tokenizer, sentences, model.max_length),
      pooling=model.pooling,
      batch_size=batch_size,
    )
    if model.normalize:
      embeddings = unit_length(embeddings)
    return embeddings

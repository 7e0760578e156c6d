"""Cosine similarity, the raw material of every other loss here."""

import jax
import jax.numpy as jnp

# torch.nn.functional.cosine_similarity clamps norms here too; it keeps the
# gradient of an all-zero embedding finite.
_SMALLEST_NORM = 1e-8

# This stands for minus infinity among logits: its softmax is exactly 0 in float32, and
# unlike infinity it does not turn 0 * log 0 and log-add-exp gradients into NaN.
MASKED = -1e9


def normalize(embeddings: jax.Array) -> jax.Array:
  """L2-normalises the last axis, in float32.

  Args:
    embeddings: [..., D], any float type.

  Returns:
    [..., D] float32 of unit length; an all-zero vector stays zero.
  """
  embeddings = embeddings.astype(jnp.float32)
  square = jnp.sum(embeddings**2, axis=-1, keepdims=True)
  return embeddings * jax.lax.rsqrt(jnp.maximum(square, _SMALLEST_NORM**2))


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes the cosine of every row of one batch with every row of another.

  Args:
    a: embeddings, [B, D].
    b: embeddings, [C, D].

  Returns:
    [B, C] float32 in [-1, 1], up to rounding.
  """
  # The default precision of a TPU matrix product is bfloat16: a cosine divided
  # by a temperature of 0.01 would be off by 0.4.
  return jnp.matmul(normalize(a), normalize(b).T, precision=jax.lax.Precision.HIGHEST)


def pair_cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes the cosine of every row of one batch with the same row of another.

  Args:
    a: embeddings, [B, D].
    b: embeddings, [B, D].

  Returns:
    [B] float32 in [-1, 1], up to rounding.
  """
  return jnp.sum(normalize(a) * normalize(b), axis=-1)


def flat_negatives(
  all_negatives: jax.Array, all_has_negative: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Lays the hard negatives of all rows one under the other.

  Args:
    all_negatives: [B, D], or [B, K, D] where rows have several.
    all_has_negative: which there are, [B, K]; None if every row has all.

  Returns:
    The embeddings, [B * K, D], and which of them there are, [1, B * K] or None.
  """
  flat = all_negatives.reshape(-1, all_negatives.shape[-1])
  return flat, None if all_has_negative is None else all_has_negative.reshape(1, -1)


def own_columns(
  similarity: jax.Array, labels: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Finds which column of [b, B] similarities is each row's own sentence.

  Args:
    similarity: cosines of b rows of a batch with all its B rows.
    labels: the rows' numbers in the batch, [b]; None if they are its first.

  Returns:
    `labels`, and which columns they are, [b, B] boolean.
  """
  rows, columns = similarity.shape
  if labels is None:
    labels = jnp.arange(rows)
  return labels, labels[:, None] == jnp.arange(columns)[None]


def row_keys(rng: jax.Array, labels: jax.Array) -> jax.Array:
  """Makes a key for each row from its number, so that chunks do not change it."""
  return jax.vmap(lambda number: jax.random.fold_in(rng, number))(labels)


def mask_own(similarity: jax.Array, is_own: jax.Array) -> jax.Array:
  """Returns similarities, [b, B] float32, with those of a sentence with itself masked."""
  return jnp.where(is_own, MASKED, similarity.astype(jnp.float32))


def check_rows(name: str, similarity: jax.Array) -> None:
  """Refuses what is not rows of a batch's similarities, [b, B], by a ValueError."""
  if similarity.ndim != 2 or similarity.shape[0] > similarity.shape[1]:
    raise ValueError(f"{name} must be rows of [B, B], not {similarity.shape}")
  if similarity.shape[1] < 2:
    raise ValueError(f"{name} needs a batch of 2 or more: no other sentence")

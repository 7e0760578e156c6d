"""Sentences with an index of their embeddings: what a search answers from."""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from dcse_jax.embed.index_folder import IndexFolder
from dcse_jax.embed.neighbours import ExactIndex
from dcse_jax.embed.neighbours import FaissIndex
from dcse_jax.embed.neighbours import make_index
from dcse_jax.model.model import Model
from dcse_jax.model.model import identity
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError


class Searchable:
  """Sentences and an index of their embeddings.

  Args:
    sentences: those that the index numbers.
    index: what finds their numbers.

  Attributes:
    sentences: as given.
  """

  def __init__(
    self, sentences: Sequence[str], index: ExactIndex | FaissIndex | IndexFolder
  ):
    self.sentences, self._index = sentences, index

  def search(
    self, queries: np.ndarray, top_k: int, threshold: float | None
  ) -> list[list[tuple[str, float]]]:
    """Returns the sentences and cosines of each query, [q, D], the most similar first.

    Raises:
      UserError: top_k or threshold is out of its range, or a query is not finite.
    """
    # NaN is in no range.
    if threshold is not None and not -1.0 <= threshold <= 1.0:
      raise UserError(f"threshold={threshold}: must be a cosine, from -1 to 1, or None")
    least = -1.0 if threshold is None else threshold
    return [
      [
        (self.sentences[int(row)], float(cosine))
        for cosine, row in zip(*found)
        if cosine >= least
      ]
      for found in zip(*self._index.search(queries, top_k))
    ]


def of_embeddings(
  sentences: Sequence[str], embeddings: np.ndarray, width: int, **kwargs: Any
) -> Searchable:
  """Makes an index of embeddings in memory or in a file.

  Args:
    sentences: n of them.
    embeddings: see `make_index`, and so for the others.
    width: the numbers of an embedding of the model.
    **kwargs: more of `make_index`.

  Raises:
    UserError: embeddings are not those of the sentences; faiss is missing.
  """
  if len(embeddings) != len(sentences):
    raise UserError(
      f"there are {len(sentences)} sentences and {len(embeddings)} embeddings: encode "
      "the same sentences"
    )
  return Searchable(sentences, make_index(embeddings, width, **kwargs))


def of_folder(path: str | os.PathLike[str], model: Model) -> Searchable:
  """Opens an index that `index_build` made.

  Raises:
    UserError: it is no index, or that of another model or of other settings.
  """
  index = IndexFolder(files.user_path(path))
  if index.about["model"] != identity(model):
    raise UserError(
      f"{path} is the index of another model, or of another pooling, max_length or "
      "truncate_dim than are given here: name its own model, or build it anew"
    )
  return Searchable(index.sentences, index)

"""The class that turns sentences into embeddings, and searches among them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import logging
from typing import Any

import jax
import numpy as np
import tqdm

from dcse_jax.embed.index import ExactIndex
from dcse_jax.embed.index import FaissIndex
from dcse_jax.hub import folder
from dcse_jax.model.inference import chunks
from dcse_jax.model.inference import encode_tokens
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)


class SentenceEncoder:
  """A model folder or hub id, ready to turn sentences into embeddings.

  Args:
    name: a folder that this project, transformers or sentence-transformers
      wrote; or a hub id, perhaps ID@REVISION.
    pooling: replaces the folder's own; a name that `pooling.get` knows.
    num_layers: how many of the first layers are kept; None keeps all.
    max_length: where sentences are cut, in tokens; replaces the folder's own.
    truncate_dim: how many first numbers of embeddings are kept; likewise.

  Attributes:
    model: the model, as `folder.load` returns it.

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
    truncate_dim: int | None = None,
  ):
    self.model = folder.load(
      str(name),
      pooling=pooling,
      num_layers=num_layers,
      max_length=max_length,
    ).truncated(truncate_dim)
    self._params = jax.device_put(self.model.params)
    self._sentences: Sequence[str] = ()
    self._index: ExactIndex | FaissIndex | None = None

  def encode(
    self,
    sentences: str | Iterable[str],
    *,
    batch_size: int = 64,
    normalize: bool | None = None,
    prompt_name: str | None = None,
    show_progress: bool = False,
  ) -> np.ndarray:
    """Computes embeddings of sentences.

    Args:
      sentences: any number of strings, from a list or as they come; or one.
      batch_size: sentences in a compiled batch.
      normalize: whether to scale to unit length; None does as the folder's modules say.
      prompt_name: the prompt put before them, as `Model.with_prompt` takes it.
      show_progress: whether to show a bar on the terminal.

    Returns:
      [n, D] float32, in the order given; [D] for a single string.
    """
    if isinstance(sentences, str):
      return self.encode([sentences], normalize=normalize, prompt_name=prompt_name)[0]
    total = len(sentences) if isinstance(sentences, Sequence) else None
    with tqdm.tqdm(total=total, unit="sentence", disable=not show_progress) as bar:
      parts = []
      for part in self.encode_stream(
        sentences, batch_size=batch_size, normalize=normalize, prompt_name=prompt_name
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
    prompt_name: str | None = None,
  ) -> Iterator[np.ndarray]:
    """Yields the embeddings [m, D] of the next sentences, some thousands at a time.

    Memory does not grow with the number of sentences. See `encode`.
    """
    model = self.model.with_prompt(prompt_name)
    for chunk in chunks(_checked(sentences)):
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

    The folder says whether by cosine, dot product, or the Euclidean or Manhattan
    distance times -1. Most say cosine.

    Args:
      first: n sentences, or their embeddings [n, D]; or one sentence.
      second: m sentences, or their embeddings [m, D]; or one sentence.

    Returns:
      [n, m] float32, cosines in [-1, 1]; a single sentence has no dimension.
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
    """Makes sentences ready for `search` by cosine; they replace earlier ones.

    Args:
      sentences: what to search in, such as `data.lines.Lines`; if embeddings are
        given, only those that are found are read.
      embeddings: those of the sentences, [n, D], if they are at hand, memory-mapped or
        not; None encodes them. Rows with NaN or infinity are never found; a warning
        counts them.
      batch_size: sentences in a compiled batch.
      use_faiss: hands them to faiss, for a fast approximate search among
        millions. Otherwise the search is exact.

    Raises:
      UserError: there are not as many embeddings as sentences; faiss is missing.
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
    """Finds the sentences of the index that are most similar to each query.

    Args:
      queries: sentences, or one.
      top_k: how many at most.
      threshold: the smallest cosine, from -1 to 1; None leaves none out.

    Returns:
      A list of (sentence, cosine) for each query, the most similar first; only that
      list for a single string.

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
  """Yields sentences; a UserError names the place of the first that is not a string."""
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

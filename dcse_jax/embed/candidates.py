"""The nearest documents of anchors, and scores of them, kept in a folder.

Whatever takes long is kept by what it depends on: a command that was killed goes on, and
one with other guards begins where they matter.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import logging
import pathlib
from typing import Any, Protocol

import numpy as np

from dcse_jax.embed import bridge
from dcse_jax.embed.kept_rows import kept_rows
from dcse_jax.embed.mining import Pairs
from dcse_jax.embed.neighbours import ExactIndex
from dcse_jax.embed.neighbours import FaissIndex
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model import model as model_lib

_log = logging.getLogger(__name__)

INDEXES = {"exact": ExactIndex, "faiss": FaissIndex}
# Anchors at a time, in a search and where all of their candidates are gathered.
_SEARCHED, _GATHERED = 1024, 128


class Scorer(Protocol):
  """An object that scores documents for anchors.

  Attributes:
    origin: what the scores depend on, JSON.
  """

  origin: Any

  def score(self, anchors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns scores, [n, k] float32, NaN where there is none.

    Args:
      anchors: the numbers of n anchors.
      rows: numbers of documents for each, [n, k].
    """


def digest(texts: Sequence[str]) -> str:
  """Returns a digest of texts in their order."""
  state = hashlib.blake2b(digest_size=16)
  for text in texts:
    state.update(f"{len(text)}:{text}".encode())
  return state.hexdigest()


class BiEncoder:
  """Embeddings of anchors and documents by one model; scores are their cosines.

  Args:
    folder: keeps the embeddings.
    encoder: the model.
    pairs: anchors and documents.
    prompts: how "query" and "document" are encoded, arguments of `encode_stream`.
    batch_size: sentences in a compiled batch.

  Attributes:
    queries: those of the anchors, [anchors, D], of unit length.
    documents: those of the documents, [documents, D], likewise.
    origin: what they depend on, JSON.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    encoder: SentenceEncoder,
    pairs: Pairs,
    prompts: Mapping[str, Mapping[str, str | None]],
    *,
    batch_size: int,
  ):
    identity = model_lib.identity(encoder.model)
    self.origin, found = [], []
    for role, texts in (("query", pairs.anchors), ("document", pairs.documents)):
      _log.info("embedding: %d texts as %s", len(texts), role)
      origin = {"model": identity, "text": digest(texts)}
      origin["prompt"] = _prompt(encoder, **prompts[role])

      def parts(done, texts=texts, role=role):
        return encoder.encode_stream(
          texts[done:],
          normalize_embeddings=True,
          batch_size=batch_size,
          **prompts[role],
        )

      shape = (len(texts), encoder.model.embedding_size)
      rows = kept_rows(folder, role, parts, shape=shape, origin=origin)
      found.append(rows)
      self.origin.append(origin)
    self.queries, self.documents = found

  def score(self, anchors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns cosines: see `Scorer`."""
    return np.einsum("nd,nkd->nk", self.queries[anchors], self.documents[rows])


def _prompt(
  encoder: SentenceEncoder, prompt_name: str | None = None, prompt: str | None = None
) -> str:
  """Returns the words before every text."""
  return encoder.model.with_prompt(prompt_name).prompt if prompt is None else prompt


@dataclasses.dataclass(frozen=True)
class Found:
  """Candidates of each anchor, the nearest first: see `search`.

  Attributes:
    cosines: [anchors, k] float32, -inf where there are fewer.
    rows: numbers of documents, [anchors, k] int32.
    origin: what they depend on, JSON.
  """

  cosines: np.ndarray
  rows: np.ndarray
  origin: dict[str, Any]


def search(
  folder: pathlib.Path, encoded: BiEncoder, top_k: int, *, index: str = "exact"
) -> Found:
  """Finds the documents nearest to each anchor.

  Args:
    folder: keeps what is found.
    encoded: anchors and documents.
    top_k: how many are found for each.
    index: one of `INDEXES`.

  Raises:
    UserError: the model yields NaN for an anchor, or faiss is missing.
  """
  queries, documents = encoded.queries, encoded.documents
  top_k = min(top_k, len(documents))
  _log.info("searching: the %d nearest of %d documents", top_k, len(documents))

  def parts(done: int) -> Iterator[np.ndarray]:
    built = INDEXES[index](documents)
    for start in range(done, len(queries), _SEARCHED):
      cosines, rows = built.search(queries[start : start + _SEARCHED], top_k)
      # There are fewer where a model yields NaN for documents.
      missing = ((0, 0), (0, top_k - cosines.shape[1]))
      cosines = np.pad(cosines, missing, constant_values=-np.inf)
      yield np.concatenate([cosines.view(np.int32), np.pad(rows, missing)], axis=1)

  origin = {"of": encoded.origin, "top_k": top_k, "index": index}
  found = kept_rows(
    folder,
    "found",
    parts,
    shape=(len(queries), 2 * top_k),
    origin=origin,
    dtype="int32",
  )
  return Found(found[:, :top_k].view(np.float32), found[:, top_k:], origin)


class CrossScorer:
  """A scorer by a model that reads both texts together.

  Args:
    model: the cross-encoder.
    pairs: anchors and documents.

  Attributes:
    origin: what the scores depend on, JSON.
  """

  def __init__(self, model: bridge.CrossEncoder, pairs: Pairs):
    self._model, self._pairs, self.origin = model, pairs, model.origin

  def score(self, anchors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the model's scores: see `Scorer`."""
    texts, documents = self._pairs.anchors, self._pairs.documents
    both = [(texts[a], documents[d]) for a, part in zip(anchors, rows) for d in part]
    return self._model.score(both).reshape(rows.shape)


@dataclasses.dataclass(frozen=True)
class Scores:
  """The scores that guards look at.

  Attributes:
    candidates: those of candidates, [anchors, k] float32, NaN where there is none.
    positives: those of all pairs, [pairs] float32, likewise.
  """

  candidates: np.ndarray
  positives: np.ndarray


def of_search(encoded: BiEncoder, pairs: Pairs, found: Found) -> Scores:
  """Returns the cosines of the search itself, and those of positives."""
  positives = np.empty(len(pairs.anchor_of), np.float32)
  for start in range(0, len(positives), _SEARCHED):
    part = slice(start, start + _SEARCHED)
    rows = pairs.document_of[part, None]
    positives[part] = encoded.score(pairs.anchor_of[part], rows)[:, 0]
  return Scores(found.cosines, positives)


def rescore(folder: pathlib.Path, scorer: Scorer, pairs: Pairs, found: Found) -> Scores:
  """Scores candidates and positives by something else than the search.

  Args:
    folder: keeps the scores.
    scorer: what scores them.
    pairs: anchors and documents.
    found: the candidates.
  """
  _log.info("scoring: %d candidates", found.rows.size)
  kept = []
  for name, anchors, rows in (
    ("candidates", np.arange(len(found.rows)), found.rows),
    ("positives", pairs.anchor_of, pairs.document_of[:, None]),
  ):

    def parts(done, anchors=anchors, rows=rows):
      for start in range(done, len(rows), _GATHERED):
        part = slice(start, start + _GATHERED)
        yield scorer.score(anchors[part], rows[part])

    origin = {"scorer": scorer.origin, "of": found.origin}
    kept.append(kept_rows(folder, name, parts, shape=rows.shape, origin=origin))
  return Scores(kept[0], kept[1][:, 0])

"""Scores of documents for anchors that another program wrote."""

from collections.abc import Iterable
import hashlib
import logging

import numpy as np

from dcse_jax.embed.mining import Pairs
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)


class ScoreFile:
  """A scorer by a table of anchors, documents and scores.

  Args:
    source: what people call the table.
    rows: an anchor, a document and its score for each; of repeated ones the last holds.
    pairs: anchors and documents; rows of others are left out.

  Attributes:
    origin: what the scores depend on, JSON.

  Raises:
    UserError: no row is of an anchor and a document of the pairs.
  """

  def __init__(self, source: str, rows: Iterable[tuple[str, str, float]], pairs: Pairs):
    anchors, documents = (
      {text: i for i, text in enumerate(texts)}
      for texts in (pairs.anchors, pairs.documents)
    )
    self._width, found, others = len(documents), {}, 0
    for anchor, document, score in rows:
      if anchor in anchors and document in documents:
        found[anchors[anchor] * self._width + documents[document]] = score
      else:
        others += 1
    if not found:
      raise UserError(
        f"{source}: none of its {others} rows is of an anchor and a document that are "
        "mined here: score what --format=candidates writes"
      )
    _log.info("%s: %d scores, %d others left out", source, len(found), others)
    self._keys = np.asarray(sorted(found), np.int64)
    self._scores = np.asarray([found[key] for key in self._keys.tolist()], np.float32)
    digest = hashlib.blake2b(self._keys.tobytes(), digest_size=16)
    digest.update(self._scores.tobytes())
    self.origin = {"scores": digest.hexdigest()}

  def score(self, anchors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the table's scores, NaN where it has none: see `candidates.Scorer`."""
    keys = anchors[:, None].astype(np.int64) * self._width + rows
    places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
    is_there = self._keys[places] == keys
    return np.where(is_there, self._scores[places], np.float32(np.nan))

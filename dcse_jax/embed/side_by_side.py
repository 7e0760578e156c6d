"""Models side by side, which search one corpus: what the demo shows."""

from collections.abc import Sequence
import threading
from typing import Any

import numpy as np

from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model.vectors import is_finite
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError


class Models:
  """Models that can search a corpus; one thread at a time does.

  Args:
    names: folders or hub ids.
    corpus: sentences.
    index: a folder that the first model searches in place of these, or None.

  Attributes:
    num_sentences: how many there are to search in.
  """

  def __init__(self, names: Sequence[str], corpus: Sequence[str], index: str | None):
    self._names = names
    self._lock = threading.Lock()
    self._encoders = [SentenceEncoder(name) for name in names]
    if index is not None:
      # Its sentences and queries have the prompts of their roles.
      sentences = self._encoders[0].load_index(index)
      self._prompts, farthest = [None], len(sentences) // 2
    else:
      sentences, found = corpus, self._encode(corpus)
      for encoder, embeddings in zip(self._encoders, found):
        encoder.build_index(corpus, embeddings=embeddings)
      self._prompts = [encoder.model.prompt for encoder in self._encoders]
      farthest = int(np.argmin(found[0] @ found[0][0]))
    self.num_sentences = len(sentences)
    self._shown = [sentences[row] for row in (0, farthest)]

  def _encode(self, sentences: Sequence[str]) -> list[np.ndarray]:
    """Embeds sentences with each model: [n, D] of unit length.

    Raises:
      UserError: a model yields NaN or infinity.
    """
    with self._lock:
      found = [encoder.encode(sentences) for encoder in self._encoders]
    for name, embeddings in zip(self._names, found):
      if not is_finite(embeddings).all():
        raise UserError(f"{name} yields NaN or infinity: check its weights")
    return [unit_length(embeddings) for embeddings in found]

  def neighbours(self, sentence: str, count: int) -> list[dict[str, Any]]:
    """Finds the nearest sentences of the corpus by each model.

    Returns:
      For each model its name, and sentences with their cosines ("score").
    """
    with self._lock:
      found = [
        encoder.search(sentence, top_k=count, prompt=prompt)
        for encoder, prompt in zip(self._encoders, self._prompts)
      ]
    pairs = lambda each: [{"sentence": s, "score": cosine} for s, cosine in each]
    return [
      {"name": name, "neighbours": pairs(each)}
      for name, each in zip(self._names, found)
    ]

  def similarity(self, sentences: Sequence[str]) -> list[dict[str, Any]]:
    """Computes the cosines of sentences with each other ("matrix") by each model."""
    return [
      {"name": name, "matrix": (embeddings @ embeddings.T).tolist()}
      for name, embeddings in zip(self._names, self._encode(sentences))
    ]

  def examples(self) -> list[str]:
    """Picks sentences of the corpus that show what likeness is.

    They are the first and the one least like it, or the middle one of an index, each
    with its two nearest, according to the first model.
    """
    found = [
      neighbour["sentence"]
      for sentence in self._shown
      for neighbour in self.neighbours(sentence, 3)[0]["neighbours"]
    ]
    return list(dict.fromkeys(found))

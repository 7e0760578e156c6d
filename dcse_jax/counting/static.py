"""A static model: the embedding of a sentence is the mean of its words' vectors."""

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file
import scipy.sparse as sp
import tokenizers

from dcse_jax.counting import spelling
from dcse_jax.counting import vectors
from dcse_jax.counting import words


@dataclasses.dataclass(frozen=True)
class StaticModel:
  """Vectors of words, whose mean stands for a sentence.

  Attributes:
    tokenizer: knows the words; 0 is every other.
    vectors: with their weights, [V, D] float32; row 0 is zero.
  """

  tokenizer: tokenizers.Tokenizer
  vectors: np.ndarray

  def embed(self, sentences: Iterable[str]) -> np.ndarray:
    """Computes embeddings [n, D] of unit length; zero without any known word."""
    parts = []
    for chunk in words.encode(self.tokenizer, sentences):
      lengths = [len(each) for each in chunk]
      column = np.concatenate([*chunk, np.zeros(0, np.int32)])
      shape = (len(chunk), len(self.vectors))
      starts = np.cumsum([0, *lengths])
      counts = sp.csr_matrix((np.ones(len(column), np.float32), column, starts), shape)
      sums = counts @ self.vectors
      norms = np.linalg.norm(sums, axis=1, keepdims=True)
      parts.append(sums / np.maximum(norms, 1e-30))
    empty = np.zeros((0, self.vectors.shape[1]), np.float32)
    return np.concatenate([empty, *parts]).astype(np.float32)

  @functools.cached_property
  def digest(self) -> str:
    """The digest of words and vectors."""
    state = hashlib.blake2b(self.tokenizer.to_str().encode(), digest_size=16)
    state.update(np.ascontiguousarray(self.vectors).data)
    return state.hexdigest()

  def save(self, folder: pathlib.Path) -> None:
    """Writes a sentence-transformers model, a StaticEmbedding, into an empty folder."""
    (folder / "1_Normalize").mkdir()
    modules = [("", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    # Old and new releases know these names.
    listed = [
      dict(idx=i, name=str(i), path=path, type=f"sentence_transformers.models.{kind}")
      for i, (path, kind) in enumerate(modules)
    ]
    settings = {
      "similarity_fn_name": "cosine",
      "prompts": {},
      "default_prompt_name": None,
    }
    for name, value in (
      ("modules.json", listed),
      ("config_sentence_transformers.json", settings),
      ("1_Normalize/config.json", {}),
    ):
      (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    self.tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": self.vectors}, folder / "model.safetensors")


def count_words(
  sentences: list[str],
  *,
  size: int = 512,
  spelling_size: int = 512,
  spelling_weight: float = 4.0,
  window: int = 40,
  min_count: int = 3,
  most: int = 100_000,
  context_power: float = 0.75,
  smooth: float = 2e-4,
  seed: int = 0,
) -> StaticModel:
  """Makes a static model of a text by counting.

  Args:
    sentences: the text.
    size: how many numbers of an embedding say which words stand near its own; 0 leaves
      them out.
    spelling_size: how many say how its words are spelled, after the others; 0 likewise.
    spelling_weight: what two words' cosine of spelling counts, that of neighbours being
      1.
    window: see `vectors.count_pairs`.
    min_count: how often a word must be seen.
    most: how many words there may be.
    context_power: see `vectors.positive_information`.
    smooth: a word of relative frequency p weighs smooth / (smooth + p) (Arora et al., A
      Simple but Tough-to-Beat Baseline for Sentence Embeddings, 2017).
    seed: draws what is drawn of both parts.

  Raises:
    ValueError: the text has no more known words than an embedding has numbers.
  """
  tokenizer = words.train_tokenizer(sentences, min_count=min_count, most=most)
  numbers = [each for chunk in words.encode(tokenizer, sentences) for each in chunk]
  total = tokenizer.get_vocab_size()
  if total <= size + 1:
    raise ValueError(f"{total - 1} words seen {min_count} times or more")
  parts = []
  if size:
    counts = vectors.count_pairs(numbers, total, window=window)
    information = vectors.positive_information(counts, context_power=context_power)
    parts.append(vectors.reduce(information, size, seed=seed))
  if spelling_size:
    by_number = [tokenizer.id_to_token(number) for number in range(total)]
    spelled = spelling.spell(by_number, spelling_size, seed=seed)
    parts.append(spelled * np.float32(spelling_weight**0.5))
  table = np.hstack(parts)
  frequency = np.bincount(np.concatenate(numbers), minlength=total).astype(np.float64)
  frequency /= frequency.sum()
  table *= (smooth / (smooth + frequency))[:, None].astype(np.float32)
  table[0] = 0
  return StaticModel(tokenizer, table)

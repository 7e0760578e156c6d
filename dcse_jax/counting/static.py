"""A static model by counting: a sentence is the mean of its words' vectors."""

from typing import Any

import numpy as np

from dcse_jax.counting import spelling
from dcse_jax.counting import vectors
from dcse_jax.counting import words
from dcse_jax.model import static
from dcse_jax.model.model import Model


def largest(
  *, size: int, spelling_size: int, width: int, most: int, **_: Any
) -> static.EncoderConfig:
  """Returns the shape of what `count_words` makes of a text with many words.

  Args:
    size: see `count_words`.
    spelling_size: likewise.
    width: likewise.
    most: likewise.
    **_: its other settings.
  """
  hidden_size = width or size + spelling_size
  return static.EncoderConfig(vocab_size=most + 1, hidden_size=hidden_size)


def count_words(
  sentences: list[str],
  *,
  size: int = 512,
  spelling_size: int = 512,
  spelling_weight: float = 4.0,
  width: int = 0,
  window: int = 40,
  min_count: int = 3,
  most: int = 100_000,
  context_power: float = 0.75,
  smooth: float = 2e-4,
  seed: int = 0,
) -> Model:
  """Makes a static model of a text by counting.

  Args:
    sentences: the text.
    size: how many numbers of an embedding say which words stand near its own; 0 leaves
      them out.
    spelling_size: how many say how its words are spelled, after the others; 0 likewise.
    spelling_weight: what two words' cosine of spelling counts, that of neighbours being
      1.
    width: how many numbers are kept of both parts together, the principal components of
      all words' directions; 0 keeps every number.
    window: see `vectors.count_pairs`.
    min_count: how often a word must be seen.
    most: how many words there may be.
    context_power: see `vectors.positive_information`.
    smooth: a word of relative frequency p weighs smooth / (smooth + p) (Arora et al., A
      Simple but Tough-to-Beat Baseline for Sentence Embeddings, 2017).
    seed: draws what is drawn of both parts.

  Raises:
    ValueError: the text has no more known words than an embedding has numbers.
    UserError: scikit-learn is not installed.
  """
  if size:
    vectors.load_svd()  # It is missed at once or never.
  import transformers  # It takes seconds.

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
  if width:
    table = vectors.principal(table, width)
  frequency = np.bincount(np.concatenate(numbers), minlength=total).astype(np.float64)
  frequency /= frequency.sum()
  table *= (smooth / (smooth + frequency))[:, None].astype(np.float32)
  table[0] = 0
  config = static.EncoderConfig(vocab_size=total, hidden_size=table.shape[1])
  return Model(
    config=config,
    params={"embeddings": {"word": {"embedding": table}}},
    tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer),
    pooling="mean",
    normalize=True,
    max_length=config.max_tokens,
  )

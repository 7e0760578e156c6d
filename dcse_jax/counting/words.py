"""Words of a text: lower-case letters and digits, or single signs."""

from collections.abc import Iterable, Iterator, Sequence
import itertools

import numpy as np
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import trainers

UNKNOWN = "[UNK]"
_CHUNK = 10_000


def train_tokenizer(
  sentences: Iterable[str], *, min_count: int, most: int
) -> tokenizers.Tokenizer:
  """Makes a tokenizer of the words of a text, the most frequent first.

  Args:
    sentences: the text.
    min_count: how often a word must be seen.
    most: how many words there may be; rarer ones are left out.

  Returns:
    Its token 0 stands for every word that it does not know.
  """
  tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
  tokenizer.normalizer = normalizers.Lowercase()
  words = tokenizers.Regex(r"[^\W_]+|[^\s]")
  tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "removed", invert=True)
  trainer = trainers.WordLevelTrainer(
    vocab_size=most + 1,
    min_frequency=min_count,
    special_tokens=[UNKNOWN],
    show_progress=False,
  )
  tokenizer.train_from_iterator(sentences, trainer)
  return tokenizer


def encode(
  tokenizer: tokenizers.Tokenizer, sentences: Iterable[str]
) -> Iterator[Sequence[np.ndarray]]:
  """Yields the word numbers of sentences, some thousand sentences at a time."""
  sentences = iter(sentences)
  while chunk := list(itertools.islice(sentences, _CHUNK)):
    encoded = tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
    yield [np.asarray(each.ids, np.int32) for each in encoded]

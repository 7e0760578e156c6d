"""A WordPiece tokenizer trained on the user's own text."""

from collections.abc import Iterable
import itertools
from typing import Any

import tokenizers
import transformers

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(*columns: Iterable[str], vocab_size: int) -> Any:
  """Trains an uncased BERT tokenizer.

  Args:
    *columns: sentences, which are read twice and never all in memory.
    vocab_size: tokens at most, special ones included; never fewer, though, than the
      text has letters.

  Returns:
    A transformers tokenizer; padding is token 0.
  """
  backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
  backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  # The trainer numbers letters in an order that changes from run to run, and
  # settles ties between pieces by number. Numbering them here keeps them the same.
  words = (
    word
    for sentence in itertools.chain(*columns)
    for word, _ in backend.pre_tokenizer.pre_tokenize_str(
      backend.normalizer.normalize_str(sentence)
    )
  )
  letters = sorted({letter for word in set(words) for letter in word})
  alphabet = [*letters, *("##" + letter for letter in letters)]
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=vocab_size,
    special_tokens=[*_SPECIAL, *alphabet],
    show_progress=False,
  )
  backend.train_from_iterator(itertools.chain(*columns), trainer)
  return transformers.BertTokenizerFast(vocab=backend.get_vocab())

"""A WordPiece tokenizer trained on the user's own text."""

from collections.abc import Sequence
from typing import Any

import tokenizers
import transformers

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(sentences: Sequence[str], *, vocab_size: int) -> Any:
  """Trains an uncased BERT tokenizer.

  Args:
    sentences: the corpus.
    vocab_size: tokens at most, special ones included.

  Returns:
    A transformers tokenizer; padding is token 0.
  """
  backend = tokenizers.Tokenizer(
      tokenizers.models.WordPiece(unk_token="[UNK]")
  )
  backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  trainer = tokenizers.trainers.WordPieceTrainer(
      vocab_size=vocab_size, special_tokens=list(_SPECIAL), show_progress=False
  )
  backend.train_from_iterator(sentences, trainer)
  # The trainer numbers single letters in an order that changes from run to run.
  learnt = sorted(set(backend.get_vocab()) - set(_SPECIAL))
  vocab = {token: i for i, token in enumerate((*_SPECIAL, *learnt))}
  return transformers.BertTokenizerFast(vocab=vocab)

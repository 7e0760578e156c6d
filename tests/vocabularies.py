"""Tiny tokenizers of every kind that published encoders have, trained on the spot."""

import functools

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers
import transformers

from dcse_jax.data import synthetic
from dcse_jax.hub import wordpiece

SENTENCES = synthetic.sentences(300, seed=0)
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BYTES = pre_tokenizers.ByteLevel.alphabet()


def _train(model, trainer, special, processor, **parts):
  backend = tokenizers.Tokenizer(model)
  for name, part in parts.items():
    setattr(backend, name, part)
  backend.train_from_iterator(SENTENCES, trainer(special))
  ids = {token: backend.token_to_id(token) for token in special}
  backend.post_processor = processor(ids)
  return backend


def _around(first, last):
  """A template that puts a token before a text and one after it."""

  def processor(ids):
    text = f"{first} $A {last}".split()
    special = [(token, ids[token]) for token in text if token != "$A"]
    return processors.TemplateProcessing(single=text, special_tokens=special)

  return processor


def _bpe(special, alphabet=()):
  return trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=list(special),
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )


def _unigram(special):
  return trainers.UnigramTrainer(
    vocab_size=200,
    special_tokens=list(special),
    unk_token="<unk>",
    show_progress=False,
  )


def bert():
  """WordPiece, [CLS] and [SEP]; padding is token 0."""
  return wordpiece.train_wordpiece(SENTENCES, vocab_size=200)


def roberta():
  """Bytes' BPE, <s> and </s>; padding is token 1."""
  backend = _train(
    models.BPE(),
    lambda special: _bpe(special, _BYTES),
    _FAIRSEQ,
    _around("<s>", "</s>"),
    pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoder=decoders.ByteLevel(),
  )
  return _wrap(backend, bos="<s>", pad="<pad>", eos="</s>", unk="<unk>", mask="<mask>")


def xlm_roberta():
  """SentencePiece's Unigram, <s> and </s>; padding is token 1."""
  backend = _train(
    models.Unigram(),
    _unigram,
    _FAIRSEQ,
    _around("<s>", "</s>"),
    normalizer=normalizers.NFKC(),
    pre_tokenizer=pre_tokenizers.Metaspace(),
    decoder=decoders.Metaspace(),
  )
  return _wrap(backend, bos="<s>", pad="<pad>", eos="</s>", unk="<unk>", mask="<mask>")


def modernbert():
  """Bytes' BPE with BERT's special tokens; padding is neither token 0 nor 1."""
  special = ("|||", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
  backend = _train(
    models.BPE(),
    lambda special: _bpe(special, _BYTES),
    special,
    _around("[CLS]", "[SEP]"),
    normalizer=normalizers.NFC(),
    pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoder=decoders.ByteLevel(),
  )
  names = dict(cls="[CLS]", sep="[SEP]", pad="[PAD]", unk="[UNK]", mask="[MASK]")
  return _wrap(backend, **names)


def gemma():
  """SentencePiece's BPE with bytes to fall back to, <bos> and <eos>."""
  special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
  backend = _train(
    models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
    lambda special: _bpe([*special, *(f"<0x{i:02X}>" for i in range(256))]),
    special,
    _around("<bos>", "<eos>"),
    normalizer=normalizers.Replace(" ", "\u2581"),
    # In training alone: no piece reaches across words, and a text is one piece.
    pre_tokenizer=pre_tokenizers.Split("\u2581", "merged_with_next"),
  )
  backend.pre_tokenizer = None
  return _wrap(backend, bos="<bos>", pad="<pad>", eos="<eos>", unk="<unk>")


def qwen():
  """Bytes' BPE, the end's token after a text and none before; padding is that token.

  It stands on the left, and there is neither an unknown token nor one for masks.
  """
  backend = _train(
    models.BPE(),
    lambda special: _bpe(special, _BYTES),
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    _around("", "<|endoftext|>"),
    normalizer=normalizers.NFC(),
    pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoder=decoders.ByteLevel(),
  )
  end = "<|endoftext|>"
  return _wrap(backend, eos=end, pad=end, padding_side="left")


def _wrap(backend, padding_side="right", **tokens):
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    padding_side=padding_side,
    model_max_length=512,
    model_input_names=["input_ids", "attention_mask"],
    **{f"{name}_token": token for name, token in tokens.items()},
  )


KINDS = {
  each.__name__: functools.cache(each)
  for each in (bert, roberta, xlm_roberta, modernbert, gemma, qwen)
}

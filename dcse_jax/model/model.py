"""A model: an encoder with all that turns text into embeddings."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import re
from typing import Any

import jax
import numpy as np

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.heads import Head
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError

# How embeddings may be compared, by sentence-transformers' names.
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# The tokenizer first sees as many characters of a text, and twice as many as long as
# they may be too few tokens; as many tokens more than are kept are enough.
_FIRST_CUT, _SPARE_TOKENS = 10_000, 64

# Where a text may be cut: what comes before has the tokens that it has in the whole.
_BETWEEN_WORDS = re.compile(r"(?<=\w) (?=\w)")

# The tokenizer holds all tokens of a call, also those that it then cuts.
_TOKENIZED_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True)
class Model:
  """An encoder with all that turns text into embeddings.

  Attributes:
    params: None where only the rest is known.
    tokenizer: a transformers tokenizer.
    pooling: as `pooling.get` takes it.
    normalize: whether the folder L2-normalises its embeddings.
    max_length: the longest sentence, in tokens; longer ones are cut.
    head: of the embeddings, before they are normalised; most have none.
    language_model: the masked-language model's head, of which embeddings know
      nothing; None if there is none.
    prompts: texts to put before a sentence, by name.
    default_prompt: the name of the one that stands before every sentence; or None.
    lower_case: whether text is lower-cased even if the tokenizer's files do not.
    similarity: how embeddings are compared, one of `SIMILARITIES`.
    truncate_dim: leading numbers of an embedding that are kept; None keeps all.
  """

  config: encoder_lib.EncoderConfig
  params: encoder_lib.Params | None
  tokenizer: Any
  pooling: str
  normalize: bool
  max_length: int
  head: Head | None = None
  language_model: encoder_lib.Params | None = None
  prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  default_prompt: str | None = None
  lower_case: bool = False
  similarity: str = "cosine"
  truncate_dim: int | None = None

  @property
  def pooled_size(self) -> int:
    """Numbers in what the pooling gives."""
    return pooling_lib.embedding_size(self.config, self.pooling)

  @property
  def embedding_size(self) -> int:
    """Numbers in an embedding."""
    size = self.pooled_size if self.head is None else self.head.size
    return min(size, self.truncate_dim or size)

  @property
  def dense_layers(self) -> list[Head]:
    """The layers of the head, in order; none without one."""
    return list(self.head.layers()) if self.head else []

  @property
  def prompt(self) -> str:
    """What stands before every sentence; "" for nothing."""
    return self.prompts.get(self.default_prompt, "")

  def tokenize(self, sentences: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each sentence after the prompt, as `tokenize` gives them.

    Raises:
      UserError: a sentence spells a token that the encoder has no row for.
    """
    prompt = self.prompt
    if prompt:
      sentences = [prompt + sentence for sentence in sentences]
    ids = tokenize(self.tokenizer, sentences, max_length)
    _check_rows(self, sentences, ids)
    return ids

  def finish(self, embeddings: np.ndarray, normalize: bool | None = None) -> np.ndarray:
    """Makes embeddings of what the pooling gives, [n, D] to [n, D_out].

    Args:
      embeddings: as pooled.
      normalize: to unit length or not; None as the folder says.
    """
    if self.head:
      embeddings = self.head(embeddings)
    if self.normalize and normalize is not False:
      embeddings = unit_length(embeddings)
    embeddings = embeddings[:, : self.truncate_dim]
    # A folder that cuts does so after its own normalising.
    return unit_length(embeddings) if normalize else embeddings


def _check_rows(
  model: Model, sentences: Sequence[str], token_ids: Sequence[Sequence[int]]
) -> None:
  """Refuses tokens that are not among the encoder's, which some added ones are not."""
  size = model.config.vocab_size
  for sentence, ids in zip(sentences, token_ids):
    if (last := max(ids, default=0)) >= size:
      token = model.tokenizer.convert_ids_to_tokens(last)
      raise UserError(
        f"the sentence {sentence!r:.80} has the token {token}, number {last}, and the "
        f"encoder has {size} tokens: remove it from the text"
      )


def tokenize(
  tokenizer: Any, sentences: Sequence[str], max_length: int
) -> list[list[int]]:
  """Token ids of each sentence, special tokens included, cut to max_length.

  Of very long sentences the tokenizer sees only as much of the beginning as is kept:
  it takes seconds and gigabytes for what is cut away.
  """
  ids = []
  for start in range(0, len(sentences), _TOKENIZED_AT_ONCE):
    part = sentences[start : start + _TOKENIZED_AT_ONCE]
    ids += tokenizer(
      [_beginning(tokenizer, sentence, max_length) for sentence in part],
      truncation=True,
      max_length=max_length,
      return_attention_mask=False,
      return_token_type_ids=False,
    )["input_ids"]
  return ids


def _beginning(tokenizer: Any, sentence: str, max_length: int) -> str:
  """As much of a sentence as the first max_length tokens are made of, or more.

  Characters do not tell: a run of blanks has no token, a word of any length may have
  one. It is cut between two words only, where no token reaches across.
  """
  if tokenizer.truncation_side != "right":
    return sentence  # Its end is what is kept.
  length = _FIRST_CUT
  while between := _BETWEEN_WORDS.search(sentence, length):
    beginning = sentence[: between.start()]
    tokens = tokenizer.backend_tokenizer.encode(beginning, add_special_tokens=False)
    if len(tokens) >= max_length + _SPARE_TOKENS:
      return beginning
    length = 2 * between.start()
  return sentence


def tokenizer_state(tokenizer: Any) -> str:
  """All that token ids depend on but the length at which they are cut."""
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  # A tokenizer remembers how it was last called.
  return json.dumps({**state, "truncation": None, "padding": None})


def text_state(model: Model) -> str:
  """All that the token ids of a text depend on but the length at which they are cut."""
  state = tokenizer_state(model.tokenizer)
  return state + (f" after {model.prompt!r}" if model.prompt else "")


def digest(model: Model) -> str:
  """Returns a digest of all that the embedding of token ids depends on."""
  state = hashlib.blake2b(digest_size=16)
  pooling = pooling_lib.recorded(model.pooling)
  state.update(f"{model.config} {pooling}".encode())
  arrays = [model.params]
  for layer in model.dense_layers:
    state.update(layer.activation.encode())
    arrays += [layer.kernel, layer.bias]
  for path, value in jax.tree.leaves_with_path(arrays):
    state.update(jax.tree_util.keystr(path).encode())
    state.update(np.ascontiguousarray(value).data)
  return state.hexdigest()


def identity(model: Model) -> str:
  """A digest of all that the embedding of a text depends on."""
  about = [
    digest(model),
    text_state(model),
    model.max_length,
    model.normalize,
  ]
  if model.truncate_dim is not None:
    about.append(model.truncate_dim)
  return hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()

"""A model: an encoder with everything that turns text into embeddings."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import re
from typing import Any, Self

import jax
import numpy as np

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.heads import Head
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime.errors import UserError

# The ways to compare embeddings, named as in sentence-transformers.
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# The prompts that every model has, if only as an empty one.
ROLES = ("query", "document")

# The tokenizer first sees this many characters of a text, then twice as many for as
# long as they might hold too few tokens. This many spare tokens beyond those that are
# kept are enough.
_FIRST_CUT, _SPARE_TOKENS = 10_000, 64

# Where a text may be cut: the part before has the same tokens as in the whole text.
_BETWEEN_WORDS = re.compile(r"(?<=\w) (?=\w)")

# The tokenizer keeps all tokens of a call in memory, also those that it then cuts.
_TOKENIZED_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True)
class Model:
  """An encoder with everything that turns text into embeddings.

  Attributes:
    params: the encoder's parameters; None where only the rest is known.
    tokenizer: a transformers tokenizer.
    pooling: a name that `pooling.get` knows.
    normalize: whether the folder L2-normalises its embeddings.
    max_length: the longest sentence, in tokens; longer ones are cut.
    head: dense layers applied before embeddings are normalised; most have none.
    language_model: the masked-language model's head, which embeddings do not use;
      None if there is none.
    prompts: texts to put before a sentence, by name.
    default_prompt: the name of the prompt put before every sentence, or None.
    column_prompts: texts that training puts before each column of a text, where they
      differ; otherwise the default prompt stands before all.
    include_prompt: whether a prompt's tokens are pooled.
    lower_case: whether text is lower-cased even if the tokenizer's files do not.
    similarity: how embeddings are compared, one of `SIMILARITIES`.
    truncate_dim: how many leading numbers of an embedding are kept; None keeps all.
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
  column_prompts: tuple[str, ...] = ()
  include_prompt: bool = True
  lower_case: bool = False
  similarity: str = "cosine"
  truncate_dim: int | None = None

  @property
  def pooled_size(self) -> int:
    """The width of what the pooling gives."""
    return pooling_lib.embedding_size(self.config, self.pooling)

  @property
  def embedding_size(self) -> int:
    """The width of an embedding."""
    size = self.pooled_size if self.head is None else self.head.size
    return min(size, self.truncate_dim or size)

  @property
  def dense_layers(self) -> list[Head]:
    """The layers of the head, in order; empty without a head."""
    return list(self.head.layers()) if self.head else []

  @property
  def prompt(self) -> str:
    """The text put before every sentence; "" for none."""
    return self.prompts.get(self.default_prompt, "")

  def truncated(self, size: int | None) -> Self:
    """Returns the model with embeddings cut to their first numbers.

    Args:
      size: how many are kept, in place of `truncate_dim`; None changes nothing.

    Raises:
      UserError: embeddings have fewer numbers.
    """
    if size is None:
      return self
    whole = dataclasses.replace(self, truncate_dim=None).embedding_size
    if not 1 <= size <= whole:
      raise UserError(f"truncate_dim={size}, but embeddings have {whole} numbers")
    return dataclasses.replace(self, truncate_dim=size)

  def with_prompt(self, name: str | None) -> Self:
    """Returns the model with another prompt before every sentence.

    Args:
      name: one of `prompts`; None keeps the default one. "query" and "document" may
        be missing and then put nothing there, not even the default, as
        sentence-transformers' encode_query and encode_document do.

    Raises:
      UserError: there is no such prompt.
    """
    if name is None:
      return self
    if name not in (*self.prompts, *ROLES):
      raise UserError(
        f"no prompt is named {name!r}: this model has {', '.join(self.prompts) or 'none'}"
      )
    return dataclasses.replace(self, default_prompt=name)

  def as_column(self, column: int) -> Self:
    """Returns the model as it reads a column of a text in training.

    Args:
      column: its number; the last prompt serves for all that follow.
    """
    if not self.column_prompts:
      return self
    prompt = self.column_prompts[min(column, len(self.column_prompts) - 1)]
    return self.after(prompt)

  def after(self, prompt: str) -> Self:
    """Returns the model with a text before every sentence, in place of any prompt."""
    return dataclasses.replace(
      self, prompts={"": prompt}, default_prompt="", column_prompts=()
    )

  @property
  def left_out(self) -> int:
    """How many first tokens of each sentence are not pooled: the prompt's, or none."""
    if self.include_prompt or not self.prompt:
      return 0
    ids = tokenize(self.tokenizer, [self.prompt], self.max_length)[0]
    # As sentence-transformers counts them: a token that ends sentences is not among them.
    return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

  def tokenize(self, sentences: Sequence[str], max_length: int) -> list[list[int]]:
    """Returns token ids of each sentence after the prompt, as `tokenize` does.

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
    """Turns pooled states [n, D] into embeddings [n, D_out].

    Args:
      embeddings: what the pooling gives.
      normalize: whether to scale to unit length; None does as the folder says.
    """
    if self.head:
      embeddings = self.head(embeddings)
    if self.normalize and normalize is not False:
      embeddings = unit_length(embeddings)
    embeddings = embeddings[:, : self.truncate_dim]
    # A folder that cuts embeddings does so after its own normalising.
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
  """Returns token ids of each sentence, special tokens included, cut to max_length.

  The tokenizer sees only as much of a very long sentence as will be kept: it would
  take seconds and gigabytes for what is cut away.
  """
  ids = []
  # This sets up the backend, which alone does what follows in a third of the time that
  # is not spent on all cores.
  tokenizer([""], truncation=True, max_length=max_length)
  for start in range(0, len(sentences), _TOKENIZED_AT_ONCE):
    part = sentences[start : start + _TOKENIZED_AT_ONCE]
    part = [_beginning(tokenizer, sentence, max_length) for sentence in part]
    found = tokenizer.backend_tokenizer.encode_batch_fast(part)
    ids += [encoding.ids for encoding in found]
  return ids


def _beginning(tokenizer: Any, sentence: str, max_length: int) -> str:
  """Cuts a sentence to a beginning that has its first max_length tokens, or more.

  Its number of characters does not tell: a run of blanks has no token, and a word of
  any length may have one. The cut is between two words, which no token spans.
  """
  if tokenizer.truncation_side != "right":
    return sentence  # The end of the sentence is what is kept.
  length = _FIRST_CUT
  while between := _BETWEEN_WORDS.search(sentence, length):
    beginning = sentence[: between.start()]
    tokens = tokenizer.backend_tokenizer.encode(beginning, add_special_tokens=False)
    # An earlier call may have told it to cut.
    if sum(map(len, [tokens, *tokens.overflowing])) >= max_length + _SPARE_TOKENS:
      return beginning
    length = 2 * between.start()
  return sentence


def tokenizer_state(tokenizer: Any) -> str:
  """Returns all that token ids depend on but the length at which they are cut."""
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  # A tokenizer remembers how it was last called.
  return json.dumps({**state, "truncation": None, "padding": None})


def text_state(model: Model) -> str:
  """Returns all that a text's token ids depend on but the length at which it is cut."""
  state = tokenizer_state(model.tokenizer)
  if prompts := model.column_prompts or model.prompt:
    state += f" after {prompts!r}" + " left out" * (not model.include_prompt)
  return state


def digest(model: Model) -> str:
  """Returns a digest of all that the embedding of token ids depends on."""
  state = hashlib.blake2b(digest_size=16)
  pooling = pooling_lib.recorded(model.pooling)
  state.update(f"{model.config} {pooling}".encode())
  if model.truncate_dim is not None:
    state.update(f"{model.truncate_dim}".encode())
  arrays = [model.params]
  for layer in model.dense_layers:
    state.update(layer.activation.encode())
    arrays += [layer.kernel, layer.bias]
  for path, value in jax.tree.leaves_with_path(arrays):
    state.update(jax.tree_util.keystr(path).encode())
    state.update(np.ascontiguousarray(value).data)
  return state.hexdigest()


def identity(model: Model) -> str:
  """Returns a digest of all that the embedding of a text depends on."""
  about = [
    digest(model),
    text_state(model),
    model.max_length,
    model.normalize,
  ]
  if not model.include_prompt:
    about.append("prompts are left out")
  return hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()

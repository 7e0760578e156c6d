"""What a run reads: text, evaluators, the encoder to start from, outside teachers."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib

from dcse_jax import config as config_lib
from dcse_jax.data import stored
from dcse_jax.data import text as text_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.eval import registry
from dcse_jax.model import model as model_lib
from dcse_jax.recipe import texts
from dcse_jax.teachers.embeddings import Embeddings
from dcse_jax.teachers.embeddings import ExampleRows


def _once(method):
  """Caches a method as functools.cache does, but only while its object lives."""

  @functools.wraps(method)
  def call(self, *arguments):
    known = self.__dict__.setdefault("_known", {})
    key = (method.__name__, *arguments)
    if key not in known:
      known[key] = method(self, *arguments)
    return known[key]

  return call


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Text, evaluators, the encoder to start from and outside teachers.

  Attributes:
    config: the recipe's.
    workdir: its folder, which gets the token caches.
    start: the encoder that rounds start from.
    dev: the evaluators that choose the best parameters; none if the config names
      neither a folder of sets nor anything else.
    test: those that score the best parameters once.
    outside: the models of teachers that no round trains, by name.
    embeddings: those of teachers of which there is nothing else, by name.
    texts: the texts that rounds name, by what they read.
  """

  config: config_lib.ConfigDict
  workdir: pathlib.Path
  start: model_lib.Model
  dev: Sequence[registry.Named]
  test: Sequence[registry.Named]
  outside: Mapping[str, model_lib.Model]
  embeddings: Mapping[str, Embeddings]
  texts: Mapping[texts.Source, text_lib.Text]

  def sentences(
    self, round_config: config_lib.ConfigDict, rows: Sequence[int]
  ) -> list[str]:
    """Returns the first column's sentences by example id."""
    column = self.texts[texts.source_of(round_config)].columns[0]
    source_rows = self.tokens(round_config).source_rows
    return [column[source_rows[row]] for row in rows]

  def tokens(self, round_config: config_lib.ConfigDict) -> tokens_lib.TokenCache:
    """Returns the tokenised text of a round."""
    return self._tokens(
      texts.source_of(round_config), round_config.max_length, round_config.switch_case
    )

  def corpus(self, round_config: config_lib.ConfigDict) -> tokens_lib.TokenCache | None:
    """Returns the tokenised documents that a round mines in besides its positives."""
    if not (round_config.mine_every and round_config.mine_corpus):
      return None
    return self._corpus(
      round_config.mine_corpus, round_config.mine_corpus_column, round_config.max_length
    )

  @_once
  def _corpus(self, source, column, max_length):
    cache = self.workdir / "cache"
    text = texts.read(texts.Source(source, (column,) if column else ()), cache)
    # Documents are read as the positives are.
    return texts.tokenize(text.columns[:1], self.start.as_column(1), max_length, cache)

  def teacher_tokens(
    self, member: str | tuple[str, int], round_config: config_lib.ConfigDict
  ) -> tokens_lib.TokenCache:
    """Returns what a teacher reads: the round's tokens, or the same rows in its own.

    Another tokenizer may make more tokens of a sentence; these are cut at the round's
    max_length, or at the teacher's limit if that is less.

    Args:
      member: a name in `outside`, or the round and seed of a model that a round trains,
        which reads as the student does.
      round_config: that of the round that learns from it.
    """
    tokens = self.tokens(round_config)
    if member not in self.outside or self.reads_alike(self.outside[member]):
      return tokens
    teacher = self.outside[member]
    column = self.texts[texts.source_of(round_config)].columns[0]
    return texts.tokenize(
      (stored.Chosen(column, tokens.source_rows),),
      teacher.as_column(0),
      min(round_config.max_length, teacher.config.max_tokens),
      self.workdir / "cache",
      keep_repeats=True,
    )

  def example_rows(self, name: str, round_config: config_lib.ConfigDict) -> ExampleRows:
    """Returns a teacher's embeddings of a round's sentences.

    Args:
      name: one of `embeddings`.
      round_config: the config of the round that learns from it.

    Raises:
      UserError: they are not of that text, or some have no direction.
    """
    rows = self._rows(name, texts.source_of(round_config))
    examples = self.tokens(round_config).source_rows
    return ExampleRows(self.embeddings[name], rows[examples])

  @_once
  def _rows(self, name, source):
    """Returns where the embedding of each row of a text is, [rows]."""
    return texts.match(self.embeddings[name], self.texts[source], source)

  def reads_alike(self, teacher: model_lib.Model) -> bool:
    """Returns whether a teacher makes the same tokens of a sentence as the student."""
    ours, theirs = self.start, teacher
    if ours.tokenizer.get_vocab() != theirs.tokenizer.get_vocab():
      return False
    return model_lib.text_state(ours) == model_lib.text_state(theirs)

  @_once
  def _tokens(self, source, max_length, switched):
    text, scores = self.texts[source].columns, self.texts[source].scores
    if switched:
      name = self.config.model or "the run"
      text = texts.add_switched(
        text,
        switched,
        self.start,
        seed=self.config.seed,
        name=name,
        store=self.workdir / "cache",
      )
    cache = texts.tokenize_columns(text, self.start, max_length, self.workdir / "cache")
    texts.tell_dropped(source.text, cache)
    if scores is not None:
      cache = dataclasses.replace(cache, scores=scores[cache.source_rows])
    return cache

"""The text of a recipe's rounds: read once, and tokenised once for each reader."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import itertools
import logging
import pathlib
from typing import NamedTuple

import numpy as np

from dcse_jax import config as config_lib
from dcse_jax.data import synthetic
from dcse_jax.data import text as text_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.data.cropping import crop
from dcse_jax.data.stored import Chosen
from dcse_jax.data.stored import StoredColumn
from dcse_jax.data.switch_case import switch_case
from dcse_jax.model import model as model_lib
from dcse_jax.runtime import files
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers.embeddings import Embeddings

_log = logging.getLogger(__name__)


class Source(NamedTuple):
  """What a round reads: fields of its config.

  Attributes:
    text: a name, or several.
    columns: those of tables; empty takes the only one.
    score_columns: those of candidates' scores.
    split: what makes rows of documents.
    crop: the least and the most share of a sentence's words in its two spans.
  """

  text: str | tuple[str, ...]
  columns: tuple[str, ...] = ()
  score_columns: tuple[str, ...] = ()
  split: str = ""
  crop: tuple[float, ...] = ()


def source_of(config: config_lib.ConfigDict) -> Source:
  """Returns what a round, or a recipe, reads."""
  text = config.text if isinstance(config.text, str) else tuple(config.text)
  columns, score_columns = tuple(config.columns), tuple(config.score_columns)
  return Source(text, columns, score_columns, config.split, tuple(config.crop))


def make_synthetic(
  config: config_lib.ConfigDict,
  rounds: Iterable[config_lib.ConfigDict],
  data: pathlib.Path,
) -> None:
  """Makes up the text and the sets of a recipe, and names them in every config.

  Args:
    config: the recipe's.
    rounds: the configs of its rounds.
    data: the folder to write to.
  """

  def make():
    sentences = synthetic.sentences(config.synthetic_sentences, seed=config.seed)
    files.write_text(data / "corpus.txt", "\n".join(sentences) + "\n")
    pairs = synthetic.graded_pairs(config.synthetic_pairs, seed=config.seed)
    half = len(pairs) // 2
    for name, part in (("dev", pairs[:half]), ("test", pairs[half:])):
      lines = (f"{score}\t{a}\t{b}\n" for score, a, b in part)
      files.write_text(data / "sts" / f"{name}.tsv", "".join(lines))

  processes.first_makes(data, make)
  config.sts = str(data / "sts")
  for each in (config, *rounds):
    each.text = str(data / "corpus.txt")


def read(source: Source, store: pathlib.Path) -> text_lib.Text:
  """Reads a round's text, and logs what was left out.

  Args:
    source: what the round reads.
    store: the folder of the disk that keeps the sentences.

  Raises:
    UserError: no text is named, or it cannot be read.
  """
  if not source.text:
    raise UserError("give --config.text=FILE, the text to train on")
  text = text_lib.read_text(
    source.text, source.columns, source.score_columns, split=source.split, store=store
  )
  about = f"{source.text}: {len(text.columns[0])} rows"
  if text.undrawn_rows:
    about += f", {text.undrawn_rows} left out by shares"
  if text.empty_rows:
    about += f", {text.empty_rows} empty left out"
  if text.cut_rows:
    about += f", {text.cut_rows} cut at {text_lib.MAX_CHARACTERS} characters"
  _log.info("%s", about)
  return _cropped(text, source, store) if source.crop else text


def _cropped(text: text_lib.Text, source: Source, store: pathlib.Path) -> text_lib.Text:
  """Returns a text of one column with two spans of each sentence in its place."""
  if len(text.columns) > 1:
    raise UserError(
      f"crop={source.crop} makes anchors and positives of a single column, and "
      f"{source.text} has {len(text.columns)}: set crop=(), or name one column"
    )
  spans = StoredColumn(store), StoredColumn(store)
  for pair in crop(text.columns[0], *source.crop):
    for column, span in zip(spans, pair):
      column.append(span)
  return dataclasses.replace(text, columns=spans)


def match(embeddings: Embeddings, text: text_lib.Text, source: Source) -> np.ndarray:
  """Finds the embedding of each row of a text, and checks them.

  Args:
    embeddings: the teacher's, for each row of the text's files or by ids.
    text: what is read of these files.
    source: names them.

  Returns:
    The rows among the embeddings, [rows of the text].

  Raises:
    UserError: they are of another text, or some have no direction.
  """
  name = source.text
  if source.split:
    raise UserError(
      f"teacher {embeddings.name} is of the rows of {name}, and "
      f"split={source.split!r} makes others of them: write the sentences to a file, and "
      "embed that"
    )
  if source.crop:
    raise UserError(
      f"teacher {embeddings.name} is of whole sentences of {name}, and "
      f"crop={source.crop} trains on spans of them: set crop=()"
    )
  if embeddings.text_digest is not None:
    number, digest = text_lib.measure(name, source.columns)
    if digest != embeddings.text_digest:
      raise UserError(
        f"teacher {embeddings.name} is of another text than {name}, whose {number} "
        f"rows differ, as {embeddings.name}.json says: embed this one"
      )
  if embeddings.ids is None:
    number = len(text.columns[0]) + len(text.left_out)
    rows = embeddings.rows_in_order(number, name)[text.source_rows]
  else:
    is_kept = np.ones(len(text.columns[0]) + len(text.left_out), bool)
    is_kept[np.asarray(text.left_out, int)] = False
    ids = text_lib.read_ids(name, embeddings.id_column)
    rows = embeddings.rows_by_id(itertools.compress(ids, is_kept), name)
  embeddings.check(rows)
  return rows


def tokenize(
  columns: Sequence[Sequence[str]],
  model: model_lib.Model,
  max_length: int,
  cache: pathlib.Path,
  *,
  keep_repeats: bool = False,
) -> tokens_lib.TokenCache:
  """Tokenises text for a model, or finds it tokenised.

  Args:
    columns: the text's.
    model: its tokenizer and default prompt are used.
    max_length: where sentences are cut, in tokens.
    cache: the folder of token caches.
    keep_repeats: keeps rows whose tokens repeat an earlier row's.
  """
  made = tokens_lib.build_token_cache(
    cache,
    columns,
    tokenize=functools.partial(model.tokenize, max_length=max_length),
    tokenizer_state=model_lib.text_state(model),
    max_length=max_length,
    pad_token_id=model.config.pad_token_id,
    vocab_size=model.config.vocab_size,
    keep_repeats=keep_repeats,
    show_progress=len(columns[0]) > 100_000,
  )
  return dataclasses.replace(made, left_out=(model.left_out,) * len(columns))


def tokenize_columns(
  columns: Sequence[Sequence[str]],
  model: model_lib.Model,
  max_length: int,
  cache: pathlib.Path,
) -> tokens_lib.TokenCache:
  """Tokenises text as `tokenize` does, each column after its own prompt.

  Which sentences are equal, and so which rows are left out or never meet, is told by
  their tokens without prompts.
  """
  if not model.column_prompts:
    return tokenize(columns, model, max_length, cache)
  plain = tokenize(columns, model.after(""), max_length, cache)
  prompted = [
    tokenize(
      (Chosen(column, plain.source_rows),),
      model.as_column(c),
      max_length,
      cache,
      keep_repeats=True,
    )
    for c, column in enumerate(columns)
  ]
  keys = [each.key for each in (plain, *prompted)]
  return dataclasses.replace(
    plain,
    key=hashlib.blake2b(" ".join(keys).encode(), digest_size=16).hexdigest(),
    tokens=tuple(each.tokens[0] for each in prompted),
    offsets=tuple(each.offsets[0] for each in prompted),
    left_out=tuple(each.left_out[0] for each in prompted),
  )


def add_switched(
  columns: Sequence[Sequence[str]],
  share: float,
  model: model_lib.Model,
  *,
  seed: int,
  name: str,
  store: pathlib.Path,
) -> tuple[Sequence[str], ...]:
  """Returns one column and a second, the first with the case of some words switched.

  Args:
    columns: the text's only column.
    share: the share of words whose first letter changes, in (0, 1).
    model: its tokenizer must see the change.
    seed: draws the words.
    name: what people call the model.
    store: the folder of the disk that keeps the second column.

  Raises:
    UserError: there are more columns, or the tokenizer is uncased.
  """
  if len(columns) > 1:
    raise UserError(
      f"switch_case={share:g} makes the positives of a single column, and the text "
      f"has {len(columns)}: set switch_case=0, or name one column"
    )
  upper, lower = model.tokenizer(["Case CASE", "case case"])["input_ids"]
  if upper == lower:
    raise UserError(
      f"switch_case={share:g}: the tokenizer of {name} is uncased and would undo "
      "it; use a cased model such as roberta-base"
    )
  switched = StoredColumn(store)
  for sentence in switch_case(columns[0], share, seed=seed):
    switched.append(sentence)
  return (*columns, switched)


def tell_dropped(source: str, cache: tokens_lib.TokenCache) -> None:
  """Logs which rows of a text are left out, or never meet in a batch.

  Raises:
    UserError: no row is left.
  """
  if cache.dropped:
    _log.info(
      "%s: %d rows left out whose tokens repeat an earlier row's", source, cache.dropped
    )
  if cache.contradicting:
    _log.info(
      "%s: %d rows left out whose hard negatives are their own anchor or positive",
      source,
      cache.contradicting,
    )
  if not len(cache):
    raise UserError(
      f"{source}: the hard negative of every row is its own anchor or positive: name "
      "other columns"
    )
  if twins := cache.num_twins:
    _log.info(
      "%s: %d rows share a sentence with another's pair; never in one batch",
      source,
      twins,
    )

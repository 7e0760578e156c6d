"""Static models that a recipe counts from its own text: teachers, and a start."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np

from dcse_jax.counting import static
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.hub import folder as folder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model import token_start
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)


def make(
  name: str,
  settings: Mapping[str, Any],
  columns: Sequence[Sequence[str]],
  cache: pathlib.Path,
) -> model_lib.Model:
  """Makes a static model of a text by counting, or finds it made.

  Args:
    name: the teacher's.
    settings: those of `static.count_words` that differ from its defaults.
    columns: the text's.
    cache: the folder that keeps the model.

  Raises:
    UserError: the text has too few words.
  """
  facts = [f"{key}={settings[key]!r}" for key in sorted(settings)]
  path = cache / f"counted-{tokens_lib.content_key(columns, 'counted', *facts)}"

  def count():
    if path.exists() and not digests_lib.find_damage(path):
      return
    sentences = [cell for column in columns for cell in column]
    _log.info("teacher %s: counting the words of %d sentences", name, len(sentences))
    try:
      model = static.count_words(sentences, **settings)
    except ValueError as error:
      raise UserError(
        f"teacher {name}: the text has only {error}, too few for its vectors: give more "
        f"text, or lower config.counted.{name}.size or min_count"
      ) from error
    folder_lib.save(model, path, overwrite=True)

  processes.first_makes(cache, count)
  return folder_lib.load(str(path))


def begin(start: model_lib.Model, name: str, model: model_lib.Model) -> model_lib.Model:
  """Returns a new BERT whose tokens start with the vectors that a static model has of them.

  Args:
    start: random, with the tokenizer of the text.
    name: the static model's.
    model: the static model.

  Raises:
    UserError: it is not as wide as the encoder.
  """
  if model.embedding_size != start.config.hidden_size:
    raise UserError(
      f"config.token_vectors={name!r} has vectors of {model.embedding_size} numbers and "
      f"the encoder {start.config.hidden_size}: make config.counted.{name}.width the "
      "encoder's hidden_size"
    )
  tokenizer = start.tokenizer
  texts = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
  # A piece in the middle of a word is looked up as a word.
  texts = [text.removeprefix("##") for text in texts]
  table = model.params["embeddings"]["word"]["embedding"]
  vectors = np.zeros((len(texts), table.shape[1]), np.float32)
  special = set(tokenizer.all_special_ids)
  for token, ids in enumerate(model.tokenize(texts, max_length=8)):
    if ids and token not in special:
      vectors[token] = table[np.asarray(ids)].mean(axis=0)
  params = token_start.begin_with(
    start.params, start.config, vectors, weightless=sorted(special)
  )
  return dataclasses.replace(start, params=params)

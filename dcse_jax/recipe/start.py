"""The encoder that a recipe starts from: a model's, or a new one for its text."""

from collections.abc import Sequence
import dataclasses
import logging
import pathlib
from typing import Any

import jax

from dcse_jax import config as config_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.hub import folder
from dcse_jax.hub import wordpiece
from dcse_jax.hub.tokenizer import load_tokenizer
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import files
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)


def new_shape(
  config: config_lib.ConfigDict, *, vocab_size: int, pad_token_id: int
) -> encoder_lib.EncoderConfig:
  """Returns the shape of a recipe's new encoder, for a tokenizer's vocabulary."""
  fields = {"family": "bert", **config.encoder, "vocab_size": vocab_size}
  make = encoder_lib.NEW[fields.pop("family")]
  return make(max_tokens=config.max_length, pad_token_id=pad_token_id, **fields)


def load(config: config_lib.ConfigDict) -> model_lib.Model:
  """Loads the model that a config names, without what training leaves out."""
  model = folder.load(
    config.model,
    default_pooling=config.pooling,
    num_layers=config.num_layers or None,
  )
  if model.head or model.truncate_dim:
    _log.info("%s: its head and truncate_dim are left out of training", config.model)
    model = dataclasses.replace(model, head=None, truncate_dim=None)
  if model.pooling != config.pooling:
    _log.info("%s: pooling %r, its own", config.model, model.pooling)
  return model


def make(
  config: config_lib.ConfigDict, columns: Sequence[Sequence[str]], cache: pathlib.Path
) -> model_lib.Model:
  """Makes a random encoder, with a model's tokenizer or one trained on the text.

  Args:
    config: the recipe's; its `encoder` is the shape.
    columns: the text's.
    cache: the folder that keeps the tokenizer, which is trained once.
  """
  if config.tokenizer:
    tokenizer = load_tokenizer(folder.locate(config.tokenizer, weights=False))
    if tokenizer.pad_token_id is None:
      raise UserError(
        f"config.tokenizer: that of {config.tokenizer} has no padding token: use another"
      )
  else:
    tokenizer = _train_tokenizer(config.encoder.vocab_size, columns, cache)
  shape = new_shape(
    config, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
  )
  params = encoder_lib.init_params(shape, jax.random.key(config.seed))
  return model_lib.Model(
    config=shape,
    params=jax.device_get(params),
    tokenizer=tokenizer,
    pooling=config.pooling,
    normalize=False,
    max_length=config.max_length,
  )


def with_prompts(
  model: model_lib.Model, prompts: Sequence[str], name: str
) -> model_lib.Model:
  """Returns a model that puts a recipe's prompts before the columns of its text.

  Texts become the model's own prompts for queries and documents, as the folder of the
  result will have them. Where all columns have one, it is the default prompt.

  Args:
    model: any of the recipe's.
    prompts: `config.prompts`.
    name: what people call the model.

  Raises:
    UserError: the model has no prompt of a name that every model may have.
  """
  if not prompts:
    return model
  texts = []
  for prompt in prompts:
    if prompt in model_lib.ROLES and prompt not in model.prompts:
      known = ", ".join(map(repr, model.prompts)) or "none"
      raise UserError(
        f"config.prompts names {prompt!r}, and the prompts of {name} are {known}: give "
        f'the words themselves, as in "{prompt}: "'
      )
    texts.append(model.prompts.get(prompt, prompt))
  own = dict(model.prompts)
  for role, prompt, text in zip(model_lib.ROLES, (prompts * 2)[:2], (texts * 2)[:2]):
    if prompt not in model.prompts:
      own[role] = text
  is_one, default = len(set(texts)) == 1, model.default_prompt
  if is_one:
    default = prompts[0] if prompts[0] in model.prompts else model_lib.ROLES[0]
  return dataclasses.replace(
    model,
    prompts=own,
    default_prompt=default,
    column_prompts=() if is_one else tuple(texts),
  )


def _train_tokenizer(
  vocab_size: int, columns: Sequence[Sequence[str]], cache: pathlib.Path
) -> Any:
  key = tokens_lib.content_key(columns, "wordpiece", vocab_size)
  path = cache / f"tokenizer-{key}"

  def train():
    if path.exists() and not digests_lib.find_damage(path):
      return
    trained = wordpiece.train_wordpiece(*columns, vocab_size=vocab_size)
    with files.whole(path) as beside:
      with files.foreign_errors():
        trained.save_pretrained(beside)
      digests_lib.write(beside)

  processes.first_makes(path.parent, train)
  return load_tokenizer(path)

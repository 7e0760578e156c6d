"""A folder's tokenizer: whatever transformers' AutoTokenizer makes of it.

Special tokens, their places and the pad are the tokenizer's own; nothing here knows
what kind it is.
"""

from collections.abc import Iterator
import contextlib
import json
import logging
import pathlib
from typing import Any

import tokenizers

from dcse_jax.hub.settings import read_settings
from dcse_jax.model.model import tokenize
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# Most broken tokenizers fail at one of these.
_TRIED = ("", "A word, 7 \u2603.")


@contextlib.contextmanager
def _one_line(folder: pathlib.Path) -> Iterator[None]:
  """Turns any failure of a tokenizer into an error of one line."""
  try:
    yield
  except UserError:
    raise
  except BaseException as error:
    # A fault in Rust ends in a panic, which is not an Exception.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    raise _error(folder, error) from error


def load_tokenizer(
  folder: pathlib.Path, *, lower_case: bool = False, is_static: bool = False
) -> Any:
  """Loads a folder's tokenizer.

  Args:
    folder: holds the tokenizer's files.
    lower_case: whether to make it lower-case text if it does not.
    is_static: whether the model is static, which sees no special tokens, and whose
      folder has no more than tokenizer.json.

  Raises:
    UserError: there is no tokenizer, or it is not understood.
  """
  import transformers  # It takes seconds, for which earlier errors need not wait.

  names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
  names += ("spiece.model", "tokenizer.model")
  if not any((folder / name).exists() for name in names):
    raise UserError(
      f"{folder} has no tokenizer ({', '.join(names)}): copy the files there"
    )
  if is_static:
    with _one_line(folder):
      tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json")
      )
      tokenizer.backend_tokenizer.post_processor = None
      return tokenizer
  if (folder / "tokenizer_config.json").exists():
    read_settings(folder / "tokenizer_config.json")
  # tokenizer_config.json needs no table of settings: transformers reads all of it, for
  # sentence-transformers as for us.
  with _one_line(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      folder, trust_remote_code=False
    )
  if not tokenizer.is_fast:
    raise UserError(
      f"{folder} has no tokenizer.json that a fast tokenizer reads: save one "
      "with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
    )
  limit = tokenizer.model_max_length
  if type(limit) not in (int, float) or not limit >= 1:
    raise _error(folder, f"model_max_length is {limit!r}")
  if lower_case and not _lower_cases(tokenizer):
    backend = tokenizer.backend_tokenizer
    normalizers = [tokenizers.normalizers.Lowercase()]
    if backend.normalizer is not None:
      normalizers.append(backend.normalizer)
    backend.normalizer = tokenizers.normalizers.Sequence(normalizers)
  return tokenizer


def _lower_cases(tokenizer: Any) -> bool:
  """Returns whether a tokenizer's normalizer makes letters lower-case."""
  normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] or {}
  return any(
    part["type"] == "Lowercase" or part.get("lowercase")
    for part in normalizer.get("normalizers", [normalizer])
    if part
  )


def _error(folder: pathlib.Path, reason: object) -> UserError:
  lines = str(reason).strip().splitlines() or [type(reason).__name__]
  return UserError(
    f"cannot use the tokenizer in {folder} ({lines[0]:.200}): fetch it again"
  )


def check_tokenizer(
  folder: pathlib.Path, tokenizer: Any, max_length: int, vocab_size: int
) -> None:
  """Refuses a tokenizer that fails, or has ids for which the encoder has no rows.

  Args:
    folder: where it comes from, for errors.
    tokenizer: as `load_tokenizer` gives it.
    max_length: tokens of a text, special ones included, at which texts are cut.
    vocab_size: rows of the encoder's table of embeddings.

  Raises:
    UserError: saying why, with both numbers where they do not fit.
  """
  with _one_line(folder):
    tried = tokenize(tokenizer, _TRIED, max_length)
    ids = {*tokenizer.get_vocab().values(), *(i for each in tried for i in each)}
    types = tokenizer(list(_TRIED)).get("token_type_ids", [])
  if any(map(any, types)):
    raise UserError(
      f"{folder}: its tokenizer gives tokens of a single text other types "
      "(token_type_ids) than 0, which is not supported: use another model"
    )
  # Tokens that were added may lack rows: no text has them, but where it spells them.
  usual = ids - set(tokenizer.added_tokens_decoder)
  usual.update(i for each in tried for i in each)
  if max(usual) >= vocab_size:
    raise UserError(
      f"{folder}: its tokenizer has {max(ids) + 1} tokens and its encoder "
      f"{vocab_size}; they belong to different models"
    )
  if max(ids) >= vocab_size:
    _log.warning(
      "%s: its tokenizer has %s tokens and its encoder %s: texts that spell one of "
      "the last are refused",
      folder,
      max(ids) + 1,
      vocab_size,
    )
  if (longest := max(map(len, tried))) > max_length:
    raise UserError(
      f"{folder}: sentences cannot be cut at {max_length} tokens, its tokenizer "
      f"makes {longest}: allow more"
    )

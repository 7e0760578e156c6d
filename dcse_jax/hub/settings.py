"""The JSON files of model folders: every setting is read, or refused by its name."""

from collections.abc import Collection, Mapping
import dataclasses
import pathlib
from typing import Any

from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import read_json

MEND = "fetch the folder again"

# config.json's sizes of an encoder, and the fields of its shape.
SIZES = {
  "vocab_size": "vocab_size",
  "hidden_size": "hidden_size",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "intermediate_size": "intermediate_size",
  "max_position_embeddings": "max_positions",
}


def read_settings(path: pathlib.Path) -> dict[str, Any]:
  """Reads one of a model folder's JSON objects.

  Raises:
    UserError: it cannot be read, is not an object, or names Python code to run.
  """
  settings = read_json(path)
  if not isinstance(settings, dict):
    raise UserError(f"{path} holds no JSON object: {MEND}")
  if settings.get("auto_map"):
    raise UserError(
      f"{path} names Python code of its own (auto_map), which is never run: use "
      "another model, or remove auto_map if this one does without, as one does that "
      "transformers knows and saves by itself (nomic_bert from 5.24 on)"
    )
  return settings


def check_settings(
  path: pathlib.Path,
  settings: Mapping[str, Any],
  *,
  read: Collection[str] = (),
  harmless: Collection[str] = (),
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Refuses settings that no code here reads and that may change embeddings.

  Args:
    path: their file's.
    settings: what the file holds.
    read: keys that are read.
    harmless: keys that change no embedding.
    defaults: the only supported values of other keys, besides null. A key that is not
      known at all must be null, false, 0 or empty.

  Raises:
    UserError: a key has another value; the error names the first.
  """
  defaults = defaults or {}
  for key, value in settings.items():
    if key in read or key in harmless or value is None:
      continue
    right = value == defaults[key] if key in defaults else not value
    if not right:
      raise UserError(
        f"{path}: {key} is {value!r:.80}, which is not supported: use another model, "
        f"or remove {key} if embeddings are the same without"
      )


@dataclasses.dataclass(frozen=True)
class Settings:
  """A file's settings, taken one by one.

  Attributes:
    path: the file's, for errors; all methods raise `UserError`.
    values: what the file holds.
  """

  path: pathlib.Path
  values: Mapping[str, Any]

  def take(self, name: str) -> Any:
    """Returns a value that must be there."""
    if name not in self.values:
      raise UserError(
        f"{self.path}: {name} is not there: add it, as the weights have it"
      )
    return self.values[name]

  def size(self, name: str) -> int:
    """Returns a whole number above 0 that must be there."""
    value = self.take(name)
    is_right = type(value) is int and value > 0
    self.check(name, value, is_right, "a whole number above 0")
    return value

  def choice(self, name: str, default: str, known: Collection[str]) -> str:
    """Returns one of the known words, or the default if there is none."""
    value = self.values.get(name, default)
    if value not in list(known):
      raise UserError(
        f"{self.path}: {name} is {value!r:.80}, which is not supported: use a model "
        f"with {'one of ' * (len(known) > 1)}{', '.join(known)}"
      )
    return value

  def token_id(self, name: str, default: int) -> int:
    """Returns a whole number below vocab_size, or the default if there is none."""
    value = self.values.get(name)
    value = default if value is None else value
    is_right = type(value) is int and 0 <= value < self.size("vocab_size")
    self.check(name, value, is_right, "a whole number below vocab_size")
    return value

  def fraction(self, name: str, default: float) -> float:
    """Returns a number in [0, 1), or the default if there is none."""
    value = self.values.get(name, default)
    is_right = type(value) in (int, float) and 0 <= value < 1
    self.check(name, value, is_right, "a number from 0 to below 1")
    return value

  def flag(self, name: str, default: bool) -> bool:
    """Returns true or false, or the default if it is not there or null."""
    value = self.values.get(name)
    value = default if value is None else value
    self.check(name, value, type(value) is bool, "true or false")
    return value

  def check(self, name: str, value: Any, is_right: bool, wanted: str) -> None:
    """Refuses a value that is not right, and says in words what is wanted."""
    if not is_right:
      raise UserError(f"{self.path}: {name} is {value!r:.80}, not {wanted}: {MEND}")


def wrong_value(path: pathlib.Path, name: str, value: Any, wanted: str) -> UserError:
  """Makes the error of a setting that holds what none can."""
  return UserError(f"{path}: {name} is {value!r:.80}, not {wanted}: fetch it again")

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
    UserError: it cannot be read, is no object, or names Python code to be run.
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
  """Refuses settings that nobody here reads and that may change embeddings.

  Args:
    path: of their file.
    settings: what it holds.
    read: keys that are read.
    harmless: keys that change no embedding.
    defaults: the only supported values of other keys; None is one always. A key that
      is not known at all may be nothing: null, false, 0 or empty.

  Raises:
    UserError: naming the first key with another value.
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
    path: of the file, for errors; all methods raise `UserError`.
    values: what it holds.
  """

  path: pathlib.Path
  values: Mapping[str, Any]

  def take(self, name: str) -> Any:
    """A value that must be there."""
    if name not in self.values:
      raise UserError(
        f"{self.path}: {name} is not there: add it, as the weights have it"
      )
    return self.values[name]

  def size(self, name: str) -> int:
    """A whole number above 0 that must be there."""
    value = self.take(name)
    is_right = type(value) is int and value > 0
    self.check(name, value, is_right, "a whole number above 0")
    return value

  def choice(self, name: str, default: str, known: Collection[str]) -> str:
    """One of the words that are known, or what stands for one that is not there."""
    value = self.values.get(name, default)
    if value not in list(known):
      raise UserError(
        f"{self.path}: {name} is {value!r:.80}, which is not supported: use a model "
        f"with {'one of ' * (len(known) > 1)}{', '.join(known)}"
      )
    return value

  def token_id(self, name: str, default: int) -> int:
    """A whole number below vocab_size, or what stands for one that is not there."""
    value = self.values.get(name)
    value = default if value is None else value
    is_right = type(value) is int and 0 <= value < self.size("vocab_size")
    self.check(name, value, is_right, "a whole number below vocab_size")
    return value

  def fraction(self, name: str, default: float) -> float:
    """A number in [0, 1), or what stands for one that is not there."""
    value = self.values.get(name, default)
    is_right = type(value) in (int, float) and 0 <= value < 1
    self.check(name, value, is_right, "a number from 0 to below 1")
    return value

  def flag(self, name: str, default: bool) -> bool:
    """A truth, or what stands for one that is not there or null."""
    value = self.values.get(name)
    value = default if value is None else value
    self.check(name, value, type(value) is bool, "true or false")
    return value

  def check(self, name: str, value: Any, is_right: bool, wanted: str) -> None:
    """Refuses a value that is not what is wanted, in words."""
    if not is_right:
      raise UserError(f"{self.path}: {name} is {value!r:.80}, not {wanted}: {MEND}")

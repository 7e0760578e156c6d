"""What cleaning changes in a sentence, and which sentences it leaves out.

No rule knows a language. Each is a function with its reason, in `CHANGES` or `FAULTS`.
"""

from collections.abc import Callable
import dataclasses
import re
import unicodedata

from dcse_jax.data import text as text_lib

# Controls but those that are white space.
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]+")
# Soft hyphens, spaces without width, marks of direction. The joiners U+200C and U+200D
# stay: Persian, Indian scripts and emoji need them.
_UNSEEN = re.compile("[\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
_LETTERS = 0.5


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a sentence must be to stay.

  Attributes:
    min_characters: how many it has at least once it is cleaned, in Unicode's code points.
    max_characters: how many at most.
  """

  min_characters: int = 10
  max_characters: int = 1000


def without_controls(sentence: str) -> str:
  """Puts a space for control characters: they are left from other formats."""
  return _CONTROLS.sub(" ", sentence)


def without_unseen(sentence: str) -> str:
  """Drops what nobody sees: two sentences that look alike must be alike."""
  return _UNSEEN.sub("", sentence)


def composed(sentence: str) -> str:
  """Joins letters and their accents (Unicode's NFC): both spellings are one word."""
  return unicodedata.normalize("NFC", sentence)


CHANGES: tuple[Callable[[str], str], ...] = (
  without_controls,
  without_unseen,
  composed,
  text_lib.clean,
)


def is_blank(sentence: str, rules: Rules) -> bool:
  """Tells whether nothing is left."""
  del rules
  return not sentence


def has_lost_characters(sentence: str, rules: Rules) -> bool:
  """Looks for U+FFFD, which stands where an earlier program could not decode."""
  del rules
  return "\ufffd" in sentence


def is_short(sentence: str, rules: Rules) -> bool:
  """Tells a heading or a scrap from a sentence."""
  return len(sentence) < rules.min_characters


def is_long(sentence: str, rules: Rules) -> bool:
  """Tells whether it is more than an encoder reads, or a page without line breaks."""
  return len(sentence) > rules.max_characters


def is_hardly_letters(sentence: str, rules: Rules) -> bool:
  """Tells whether letters and their marks are fewer than half of what is no space.

  Such a row is of a table, of code, or a rule of dashes; it says nothing in words.
  """
  del rules
  letters = sum(map(str.isalpha, sentence))
  others = len(sentence) - sentence.count(" ") - letters
  if others > letters and not sentence.isascii():
    # Vowels of Indian scripts are marks.
    marks = sum(unicodedata.category(each)[0] == "M" for each in sentence)
    letters, others = letters + marks, others - marks
  return letters < _LETTERS * (letters + others)


# The name of each is that of its count. The first that holds is the one that counts.
FAULTS: dict[str, Callable[[str, Rules], bool]] = {
  "blank": is_blank,
  "lost_characters": has_lost_characters,
  "too_short": is_short,
  "too_long": is_long,
  "hardly_letters": is_hardly_letters,
}


def clean(sentence: str) -> str:
  """Applies all changes; to apply them again changes nothing."""
  for change in CHANGES:
    sentence = change(sentence)
  return sentence


def fault(sentence: str, rules: Rules) -> str:
  """Names the first fault of a cleaned sentence; "" if it stays."""
  return next((name for name, holds in FAULTS.items() if holds(sentence, rules)), "")

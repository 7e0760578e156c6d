"""Sentences from Python: which of them are none."""

from collections.abc import Iterable, Iterator, Mapping

from dcse_jax.runtime.errors import UserTypeError


def checked(sentences: Iterable[str]) -> Iterator[str]:
  """Yields sentences one by one.

  Raises:
    UserTypeError: one is no string, such as None or NaN; the error names its place.
  """
  if isinstance(sentences, Mapping) or not isinstance(sentences, Iterable):
    raise UserTypeError(
      f"sentences are a {type(sentences).__name__}, not strings: give a list of them"
    )
  for i, sentence in enumerate(sentences):
    if not isinstance(sentence, str):
      raise UserTypeError(
        f"sentence {i} is a {type(sentence).__name__} ({sentence!r:.80}), not a "
        "string: leave it out, or make it one"
      )
    yield sentence

"""Sentences of documents, found by the rules of their language.

`sentencex` of the Wikimedia Foundation does it: rules for some fifty languages and what
these fall back to, no model to fetch, and a hundred million characters in two seconds.
"""

from collections.abc import Callable, Iterator
import functools
import re

from dcse_jax.runtime.errors import UserError

_SPLIT = re.compile(r"sentences(?::([a-z]{2,3}))?")
_PARAGRAPHS = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")


def fault(split: str) -> str:
  """Says what is wrong with a value of `config.split`; "" if nothing is."""
  if not split or _SPLIT.fullmatch(split):
    return ""
  return (
    'must be "", or "sentences", or "sentences:" and the code of a language other than '
    'English, as in "sentences:de"'
  )


def make(split: str) -> Callable[[str], Iterator[str]]:
  """Returns what splits a document into sentences, all that is blank left out.

  A blank line ends a sentence; any other line break is white space.

  Args:
    split: "sentences", or "sentences:LANGUAGE".

  Raises:
    UserError: the package is missing, or the value is another.
  """
  if problem := fault(split):
    raise UserError(f"split={split!r}: {problem}")
  try:
    import sentencex  # It is an extra.
  except ImportError as error:
    raise UserError(
      f"split={split!r} needs sentencex: pip install 'dcse_jax[data]'"
    ) from error
  language = _SPLIT.fullmatch(split)[1] or "en"
  return functools.partial(_sentences, sentencex.segment, language)


def _sentences(
  segment: Callable[[str, str], list[str]], language: str, document: str
) -> Iterator[str]:
  for paragraph in _PARAGRAPHS.split(document.replace("\0", " ")):
    # It fails on some white space that is no ASCII.
    for sentence in segment(language, " ".join(paragraph.split())):
      if sentence := sentence.strip():
        yield sentence

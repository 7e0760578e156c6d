"""A row's candidates: the positive and hard negatives of its anchor, and their scores.

Negatives come as columns, as a column of lists, or both; scores likewise, one for each
candidate in the same order.
"""

from collections.abc import Sequence
import math
from typing import Any

from dcse_jax.data import decoding

# The types that a cell of a negative or of scores may have.
NEGATIVE = (str, list, type(None))
SCORE = (int, float, str, list, type(None))


def flat(cells: Sequence[Any]) -> list[Any]:
  """Lays lists among cells end to end with the others."""
  return [
    each for cell in cells for each in (cell if isinstance(cell, list) else [cell])
  ]


def negatives(source: str, number: int, cells: Sequence[Any]) -> list[str]:
  """Returns the hard negatives of a row, "" where there is none.

  Args:
    source: names the text in errors.
    number: the row's, from 0.
    cells: strings, lists of strings, or None.

  Raises:
    UserError: a list holds something else.
  """
  found = flat(cells)
  for each in found:
    if not isinstance(each, str | None):
      raise decoding.user_error(
        f"{source} row {number}: a list of negatives holds a {type(each).__name__}; "
        "make it a list of strings"
      )
  return [each or "" for each in found]


def scores(
  source: str, number: int, cells: Sequence[Any], candidates: Sequence[str]
) -> list[float]:
  """Returns the score of each candidate of a row, 0 where there is no candidate.

  Args:
    source: names the text in errors.
    number: the row's, from 0.
    cells: numbers, their text, lists of numbers, or None.
    candidates: the positive and the hard negatives, "" where there is none.

  Raises:
    UserError: there are more or fewer, or one is no finite number.
  """
  values = flat(cells)
  if len(values) != len(candidates):
    raise decoding.user_error(
      f"{source} row {number}: {len(values)} scores for {len(candidates)} candidates; "
      "give one for the positive and one for each hard negative, in their order"
    )
  found = []
  for value, candidate in zip(values, candidates):
    score = _number(value) if candidate else 0.0
    if not math.isfinite(score):
      raise decoding.user_error(
        f"{source} row {number}: the score {value!r:.40} is no finite number; mend or "
        "remove that row"
      )
    found.append(score)
  return found


def _number(value: Any) -> float:
  """Returns a number, or NaN where a cell holds none."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return math.nan
  try:
    return float(value)
  except (ValueError, OverflowError):
    return math.nan

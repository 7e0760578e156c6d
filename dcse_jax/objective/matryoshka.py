"""Matryoshka: the beginning of an embedding serves as an embedding."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from dcse_jax.losses.terms import Weighted
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.objective.inputs import PROVIDERS
from dcse_jax.objective.inputs import Start

if TYPE_CHECKING:
  from dcse_jax.objective.objective import Objective

# The arrays that are cut, in the order of the providers.
_CUT = tuple(name for provider in PROVIDERS for name in provider.embeddings)


def _is_cut(each: Weighted) -> bool:
  return any(name.removeprefix("all_") in _CUT for name in each.term.inputs)


def validate_widths(objective: "Objective", start: Start) -> str:
  """Says why embeddings of a round cannot be cut to its widths, or ""."""
  if not objective.widths:
    return ""
  widths = tuple(width for width, _ in objective.widths)
  if max(widths) > start.pooled_size:
    return f"matryoshka={widths}, but embeddings have {start.pooled_size} numbers"
  if pooling_lib.get(objective.pooling).projected and not objective.keep_head:
    return (
      f"matryoshka={widths} cuts what is compared, and that is the projection's, which "
      "is dropped: set keep_head, or use a pooling without a projection"
    )
  if objective.asks_for(("predictions",)):
    return (
      f"matryoshka={widths} cuts embeddings, and a term compares them with a teacher's "
      "number by number: leave one of them out"
    )
  return ""


def sum_over_widths(
  compare: Callable[..., dict[str, jax.Array]],
  terms: Sequence[Weighted],
  offered: dict[str, Any],
  of_step: dict[str, Any],
  widths: Sequence[tuple[int, float]],
) -> dict[str, jax.Array]:
  """Sums each term over the first numbers of the student's embeddings.

  Args:
    compare: takes terms, what is offered and what a step offers besides, and returns
      the values of each term, by name.
    terms: those that take no embedding of the student's count once.
    offered: arrays with a row for each sentence, [B, ...].
    of_step: other arrays.
    widths: how many numbers are kept, and the weight of the terms then; at least one.

  Returns:
    The weighted sum of each term's values, [B], by name.

  References:
    Kusupati et al., Matryoshka Representation Learning, 2022 (arXiv:2205.13147).
  """
  values: dict[str, jax.Array] = {}
  if others := [each for each in terms if not _is_cut(each)]:
    values |= compare(others, offered, of_step)
  nested = [each for each in terms if _is_cut(each)]
  for width, weight in widths:
    cut = lambda arrays, width=width: {
      name: value[..., :width] if name in _CUT else value
      for name, value in arrays.items()
    }
    for name, value in compare(nested, cut(offered), cut(of_step)).items():
      values[name] = weight * value + values.get(name, 0.0)
  return values

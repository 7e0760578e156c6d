"""Matryoshka: the beginning of an embedding serves as an embedding."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

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


def _predicts(each: Weighted) -> bool:
  return "predictions" in each.term.inputs


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
  return ""


def _first_of_each(teacher: jax.Array, size: int, width: int) -> jax.Array:
  """Cuts each teacher's embedding in the joint one, [B, T * size] to [B, T * width].

  Their lengths stay: they are the roots of the teachers' weights.
  """
  whole = teacher.reshape(len(teacher), -1, size)
  length = lambda x: jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
  first = whole[..., :width]
  norms = length(first)
  first = first * (length(whole) / jnp.where(norms > 0, norms, 1.0))
  return first.astype(teacher.dtype).reshape(len(teacher), -1)


def _cut(arrays: dict[str, Any], width: int, is_predicted: bool) -> dict[str, Any]:
  """Cuts the student's embeddings, and those of teachers that are predicted."""
  cut = {n: x[..., :width] if n in _CUT else x for n, x in arrays.items()}
  if is_predicted and "teacher" in arrays:
    size = arrays["predictions"].shape[-1]
    cut["teacher"] = _first_of_each(arrays["teacher"], size, width)
  return cut


def sum_over_widths(
  compare: Callable[..., dict[str, jax.Array]],
  terms: Sequence[Weighted],
  offered: dict[str, Any],
  of_step: dict[str, Any],
  widths: Sequence[tuple[int, float]],
) -> dict[str, jax.Array]:
  """Sums each term over the first numbers of the student's embeddings.

  A term that predicts a teacher's embeddings predicts the first numbers of these: such
  a teacher is the round before, which was trained like the student.

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
  for is_predicted in (False, True):
    kind = [each for each in nested if _predicts(each) == is_predicted]
    for width, weight in widths if kind else ():
      cut = _cut(offered, width, is_predicted), _cut(of_step, width, False)
      for name, value in compare(kind, *cut).items():
        values[name] = weight * value + values.get(name, 0.0)
  return values

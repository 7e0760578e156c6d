"""Terms: pure functions that an objective is a weighted sum of.

A term says by its parameters what it needs, and a training step computes only
that. Those before the `*` are what a step offers (`objective.Objective` lists it):
`x` is an array with a row for each anchor that the term is asked for, [b, ...],
`all_x` the same of the whole batch, [B, ...]; a default of None means that it may be
missing. Those after it are settings, with their defaults, and fields of a config
under the name of the term. It returns one loss an anchor, [b]. Row by row is all
that a term may know of `x`: so a batch can be taken in blocks of rows.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import inspect
import math
import re
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
  """A registered term.

  Attributes:
    fn: offered arrays and settings, by name, to the loss of each row, [b].
    needs: names of parameters that a step must offer.
    welcomes: names of parameters that are None where a step has no such.
    settings: defaults by name.
    complaint: settings by name, and the batch size, to what is wrong with them, or
      to "".
  """

  name: str
  fn: Callable[..., jax.Array]
  needs: tuple[str, ...]
  welcomes: tuple[str, ...]
  settings: Mapping[str, Any]
  complaint: Callable[[Mapping[str, Any], int], str]

  @property
  def takes(self) -> tuple[str, ...]:
    """Every offered parameter."""
    return self.needs + self.welcomes

  @property
  def summary(self) -> str:
    """The first line of its docstring."""
    return inspect.getdoc(self.fn).partition("\n")[0].rstrip(".")

  @property
  def papers(self) -> list[str]:
    """arXiv's numbers of the papers that its docstring names."""
    return re.findall(r"arXiv:(\d{4}\.\d{4,5})", self.fn.__doc__)


TERMS: dict[str, Term] = {}


def within(**ranges: tuple[float, float]) -> Callable[..., str]:
  """A complaint about settings that are outside of their ranges.

  Args:
    **ranges: the least and the largest value of each, both allowed.
  """

  def complaint(settings, batch_size):
    del batch_size
    for name, (low, high) in ranges.items():
      if not low <= settings[name] <= high:
        return f"{name}={settings[name]}: must be in [{low:g}, {high:g}]"
    return ""

  return complaint


def term(*, complaint: Callable[..., str] = lambda settings, batch_size: ""):
  """Registers a function as the term of its name."""

  def register(fn):
    needs, welcomes, settings = [], [], {}
    for name, parameter in inspect.signature(fn).parameters.items():
      if parameter.kind == inspect.Parameter.KEYWORD_ONLY:
        settings[name] = parameter.default
      elif parameter.default is inspect.Parameter.empty:
        needs.append(name)
      else:
        welcomes.append(name)
    TERMS[fn.__name__] = Term(
      fn.__name__, fn, tuple(needs), tuple(welcomes), settings, complaint
    )
    return fn

  return register


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted:
  """A term of one objective, with its weight and all of its settings."""

  weight: float
  term: Term
  settings: Mapping[str, Any]


def taken(terms: Iterable[Weighted]) -> tuple[str, ...]:
  """What an objective asks for, each name once and without "all_", sorted."""
  names = (name for each in terms for name in each.term.takes)
  return tuple(sorted({name.removeprefix("all_") for name in names}))


def parse(
  objective: str, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Weighted, ...]:
  """The terms of a sum such as "info_nce + 0.1 * masked_language_model".

  Args:
    objective: names of `TERMS`, with their weights.
    settings: by the name of a term, those that differ from its defaults.

  Raises:
    ValueError: it is not a sum of known terms, each once.
  """
  found = []
  for part in objective.split("+"):
    weight, _, name = part.rpartition("*")
    name = name.strip()
    if name not in TERMS:
      raise ValueError(f"{name!r} is no term; use {', '.join(sorted(TERMS))}")
    try:
      weight = float(weight) if weight else 1.0
    except ValueError as error:
      raise ValueError(
        f"{weight.strip()!r} is no number; write it like "
        '"info_nce + 0.1 * masked_language_model"'
      ) from error
    if not 0 < weight < math.inf:
      raise ValueError(f"{name} weighs {weight:g}: weights are above 0")
    known = dict(TERMS[name].settings)
    for key, value in dict((settings or {}).get(name, {})).items():
      # Written in a file or come from one.
      known[key] = tuple(value) if isinstance(value, list) else value
    found.append(Weighted(weight, TERMS[name], known))
  names = [each.term.name for each in found]
  if len(set(names)) < len(names):
    raise ValueError("name each term once")
  return tuple(found)

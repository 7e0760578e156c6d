"""Terms: pure functions that an objective is a weighted sum of.

A term says by its parameters what it needs, and a training step computes only
that. Those before the `*` are what a step offers (`objective.inputs` lists it):
`x` is an array with a row for each anchor that the term is asked for, [b, ...],
`all_x` the same of the whole batch, [B, ...]; a default of None means that it may be
missing. Those after it are settings, with their defaults, and fields of a config
under the name of the term. It returns one loss an anchor, [b]. Row by row is all
that a term may know of `x`: so a batch can be taken in blocks of rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import inspect
import math
import numbers
import re
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers that a setting may be; the defaults allow every finite one.

  Attributes:
    low: the least.
    high: the largest.
    above: leaves `low` itself out.
    below: leaves `high` itself out.
    whole: allows integers alone.
    several: the setting is a sequence of one number or more, each once.
  """

  low: float = -math.inf
  high: float = math.inf
  above: bool = False
  below: bool = False
  whole: bool = False
  several: bool = False

  def validate(self, value: Any) -> str:
    """Says what a value must be; "" if it is that."""
    values = [value]
    if self.several:
      values = value if isinstance(value, (tuple, list)) else []
      if not values or len(set(map(str, values))) < len(values):
        return f"must be a tuple of numbers, each {self} and once"
    return "" if all(map(self._holds, values)) else f"must be {self}"

  def _holds(self, value: Any) -> bool:
    # Python's True is a number, too, and an infinite value is none that a run can use.
    kind = numbers.Integral if self.whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
      return False
    if not math.isfinite(value):
      return False
    over = value > self.low if self.above else value >= self.low
    under = value < self.high if self.below else value <= self.high
    return over and under

  def __str__(self) -> str:
    kind = "a whole number" if self.whole else "a number"
    if self.low == -math.inf:
      return "a finite number"
    if self.high == math.inf and self.above:
      return f"a finite number above {self.low:g}"
    if self.high == math.inf:
      return f"{kind}, {self.low:g} or more"
    opens, closes = "(" if self.above else "[", ")" if self.below else "]"
    return f"{kind} in {opens}{self.low:.12g}, {self.high:.12g}{closes}"


POSITIVE = Range(0, above=True)
SHARE = Range(0, 1)


@dataclasses.dataclass(frozen=True)
class Choice:
  """The words that a setting may be."""

  words: tuple[str, ...]

  def validate(self, value: Any) -> str:
    """Says what a value must be; "" if it is that."""
    return "" if value in self.words else f"use one of {', '.join(self.words)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
  """A pure function of arrays and settings, which its parameters name as a term's do.

  Its arrays are some of `HELD_OUT`, of sentences that no step trains on just then.
  """

  fn: Callable[..., Any]
  inputs: tuple[str, ...]
  settings: tuple[str, ...]

  def __call__(self, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """What the function gives; more arrays and settings than it takes may be given."""
    return self.fn(
      **{name: arrays[name] for name in self.inputs},
      **{name: settings[name] for name in self.settings},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
  """A registered term.

  Attributes:
    fn: offered arrays and settings, by name, to the loss of each row, [b].
    required: names of parameters that a step must offer.
    optional: names of parameters that are None where a step has no such.
    settings: defaults by name.
    ranges: what each setting may be, by its name.
    check: settings by name, and the batch size, to what is wrong with them
      together, or to "".
    held_out: the loss of each sentence without dropout and chance, [B]; None where
      none is measured while a model trains.
    warnings: what is likely not meant, each a sentence; None where nothing can be.
  """

  name: str
  fn: Callable[..., jax.Array]
  required: tuple[str, ...]
  optional: tuple[str, ...]
  settings: Mapping[str, Any]
  ranges: Mapping[str, Range | Choice]
  check: Callable[[Mapping[str, Any], int], str]
  held_out: Measure | None = None
  warnings: Measure | None = None

  @property
  def inputs(self) -> tuple[str, ...]:
    """Every offered parameter."""
    return self.required + self.optional

  def validate(self, settings: Mapping[str, Any], batch_size: int) -> str:
    """Says what is wrong with settings by name; "" if nothing is."""
    for name, value in settings.items():
      if problem := self.ranges[name].validate(value):
        return f"{name}={value!r}: {problem}"
    return self.check(settings, batch_size)

  @property
  def summary(self) -> str:
    """The first line of its docstring."""
    return inspect.getdoc(self.fn).partition("\n")[0].rstrip(".")

  @property
  def papers(self) -> list[str]:
    """Numbers, in arXiv, of the papers that its docstring names."""
    return re.findall(r"arXiv:(\d{4}\.\d{4,5})", self.fn.__doc__)


TERMS: dict[str, Term] = {}

# What a held-out measure and warnings may ask for: embeddings of a batch of sentences
# without dropout, by the model after its projection and by the teachers.
HELD_OUT = ("anchors", "all_anchors", "teacher", "all_teacher")

# The sign of an exponent, as in 1e+0, adds no terms.
_PLUS = re.compile(r"(?<![\d.][eE])\+")


def term(
  *,
  check: Callable[..., str] = lambda settings, batch_size: "",
  held_out: Callable[..., jax.Array] | None = None,
  warnings: Callable[..., Sequence[str]] | None = None,
  **ranges: Range | Choice,
):
  """Registers a function as the term of its name.

  Args:
    check: as `Term.check`.
    held_out: the term without dropout and chance, of arrays of `HELD_OUT` and settings,
      to the loss of each sentence, [B].
    warnings: of the first batches of the training text, [n, B, ...], and settings, to
      what is likely not meant.
    **ranges: what each setting may be; every one needs its own but temperatures,
      which are above 0.
  """

  def register(fn):
    required, optional, settings = _parameters(fn)
    temperatures = {n: POSITIVE for n in settings if n.endswith("temperature")}
    every = temperatures | ranges
    if every.keys() != settings.keys():
      raise TypeError(f"{fn.__name__}: give the range of each of {', '.join(settings)}")
    measures = {"held_out": held_out, "warnings": warnings}
    TERMS[fn.__name__] = Term(
      fn.__name__,
      fn,
      required,
      optional,
      settings,
      every,
      check,
      **{name: _measure(each, settings) for name, each in measures.items() if each},
    )
    return fn

  return register


def _parameters(fn) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
  """Names of the arrays that a function needs and welcomes, and its settings."""
  required, optional, settings = [], [], {}
  for name, parameter in inspect.signature(fn).parameters.items():
    if parameter.kind == inspect.Parameter.KEYWORD_ONLY:
      settings[name] = parameter.default
    elif parameter.default is inspect.Parameter.empty:
      required.append(name)
    else:
      optional.append(name)
  return tuple(required), tuple(optional), settings


def _measure(fn, settings: Mapping[str, Any]) -> Measure:
  inputs, optional, own = _parameters(fn)
  unknown = [name for name in (*inputs, *optional) if name not in HELD_OUT]
  unknown += [name for name in own if name not in settings]
  if unknown:
    raise TypeError(
      f"{fn.__name__} asks for {', '.join(unknown)}: it may ask for "
      + ", ".join((*HELD_OUT, *settings))
    )
  return Measure(fn, inputs, tuple(own))


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted:
  """A term of one objective, with its weight and all of its settings."""

  weight: float
  term: Term
  settings: Mapping[str, Any]


def inputs_of(terms: Iterable[Weighted]) -> tuple[str, ...]:
  """What an objective asks for, each name once and without "all_", sorted."""
  names = (name for each in terms for name in each.term.inputs)
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
  for part in _PLUS.split(objective):
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

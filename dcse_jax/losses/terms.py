"""Terms: the pure functions whose weighted sum is an objective.

A term's parameters say what it needs, and a training step computes only that. Those
before the `*` are inputs that a step offers (`objective.inputs` lists them): `x` is an
array with a row for each anchor that the term is asked for, [b, ...], and `all_x` the
same array for the whole batch, [B, ...]; a default of None means that it may be
missing. Those after the `*` are settings, with their defaults, and become fields of a
config under the name of the term. A term returns one loss an anchor, [b]. It must
treat each row of `x` alone, so that a batch can be computed in chunks of rows.
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
  """A range of numbers that a setting may have; by default every finite one.

  Attributes:
    low: the smallest.
    high: the largest.
    above: leaves `low` itself out.
    below: leaves `high` itself out.
    whole: allows integers alone.
    several: the setting is a sequence of one or more numbers, none of them twice.
  """

  low: float = -math.inf
  high: float = math.inf
  above: bool = False
  below: bool = False
  whole: bool = False
  several: bool = False

  def validate(self, value: Any) -> str:
    """Says what is wrong with a value; "" if nothing is."""
    values = [value]
    if self.several:
      values = value if isinstance(value, (tuple, list)) else []
      if not values or len(set(map(str, values))) < len(values):
        return f"must be a tuple of numbers, each {self} and once"
    return "" if all(map(self._holds, values)) else f"must be {self}"

  def _holds(self, value: Any) -> bool:
    # Python's True is a number too, and a run cannot use an infinite value.
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
  """A set of words, one of which a setting must be."""

  words: tuple[str, ...]

  def validate(self, value: Any) -> str:
    """Says what is wrong with a value; "" if nothing is."""
    return "" if value in self.words else f"use one of {', '.join(self.words)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
  """A pure function of arrays and settings that its parameters name, like a term's.

  Its arrays are some of `HELD_OUT`, for sentences that no step trains on just then.
  """

  fn: Callable[..., Any]
  inputs: tuple[str, ...]
  settings: tuple[str, ...]

  def __call__(self, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """Calls the function with those of the arrays and settings that it takes."""
    return self.fn(
      **{name: arrays[name] for name in self.inputs},
      **{name: settings[name] for name in self.settings},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
  """A registered term.

  Attributes:
    fn: takes offered arrays and settings, by name, and returns each row's loss, [b].
    required: names of parameters that a step must offer.
    optional: names of parameters that are None where a step lacks them.
    settings: defaults by name.
    ranges: the values that each setting may have, by its name.
    check: takes settings by name and the batch size, and says what is wrong with them
      together, or "".
    held_out: computes the loss of each sentence without dropout or randomness, [B];
      None where it is not measured while a model trains.
    warnings: lists what was probably not meant, a sentence each; None if nothing is
      checked.
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
    """The names of all inputs, required and optional."""
    return self.required + self.optional

  def validate(self, settings: Mapping[str, Any], batch_size: int) -> str:
    """Says what is wrong with settings by name; "" if nothing is."""
    for name, value in settings.items():
      if problem := self.ranges[name].validate(value):
        return f"{name}={value!r}: {problem}"
    return self.check(settings, batch_size)

  @property
  def summary(self) -> str:
    """The first line of the term's docstring; "" if it has none."""
    return (inspect.getdoc(self.fn) or "").partition("\n")[0].rstrip(".")

  @property
  def papers(self) -> list[str]:
    """The arXiv numbers of the papers that the term's docstring names."""
    return re.findall(r"arXiv:(\d{4}\.\d{4,5})", self.fn.__doc__ or "")


TERMS: dict[str, Term] = {}

# The inputs of held-out measures and warnings: embeddings of a batch of sentences
# without dropout, the model's after its projection, or as served and mapped to the
# teachers' width, and the teachers'.
HELD_OUT = ("anchors", "all_anchors", "student", "teacher", "all_teacher")

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
    check: see `Term.check`.
    held_out: computes the term without dropout or randomness, from arrays of `HELD_OUT`
      and settings: the loss of each sentence, [B].
    warnings: takes such arrays for the first batches of the training text, [n, B, ...],
      and settings, and lists what was probably not meant.
    **ranges: the values that each setting may have; only temperatures, which are above
      0, need none.
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
  """Returns a function's required and optional arrays by name, and its settings."""
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
  """Returns what an objective asks for, each name once and without "all_", sorted."""
  names = (name for each in terms for name in each.term.inputs)
  return tuple(sorted({name.removeprefix("all_") for name in names}))


def names(objective: str) -> list[str]:
  """Lists the terms that an objective names, whether this process knows them or not."""
  return [part.rpartition("*")[2].strip() for part in _PLUS.split(objective)]


def parse(
  objective: str, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Weighted, ...]:
  """Parses a sum of terms such as "info_nce + 0.1 * masked_language_model".

  Args:
    objective: names of `TERMS`, with their weights.
    settings: for each term, by its name, those that differ from its defaults.

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
      # JSON turns tuples into lists.
      known[key] = tuple(value) if isinstance(value, list) else value
    found.append(Weighted(weight, TERMS[name], known))
  names = [each.term.name for each in found]
  if len(set(names)) < len(names):
    raise ValueError("name each term once")
  return tuple(found)

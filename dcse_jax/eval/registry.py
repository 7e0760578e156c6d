"""The evaluators, and how a config names them.

A name in `config.dev` or `config.test` is that of a set in the folder `config.sts`, or
KIND:PLACE, whose score is the mean over what the evaluator KIND reads from PLACE.
"""

from collections.abc import Iterable, Sequence
import dataclasses

from dcse_jax.eval.evaluator import Evaluator
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.masked_words import MaskedWords
from dcse_jax.eval.retrieval import Retrieval
from dcse_jax.eval.sts import Sts
from dcse_jax.eval.transfer import Transfer
from dcse_jax.runtime.errors import UserError

# They stand in the order of tables. A new evaluator is a line here.
EVALUATORS = {each.kind: each for each in (Sts, Retrieval, Transfer, MaskedWords)}


@dataclasses.dataclass(frozen=True)
class Named:
  """An evaluator with the names that a config gives its scores.

  Attributes:
    columns: the column of `Evaluator.score` for each name.
  """

  evaluator: Evaluator
  columns: dict[str, str]

  @property
  def digests(self) -> dict[str, str]:
    """The digests of the data, by name."""
    return {name: self.evaluator.digest(c) for name, c in self.columns.items()}


def _kind(name: str) -> str | None:
  kind, colon, place = name.partition(":")
  return kind if colon and place and kind in EVALUATORS else None


def is_set(name: str) -> bool:
  """Returns whether a name in a config is that of an STS set."""
  return _kind(name) is None


def read_named(names: Sequence[str], sts: str, *, dev: bool) -> list[Named]:
  """Reads the evaluators that a config names.

  Args:
    names: `config.dev` or `config.test`.
    sts: the folder of sets, `config.sts`; without it, names of sets are left out.
    dev: whether the best model is chosen by these, so that no test set may be read.

  Raises:
    UserError: no evaluator yields a name, or data cannot be read.
  """
  found, options = [], Options(dev=dev)
  sets = [name for name in names if is_set(name)]
  if unknown := [name for name in sets if ":" in name and not sts]:
    raise UserError(f"no evaluation yields {unknown[0]!r}: use {_forms()}")
  if sets and sts:
    try:
      evaluator = Sts.of_sets(sts, sets)
    except KeyError as error:
      raise UserError(
        f"no evaluation yields {error.args[0]!r}: {error.args[1]}; or use {_forms()}"
      ) from error
    found.append(Named(evaluator, {name: name for name in sets}))
  for name in names:
    if kind := _kind(name):
      place = name.partition(":")[2]
      found.append(Named(EVALUATORS[kind].read([place], options), {name: "avg"}))
  metrics: dict[str, str] = {}
  for each in found:
    for column in each.evaluator.columns:
      metric, ours = each.evaluator.metric_name(column), next(iter(each.columns))
      if metric in metrics:
        raise UserError(
          f"{metrics[metric]} and {ours} would both be {metric}: rename one's {column}"
        )
      metrics[metric] = ours
  return found


def _forms() -> str:
  kinds = [each for each in EVALUATORS.values() if each is not Sts]
  return " or ".join(["a set of config.sts", *(f"{e.kind}:{e.form}" for e in kinds)])


def measures(names: Iterable[str]) -> str:
  """Says what the scores of some names measure, such as "Spearman"."""
  kinds = [EVALUATORS[_kind(name) or Sts.kind].measure for name in names]
  return " or ".join(dict.fromkeys(kinds or [Sts.measure]))

"""Probes: sentences on which a round's models and teachers are measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import logging
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.eval import diagnostics
from dcse_jax.eval import registry
from dcse_jax.eval.evaluator import distinct_sentences
from dcse_jax.losses.terms import Weighted
from dcse_jax.model import model as model_lib
from dcse_jax.recipe.inputs import Inputs
from dcse_jax.recipe.monitor import embedder
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime.files import read_json
from dcse_jax.runtime.files import write_json
from dcse_jax.teachers.teaching import EmbeddedTeacher
from dcse_jax.teachers.teaching import Teacher

_log = logging.getLogger(__name__)

# About how many sentences a probe has, in whole batches.
_PROBE_SENTENCES = 512


@dataclasses.dataclass(frozen=True)
class Probe:
  """Batches of sentences on which models are measured.

  Attributes:
    train: the sentences that are trained on first, whole batches end to end.
    held_out: sentences of the dev sets, likewise; empty without sets.
    batch_size: the round's.
    max_length: the round's, in tokens.
    rows: the example ids of `train`.
  """

  train: list[str]
  held_out: list[str]
  batch_size: int
  max_length: int
  rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))

  def teach(self, teacher: Teacher | EmbeddedTeacher, split: str) -> np.ndarray:
    """Returns a teacher's embeddings of a split, [n, B, D].

    One that is only embeddings has none of the held-out sentences.
    """
    if isinstance(teacher, Teacher):
      return self.embed(teacher.model, split)
    assert split == "train"
    return self.batches(np.asarray(teacher.rows[self.rows], np.float32))

  def embed(self, model: model_lib.Model, split: str) -> np.ndarray:
    """Computes a model's embeddings of a split, [n, B, D]."""
    # A teacher may take fewer tokens than the student, here as when it teaches.
    max_length = min(self.max_length, model.config.max_tokens)
    embed = embedder(self.reader(model, split), getattr(self, split), max_length)
    return self.batches(embed({"encoder": model.params}))

  def reader(self, model: model_lib.Model, split: str) -> model_lib.Model:
    """Returns a model as it reads a split: what is trained on is the first column."""
    return model.as_column(0) if split == "train" else model

  def batches(self, embeddings: np.ndarray) -> np.ndarray:
    """Divides embeddings into batches, [n * B, D] to [n, B, D]."""
    return embeddings.reshape(-1, self.batch_size, embeddings.shape[-1])

  def histograms(self, model: model_lib.Model) -> dict[str, Any]:
    """Computes `diagnostics.histograms` of a model."""
    held_out = self.embed(model, "held_out") if self.held_out else None
    return diagnostics.histograms(self.embed(model, "train"), held_out)


def probe_size(num_sentences: int, batch_size: int) -> int:
  """Counts the sentences that a probe takes: whole batches, about 512 or one."""
  wanted = max(_PROBE_SENTENCES // batch_size, 1) * batch_size
  return min(wanted, num_sentences // batch_size * batch_size)


def dev_sentences(dev: Sequence[registry.Named]) -> list[str]:
  """Lists each sentence of evaluators once, mixed: files have pairs side by side."""
  sentences = distinct_sentences(each.evaluator for each in dev)
  order = np.random.default_rng(0).permutation(len(sentences))
  return [sentences[i] for i in order]


def make_probe(
  inputs: Inputs,
  config: config_lib.ConfigDict,
  batches: Iterator[Mapping[str, np.ndarray]],
) -> Probe:
  """Makes a probe of the first sentences that a seed trains on, and of dev sentences.

  Args:
    inputs: the recipe's.
    config: the round's.
    batches: the seed's, from the first on.
  """
  size = probe_size(len(inputs.tokens(config)), config.batch_size)
  rows = [next(batches)["example_id"] for _ in range(size // config.batch_size)]
  held_out = dev_sentences(inputs.dev)
  return Probe(
    train=inputs.sentences(config, np.concatenate(rows)),
    rows=np.concatenate(rows),
    held_out=held_out[: probe_size(len(held_out), config.batch_size)],
    batch_size=config.batch_size,
    max_length=config.max_length,
  )


def write_spread(
  path: pathlib.Path,
  teachers: Sequence[Teacher | EmbeddedTeacher],
  probe: Callable[[], Probe],
) -> list[np.ndarray]:
  """Writes how a round's teachers differ on a probe, unless that is known.

  Args:
    path: the file to write.
    teachers: nothing is written if there is only one.
    probe: makes the probe of the round's first seed.

  Returns:
    Each teacher's embeddings of the probe's training sentences, [n, B, D]; none if
    nothing had to be measured.
  """
  names = [teacher.name for teacher in teachers]
  is_known = path.exists() and read_json(path).get("teachers") == names
  if len(teachers) < 2 or processes.agree(is_known):
    return []
  made = probe()
  embeddings = [made.teach(teacher, "train") for teacher in teachers]
  spread = diagnostics.teacher_spread(embeddings)
  if processes.is_first():
    write_json(path, {"teachers": names, **spread})
  return embeddings


def measure(
  name: str,
  start: model_lib.Model,
  terms: Sequence[Weighted],
  teachers: Sequence[Teacher | EmbeddedTeacher],
  probes: Mapping[int, Probe],
  on_train: Mapping[int, Sequence[np.ndarray]],
  *,
  keep_head: bool = False,
) -> "dict[int, HeldOut]":
  """Makes measures that compare the student of each seed with the teachers.

  It also warns of settings that the teachers' similarities make unlikely.

  Args:
    name: the round's, for people.
    start: the encoder that each student starts from.
    terms: the round's.
    teachers: the round's.
    probes: those of each seed.
    on_train: what `write_spread` returned, by the seed of its probe.
    keep_head: whether students are served with the heads that are trained along.

  Returns:
    The measures by seed; empty if no term has any.
  """
  measured = [each for each in terms if each.term.held_out]
  warned = [each for each in terms if each.term.warnings]
  if not measured and not warned:
    return {}
  weights = [teacher.weight for teacher in teachers]

  def embed(probe, split):
    return [probe.teach(each, split) for each in teachers]

  def join(embeddings):
    return np.stack([losses.join_teachers(x, weights) for x in zip(*embeddings)])

  measures, held_out = {}, None
  for seed, probe in probes.items():
    signals.check()
    joint = {"train": join(on_train.get(seed) or embed(probe, "train"))}
    if not measures:
      _warn(name, warned, joint["train"])
    is_known = all(isinstance(each, Teacher) for each in teachers)
    if probe.held_out and is_known:  # It is the same for every seed.
      held_out = join(embed(probe, "held_out")) if held_out is None else held_out
      joint["held_out"] = held_out
    measures[seed] = HeldOut(start, probe, measured, joint, keep_head=keep_head)
  return measures


def _warn(name: str, terms: Sequence[Weighted], teacher: np.ndarray) -> None:
  for each in terms:
    for warning in each.term.warnings({"teacher": teacher}, each.settings):
      _log.warning("round %s: %s", name, warning)


class HeldOut:
  """A measure of terms' losses on a probe, without dropout or randomness.

  Args:
    model: has the tokenizer, shape and pooling that go with the parameters.
    probe: the sentences.
    terms: those that have a held-out measure.
    teachers: the teachers' joint embeddings of the probe, [n, B, E], by split.
    keep_head: whether the model is served with the heads that are trained along.
  """

  def __init__(
    self,
    model: model_lib.Model,
    probe: Probe,
    terms: Sequence[Weighted],
    teachers: dict[str, np.ndarray],
    *,
    keep_head: bool = False,
  ):
    self._probe, self._terms, self._teachers = probe, terms, teachers
    # Losses see the heads, here as in training.
    served = ("projection",) if keep_head else ()
    heads = {"anchors": ("projection",), "student": (*served, "teacher_map")}
    asked = {name for each in terms for name in each.term.held_out.inputs}
    self._embed = {
      (split, name): embedder(
        probe.reader(model, split),
        getattr(probe, split),
        probe.max_length,
        heads=heads[name],
      )
      for split in teachers
      for name in sorted(asked & heads.keys())
    }

  def metrics(self, params: Any) -> dict[str, float]:
    """Returns "eval/TERM_train" and, with held-out sentences, "eval/TERM_held_out"."""
    batches = {key: self._probe.batches(fn(params)) for key, fn in self._embed.items()}
    result = {}
    for split, teachers in self._teachers.items():
      ours = {name: each for (own, name), each in batches.items() if own == split}
      for each in self._terms:
        values = []
        for i, teacher in enumerate(teachers):
          arrays = {
            name: jnp.asarray(embeddings[i]) for name, embeddings in ours.items()
          }
          arrays["teacher"] = jnp.asarray(teacher)
          arrays |= {f"all_{name}": array for name, array in arrays.items()}
          values.append(each.term.held_out(arrays, each.settings))
        result[f"eval/{each.term.name}_{split}"] = float(np.mean(values))
    return result

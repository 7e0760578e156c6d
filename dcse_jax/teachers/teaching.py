"""What a training step needs from the teachers of its round."""

from collections.abc import Sequence
import dataclasses
import logging
import pathlib
from typing import Any

import jax.numpy as jnp

from dcse_jax.data.batches import Source
from dcse_jax.data.tokens import TokenCache
from dcse_jax.model.model import Model
from dcse_jax.teachers import cache as teacher_cache
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.teachers.embeddings import ExampleRows

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
  """One teacher of a round.

  Attributes:
    name: what people call it.
    weight: its weight in the average, in any unit.
    tokens: the round's sentences in its tokens.
  """

  name: str
  model: Model
  weight: float
  tokens: TokenCache


@dataclasses.dataclass(frozen=True)
class EmbeddedTeacher:
  """One teacher of a round of which there are only embeddings.

  Attributes:
    name: what people call it.
    weight: its weight in the average, in any unit.
    rows: its embeddings of the round's sentences.
  """

  name: str
  weight: float
  rows: ExampleRows


@dataclasses.dataclass(frozen=True)
class Teaching:
  """A round's teachers as its step takes them; by default none.

  Attributes:
    stacks: their static descriptions.
    params: those of each stack.
    sources: what they add to a batch.
  """

  stacks: tuple[stacks_lib.TeacherStack | stacks_lib.CachedTeachers, ...] = ()
  params: tuple[Any, ...] = ()
  sources: tuple[Source, ...] = ()


def online(
  teachers: Sequence[Teacher | EmbeddedTeacher], student: TokenCache, dtype: str
) -> Teaching:
  """Prepares teachers that run at every step, but for those that are embeddings.

  Args:
    teachers: one or more.
    student: the round's sentences in the student's tokens.
    dtype: that of the matrix products, and so of the parameters.
  """
  models = [each for each in teachers if isinstance(each, Teacher)]
  own: dict[str, TokenCache] = {}
  for teacher in models:
    if teacher.tokens.key != student.key:
      own.setdefault(teacher.tokens.key, teacher.tokens)
  place = {key: i for i, key in enumerate(own)}
  stacks, params = stacks_lib.stack_teachers(
    [teacher.model for teacher in models],
    [teacher.weight for teacher in models],
    [place.get(teacher.tokens.key) for teacher in models],
    total=sum(teacher.weight for teacher in teachers),
    dtype=jnp.dtype(dtype),
  )
  sources = (stacks_lib.TeacherTokens(tuple(own.values())),) if own else ()
  read = [
    (each.rows, share)
    for each, share in zip(teachers, _shares(teachers))
    if isinstance(each, EmbeddedTeacher)
  ]
  if read:
    beside = _read(*zip(*read))
    stacks, params = stacks + beside.stacks, params + beside.params
    sources += beside.sources
  return Teaching(stacks, params, sources)


def cached(
  teachers: Sequence[Teacher | EmbeddedTeacher],
  folder: pathlib.Path,
  *,
  dtype: str,
  compute_dtype: str,
) -> Teaching:
  """Prepares teachers whose embeddings are computed now, or were before.

  Args:
    teachers: one or more.
    folder: holds the caches.
    dtype: that of the caches.
    compute_dtype: that of the matrix products.
  """
  models = [each for each in teachers if isinstance(each, Teacher)]
  need = sum(
    teacher_cache.cache_bytes(len(t.tokens), t.model.embedding_size, dtype)
    for t in models
  )
  if models:
    _log.info(
      "teacher cache: %d teachers, %d sentences, %s: %.2f GB in %s",
      len(models),
      len(models[0].tokens),
      dtype,
      need / 1e9,
      folder,
    )

  def rows(teacher):
    if isinstance(teacher, EmbeddedTeacher):
      return teacher.rows
    return teacher_cache.build_teacher_cache(
      folder,
      teacher.model,
      teacher.tokens,
      name=teacher.name,
      dtype=dtype,
      compute_dtype=compute_dtype,
    )

  return _read([rows(teacher) for teacher in teachers], _shares(teachers))


def _shares(teachers: Sequence[Teacher | EmbeddedTeacher]) -> list[float]:
  total = sum(teacher.weight for teacher in teachers)
  return [teacher.weight / total for teacher in teachers]


def _read(files: Sequence[Any], shares: Sequence[float]) -> Teaching:
  """Teachers of which each batch gets the embeddings, [rows, D_t] each."""
  embeddings = teacher_cache.TeacherEmbeddings(files)
  stack = stacks_lib.CachedTeachers(embeddings.widths, tuple(shares))
  return Teaching((stack,), ((),), (embeddings,))

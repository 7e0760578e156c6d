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


def online(teachers: Sequence[Teacher], student: TokenCache, dtype: str) -> Teaching:
  """Prepares teachers that run at every step.

  Args:
    teachers: one or more.
    student: the round's sentences in the student's tokens.
    dtype: that of the matrix products, and so of the parameters.
  """
  own: dict[str, TokenCache] = {}
  for teacher in teachers:
    if teacher.tokens.key != student.key:
      own.setdefault(teacher.tokens.key, teacher.tokens)
  place = {key: i for i, key in enumerate(own)}
  stacks, params = stacks_lib.stack_teachers(
    [teacher.model for teacher in teachers],
    [teacher.weight for teacher in teachers],
    [place.get(teacher.tokens.key) for teacher in teachers],
    dtype=jnp.dtype(dtype),
  )
  sources = (stacks_lib.TeacherTokens(tuple(own.values())),) if own else ()
  return Teaching(stacks, params, sources)


def cached(
  teachers: Sequence[Teacher], folder: pathlib.Path, *, dtype: str, compute_dtype: str
) -> Teaching:
  """Prepares teachers whose embeddings are computed now, or were in an earlier run.

  Args:
    teachers: one or more.
    folder: holds the caches.
    dtype: that of the files.
    compute_dtype: that of the matrix products.
  """
  need = sum(
    teacher_cache.cache_bytes(len(t.tokens), t.model.pooled_size, dtype)
    for t in teachers
  )
  _log.info(
    "teacher cache: %d teachers, %d sentences, %s: %.2f GB in %s",
    len(teachers),
    len(teachers[0].tokens),
    dtype,
    need / 1e9,
    folder,
  )
  files = [
    teacher_cache.build_teacher_cache(
      folder,
      teacher.model,
      teacher.tokens,
      name=teacher.name,
      dtype=dtype,
      compute_dtype=compute_dtype,
    )
    for teacher in teachers
  ]
  embeddings = teacher_cache.TeacherEmbeddings(files)
  total = sum(teacher.weight for teacher in teachers)
  weights = tuple(teacher.weight / total for teacher in teachers)
  stack = stacks_lib.CachedTeachers(embeddings.widths, weights)
  return Teaching((stack,), ((),), (embeddings,))

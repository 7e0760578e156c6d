"""Our ways to distil, as `benchmarks.quality` trains them."""

import functools
import pathlib
import time

import jax
import numpy as np
import optax

from dcse_jax import losses
from dcse_jax.data import batches as batches_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model import packing
from dcse_jax.model.family import with_dropout
from dcse_jax.model.inference import encode_tokens
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers.cache import TeacherEmbeddings
from dcse_jax.teachers.stacks import CachedTeachers
from dcse_jax.train import optimizer
from dcse_jax.train import runs as runs_lib
from dcse_jax.train import step as step_lib

_GROUP_P = {"distillation": {"group_probability": 0.1}}
# The objective, what differs from its defaults, and whether the student's dropout is
# switched off, as in configs/distil.py; W is --similarity_weight.
OURS = {
  "similarity": ("info_nce + distillation", {}, False),
  "similarity, Group-P": ("info_nce + distillation", _GROUP_P, False),
  "embedding": ("embedding_distillation", {}, True),
  "embedding, dropout": ("embedding_distillation", {}, False),
  "embedding + similarity": ("embedding_distillation + W * distillation", {}, True),
  "embedding + similarity, Group-P": (
    "embedding_distillation + W * distillation",
    _GROUP_P,
    True,
  ),
  "embedding + spread": ("embedding_distillation + 0.1 * spread", {}, True),
}


class Distiller:
  """Training by this library: one program for all rates and seeds of a contender."""

  def __init__(self, task):
    self._task, student = task, task.student
    options = task.options
    self._tokens = tokens_lib.build_token_cache(
      pathlib.Path(options.workdir) / "cache",
      [task.sentences],
      tokenize=functools.partial(student.tokenize, max_length=options.max_length),
      tokenizer_state=model_lib.text_state(student),
      max_length=options.max_length,
      pad_token_id=student.config.pad_token_id,
      vocab_size=student.config.vocab_size,
    )
    # Sentences of the same tokens are one, and the teacher's rows follow.
    rows = np.asarray(task.teacher)[self._tokens.source_rows]
    self._teacher = TeacherEmbeddings([rows])
    self._mesh = mesh_lib.make_mesh(jax.devices()[:1])
    self._steps = {}

  def train(self, contender: str, steps: int, runs: list[tuple[float, int]]):
    """Trains a model for each (rate, seed).

    Yields for each what scores it, from names of sets, and how long it took, seconds.
    """
    together = self._task.options.together or len(runs)
    for start in range(0, len(runs), together):
      yield from self._train(contender, steps, runs[start : start + together])

  def _train(self, contender, steps, runs):
    options, student = self._task.options, self._task.student
    loss_fn, step_fn, schedule = self._step(contender, steps, len(runs))
    states, batches = [], []
    for rate, seed in runs:
      params_rng, rng = jax.random.split(jax.random.key(seed))
      params = loss_fn.init_params(student.params, params_rng)
      tx = _optimizer(schedule, rate)
      states.append(jax.device_get(step_lib.init_state(params, tx, rng)))
      batches.append(
        batches_lib.make_batches(
          self._tokens, batch_size=options.batch, seed=seed, others=[self._teacher]
        )
      )
    state = mesh_lib.put_params(runs_lib.stack(states), self._mesh)
    frozen = {"teachers": ((),)}
    over_batch = runs_lib.batch_sharding(self._mesh, len(runs))
    packings = () if jax.default_backend() != "cpu" else self._packings(steps)
    begin = time.perf_counter()
    for _ in range(steps):
      batch = runs_lib.stack([next(each) for each in batches])
      batch, packed = packing.fit(packings, batch)
      state, _ = step_fn(state, mesh_lib.put_batch(batch, over_batch), frozen, packed)
    params = jax.device_get(state.params["encoder"])
    seconds = (time.perf_counter() - begin) / len(runs)
    for i, _ in enumerate(runs):
      own = runs_lib.of_model(params, i, len(runs))
      embed = functools.partial(self._embed, own)
      yield functools.partial(self._task.score, embed), seconds

  def _embed(self, params, sentences: list[str]) -> np.ndarray:
    student = self._task.student
    return encode_tokens(
      jax.device_put(params),
      student.config,
      student.tokenize(sentences, student.max_length),
      pooling=student.pooling,
      batch_size=256,
    )

  def _step(self, contender: str, steps: int, num_models: int):
    key = contender, steps, num_models
    if key not in self._steps:
      options, student = self._task.options, self._task.student
      objective, settings, is_still = OURS[contender]
      objective = objective.replace("W", str(options.similarity_weight))
      stack = CachedTeachers((self._task.teacher.shape[1],), (1.0,))
      loss_fn = Objective(
        losses.parse(objective, settings),
        config=with_dropout(student.config, 0.0) if is_still else student.config,
        pooling=student.pooling,
        stacks=(stack,),
      )
      schedule = optimizer.make_schedule(
        learning_rate=1.0, schedule="linear", warmup_steps=0, num_steps=steps
      )
      step_fn = runs_lib.make_step(
        loss_fn,
        _optimizer(schedule, 1.0),
        schedule,
        mesh=self._mesh,
        num_models=num_models,
        num_steps=steps,
      )
      self._steps = {key: (loss_fn, step_fn, schedule)}
    return self._steps[key]

  def _packings(self, steps: int):
    options = self._task.options
    return packing.make_packings(
      self._tokens.num_tokens(np.arange(len(self._tokens))),
      batch_size=options.batch,
      padded=options.max_length,
      num_steps=steps,
    )


def _optimizer(schedule, rate: float) -> optax.GradientTransformation:
  """AdamW at a rate that is a number of its state, and no part of the program."""
  return optax.chain(
    optimizer.make_optimizer(schedule, weight_decay=0.0, clip_norm=1.0),
    optax.inject_hyperparams(optax.scale)(step_size=rate),
  )

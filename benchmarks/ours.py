"""Our own contenders."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import prepare
from dcse_jax import losses
from dcse_jax.data import batches as batches_lib
from dcse_jax.embed import sentence_encoder
from dcse_jax.hub import folder
from dcse_jax.model import bert
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import layers
from dcse_jax.model import ops
from dcse_jax.model import packing
from dcse_jax.model import stack
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import memory
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers import cache as teacher_cache
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.train import flops
from dcse_jax.train import optimizer
from dcse_jax.train import runs as runs_lib
from dcse_jax.train import step as step_lib


def _threefry_dropout(x, rate, key, rows):
  del rows
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(jax.random.wrap_key_data(key), 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def _full_last_layer(params, config, ids, mask, positions, **kwargs):
  *_, last = encoder_lib.hidden_states(params, config, ids, mask, **kwargs)
  return jnp.take_along_axis(last, positions[..., None], axis=1)


# What makes a step fast, and how to take each away to see what it is worth.
_PATCHES = {
  "fences": (ops, "_keep", lambda x: x),
  "hashed dropout": (bert, "dropout", _threefry_dropout),
  "last layer for [CLS]": (encoder_lib, "states_at", _full_last_layer),
  "straight-line layers": (stack, "_unroll", lambda _: 1),
  "erf": (
    layers,
    "ACTIVATIONS",
    layers.ACTIVATIONS | {"gelu": functools.partial(jax.nn.gelu, approximate=False)},
  ),
}
WITHOUT = (*_PATCHES, "packing", "kept memory")


class Ours:
  """`dcse_jax`'s step as its loop runs it."""

  def __init__(self, path: pathlib.Path, options):
    if options.without in _PATCHES:
      setattr(*_PATCHES[options.without])
    if options.without != "kept memory":
      memory.keep_freed_memory()
    model = folder.load(str(path / "model"))
    self._cache, self._batch_size = prepare.token_cache(path), options.batch
    stacks, teacher_params, self._source = (), (), None
    if options.teachers and options.cached:
      files = prepare.read_teacher_embeddings(path, options.teachers)
      self._source = teacher_cache.TeacherEmbeddings(files)
      share = (1 / options.teachers,) * options.teachers
      stacks = (stacks_lib.CachedTeachers(self._source.widths, share),)
      teacher_params = ((),)
    elif options.teachers:
      teachers = [
        folder.load(str(path / f"teacher-{i}")) for i in range(options.teachers)
      ]
      stacks, teacher_params = stacks_lib.stack_teachers(teachers, [1] * len(teachers))
    names = "info_nce + distillation" if stacks else "info_nce"
    loss = Objective(
      losses.parse(names, {"distillation": {"group_probability": 0.1}}),
      config=model.config,
      pooling=model.pooling,
      stacks=stacks,
    )
    schedule = lambda _: 3e-5
    packings = ()
    if options.without != "packing":
      packings = packing.make_packings(
        self._cache.num_tokens(np.arange(len(self._cache))),
        batch_size=options.batch,
        padded=self._cache.max_length,
        num_steps=5000,  # As in the published script.
      )
    tx = optimizer.make_optimizer(schedule, weight_decay=0.0, clip_norm=1.0)
    mesh = mesh_lib.make_mesh()
    self._trainer = runs_lib.Trainer(
      step_fn=runs_lib.make_step(loss, tx, schedule, mesh=mesh, num_steps=1),
      tx=tx,
      mesh=mesh,
      frozen=mesh_lib.put_params({"teachers": teacher_params}, mesh),
      packings=packings,
      batch_size=options.batch,
      num_steps=1,
      log_every=1,
      eval_every=1,
      max_skipped_steps=0,
      work=flops.Work(1.0, 1.0, "float32"),
    )
    projection = {"dense": dict(np.load(path / "projection.npz"))}
    params = {"encoder": model.params, "projection": projection}
    state = step_lib.init_state(params, self._trainer.tx, jax.random.key(0))
    # The same without dropout, for the comparison of losses.
    rates = [f.name for f in dataclasses.fields(model.config) if "dropout" in f.name]
    still = dataclasses.replace(model.config, **dict.fromkeys(rates, 0.0))
    self._plain_loss = dataclasses.replace(
      loss, config=still, terms=losses.parse(names)
    )
    self._state = mesh_lib.put_params(jax.device_get(state), self._trainer.mesh)
    self._batches = None
    if options.loop:
      self._batches = batches_lib.make_batches(
        self._cache,
        batch_size=options.batch,
        seed=0,
        others=[self._source] if self._source else [],
      )

  def _batch(self, step: int):
    rows = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
    batch = self._cache.gather(rows)
    if self._source:
      batch |= self._source.gather(rows)
    num_tokens = packing.count_tokens(self._cache.num_tokens(rows), 1)
    return batch, packing.choose_packing(self._trainer.packings, num_tokens)

  def loss(self) -> float:
    batch, packed = self._batch(0)
    frozen, key = self._trainer.frozen, jax.random.key(0)

    @jax.jit
    def plain(params, batch, frozen):
      inputs = StepInputs(batch, key, frozen, packed)
      return self._plain_loss(params, inputs)[0]

    loss = plain(self._state.params, batch, frozen)
    return float(loss)

  def compile(self) -> None:
    """Compiles the step for every packing."""
    batch, _ = self._batch(0)
    for packed in self._trainer.packings or (None,):
      self._run(batch, packed)

  def _run(self, batch, packed):
    batch = mesh_lib.put_batch(batch, mesh_lib.over_batch(self._trainer.mesh))
    self._state, values = self._trainer.step_fn(
      self._state, batch, self._trainer.frozen, packed
    )
    return values["loss"]

  def steps(self, first: int, count: int) -> list[float]:
    take = self._next_batch if self._batches else self._batch
    values = [self._run(*take(step)) for step in range(first, first + count)]
    return [float(value) for value in values]

  def _next_batch(self, _):
    """Returns the training loop's next batch, which other threads gather."""
    return packing.fit(self._trainer.packings, next(self._batches))


class EncodeOurs:
  """`SentenceEncoder.encode`."""

  def __init__(self, path: pathlib.Path, options):
    memory.keep_freed_memory()
    self._text = path.joinpath("text.txt").read_text().splitlines()
    self._batch_size = options.batch
    self._model = sentence_encoder.SentenceEncoder(str(path / "model"))

  def loss(self) -> float:
    return float(np.abs(self._model.encode(self._text[:256])).sum())

  def steps(self, first: int, count: int) -> list[float]:
    self._model.encode(self._text, batch_size=self._batch_size)
    return []

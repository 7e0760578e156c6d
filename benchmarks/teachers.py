"""What teachers cost: step time with 0 to 15 of them, online and cached.

`python -m benchmarks.teachers` prints ratios to the step without teachers, all
forms interleaved in one process: medians and the spread of the rounds.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks import prepare
from dcse_jax import losses
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.model import Model
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers import cache as teacher_cache
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.train import flops
from dcse_jax.train import optimizer
from dcse_jax.train import runs as runs_lib
from dcse_jax.train import step as step_lib

_VOCAB, _SENTENCES = 8000, 50_000


def _model(seed: int, layers: int, width: int) -> Model:
  config = prepare.encoder_config(layers, width, _VOCAB)
  params = encoder_lib.init_params(config, jax.random.key(seed))
  return Model(config, jax.device_get(params), None, "mean", False, 32)


def _batch(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
  """Draws sentences of 8 to 32 tokens, 25 on average, as in Wikipedia."""
  lengths = np.clip(rng.normal(26, 8, (size, 1, 1)), 8, 32)
  mask = np.arange(32) < lengths
  ids = np.where(mask, rng.integers(5, _VOCAB, (size, 1, 32)), 0)
  return {
    "input_ids": ids.astype(np.int32),
    "attention_mask": mask,
    "example_id": rng.permutation(_SENTENCES)[:size].astype(np.int32),
  }


def _cache_file(folder: str, i: int, width: int) -> np.ndarray:
  """Writes a file like those of the teacher cache."""
  path = f"{folder}/{i}.bin"
  rng = np.random.default_rng(i)
  if not os.path.exists(path):
    rng.standard_normal((_SENTENCES, width), np.float32).astype(np.float16).tofile(path)
  return np.memmap(path, np.float16, "r", shape=(_SENTENCES, width))


def _stepper(student, loss_fn, teacher_params, size, num_models=1):
  """Makes a function that takes a host batch through one step, and waits for it."""
  schedule = optimizer.make_schedule(
    learning_rate=1e-5, schedule="linear", warmup_steps=0, num_steps=1000
  )
  tx = optimizer.make_optimizer(schedule, weight_decay=0.0, clip_norm=1.0)
  mesh = mesh_lib.make_mesh()
  trainer = runs_lib.Trainer(
    step_fn=runs_lib.make_step(
      loss_fn, tx, schedule, mesh=mesh, num_models=num_models, num_steps=1000
    ),
    tx=tx,
    mesh=mesh,
    frozen=mesh_lib.put_params({"teachers": teacher_params}, mesh),
    num_models=num_models,
    batch_size=size,
    num_steps=1000,
    log_every=1,
    eval_every=1,
    max_skipped_steps=0,
    work=flops.Work(1.0, 1.0, "float32"),
  )
  params = {"encoder": student.params}
  state = step_lib.init_state(params, trainer.tx, jax.random.key(0))
  state = jax.device_get(state)
  if num_models > 1:
    state = jax.tree.map(lambda x: np.stack([x] * num_models), state)
  box = [mesh_lib.put_params(state, trainer.mesh)]
  over_batch = mesh_lib.over_batch(trainer.mesh, axis=int(num_models > 1))

  def step(batch):
    if num_models > 1:
      batch = jax.tree.map(lambda x: np.stack([x] * num_models), batch)
    batch = mesh_lib.put_batch(batch, over_batch)
    box[0], metrics = trainer.step_fn(box[0], batch, trainer.frozen)
    jax.block_until_ready(metrics)

  return step


def _measure(forms, rounds: int, rng, size: int) -> dict[str, list[float]]:
  """Measures seconds of each form in each round, one after the other in every round."""
  times = {name: [] for name in forms}
  for i in range(rounds + 2):
    for name, (step, source) in forms.items():
      batch = _batch(rng, size)
      start = time.perf_counter()
      # Reading what is cached belongs to the step.
      step(batch | source.gather(batch["example_id"]) if source else batch)
      if i >= 2:  # The first compile and warm up.
        times[name].append(time.perf_counter() - start)
  return times


def _print(title: str, times: dict[str, list[float]], base: str, per=None) -> None:
  print(f"\n{title} (ratios to {base!r}: median, quartiles of the rounds)")
  unit = statistics.median(times[base])
  for name, values in times.items():
    ratios = [value / unit / (per or {}).get(name, 1) for value in values]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"  {name:24s} {middle:6.3f}  ({low:.3f} to {high:.3f})")
  print(f"  one {base!r} step: {1e3 * unit:.0f} ms")


def _without_teachers(loss: Objective) -> Objective:
  return dataclasses.replace(loss, terms=losses.parse("info_nce"))


def _measure_teachers(options, student, models, loss, rng) -> None:
  make = functools.partial(_stepper, student, size=options.batch)
  forms = {"0 teachers": (make(_without_teachers(loss), ()), None)}
  with tempfile.TemporaryDirectory() as folder:
    for count in options.teachers:
      stacks, params = stacks_lib.stack_teachers(models[:count], [1] * count)
      online = make(dataclasses.replace(loss, stacks=stacks), params)
      forms[f"{count} online"] = (online, None)
      files = [_cache_file(folder, i, options.width) for i in range(count)]
      source = teacher_cache.TeacherEmbeddings(files)
      cached = stacks_lib.CachedTeachers(source.widths, (1 / count,) * count)
      step = make(dataclasses.replace(loss, stacks=(cached,)), ((),))
      forms[f"{count} cached"] = (step, source)
    times = _measure(forms, options.rounds, rng, options.batch)
  _print("Teachers", times, "0 teachers")


def _measure_forms(options, models, rng) -> None:
  @functools.partial(jax.jit, static_argnames="form")
  def run(params, ids, mask, form):
    def embed(teacher):
      config = models[0].config
      return encoder_lib.encode(teacher, config, ids, mask, pooling="mean")

    return stacks_lib.run_stack(embed, params, form)

  for count in options.teachers:
    _, (params,) = stacks_lib.stack_teachers(models[:count], [1] * count)
    params = jax.device_put(params)

    def step(batch, form, params=params):
      arrays = batch["input_ids"][:, 0], batch["attention_mask"][:, 0]
      jax.block_until_ready(run(params, *arrays, form=form))

    forms = {
      f"{count} {form}": (functools.partial(step, form=form), None)
      for form in ("scan", "vmap", "unrolled")
    }
    times = _measure(forms, options.rounds, rng, options.batch)
    _print(f"Forms of a stack of {count}, forward alone", times, f"{count} scan")


def _measure_parallel_seeds(options, student, loss, rng) -> None:
  loss = _without_teachers(loss)
  counts = {f"{count} models": count for count in (1, 2, 4)}
  forms = {
    name: (_stepper(student, loss, (), options.batch, num_models=count), None)
    for name, count in counts.items()
  }
  times = _measure(forms, options.rounds, rng, options.batch)
  _print("Seeds in parallel, time a model", times, "1 models", counts)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--teachers", type=int, nargs="+", default=[1, 4, 15])
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  print(f"{jax.devices()}, jax {jax.__version__}, {options}")
  student, *models = (
    _model(seed, options.layers, options.width)
    for seed in range(1 + max(options.teachers))
  )
  loss = Objective(
    losses.parse(
      "info_nce + distillation", {"distillation": {"group_probability": 0.1}}
    ),
    config=student.config,
    pooling="mean",
  )
  _measure_teachers(options, student, models, loss, rng)
  _measure_forms(options, models, rng)
  _measure_parallel_seeds(options, student, loss, rng)


if __name__ == "__main__":
  main()

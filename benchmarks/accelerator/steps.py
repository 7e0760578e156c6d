"""Our training step on the device: compiled ahead, timed, priced."""

from collections.abc import Sequence
import concurrent.futures
import contextlib
import dataclasses
import gzip
import pathlib
import statistics
import threading
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import prepare
from dcse_jax import losses
from dcse_jax.ahead import hlo
from dcse_jax.hub import folder
from dcse_jax.model import attention_kernel
from dcse_jax.model import norm_kernel
from dcse_jax.model import packing as packing_lib
from dcse_jax.model import stack
from dcse_jax.model.chunks import Chunks
from dcse_jax.objective.inputs import Size
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.train import flops
from dcse_jax.train import optimizer
from dcse_jax.train import runs as runs_lib
from dcse_jax.train import step as step_lib

# One round of timing lasts at least this long: less is noise.
_ROUND_SECONDS, _ROUNDS = 0.25, 7


@dataclasses.dataclass(frozen=True)
class Spec:
  """One program to measure.

  Attributes:
    batch: sentences.
    teachers: how many of the student's shape run at every step.
    packed: leaves padding out.
    microbatches: parts of a batch that are encoded one after the other.
    models: how many train as one program, each on a batch of its own.
    layers: "" for the backend's own form, else "scan" or "unrolled".
    kernels: "" for the backend's own, else "none", "attention" or "all".
    graphs: whether a GPU launches many kernels at once, as it does by default; a
      profile has their names only if not.
  """

  batch: int
  teachers: int = 0
  packed: bool = False
  microbatches: int = 1
  models: int = 1
  layers: str = ""
  kernels: str = ""
  graphs: bool = True

  @property
  def name(self) -> str:
    parts = [f"B {self.batch}", "packed" if self.packed else "padded"]
    parts += [f"{self.teachers} teachers"] * bool(self.teachers)
    parts += [f"{self.microbatches} microbatches"] * (self.microbatches > 1)
    parts += [f"{self.models} models"] * (self.models > 1)
    parts += [f"layers {self.layers}"] * bool(self.layers)
    parts += [f"kernels {self.kernels}"] * bool(self.kernels)
    parts += ["no graphs"] * (not self.graphs)
    return ", ".join(parts)


@dataclasses.dataclass
class Program:
  """A compiled step: what it takes, what its compiler said, and its median time."""

  spec: Spec
  run: Any
  frozen: Any
  flops: float
  facts: dict[str, Any]
  milliseconds: float | None = None


class Steps:
  """Programs that share one model, its optimizer's state and one text.

  Args:
    path: as `prepare.prepare` fills it.
  """

  def __init__(self, path: pathlib.Path):
    self.student = folder.load(str(path / "model"))
    self._cache = prepare.token_cache(path)
    self.lengths = self._cache.num_tokens(np.arange(len(self._cache)))
    self.mesh = mesh_lib.make_mesh()
    self._schedule = lambda _: 3e-5
    self._tx = optimizer.make_optimizer(self._schedule, weight_decay=0.0, clip_norm=1.0)
    projection = {"dense": dict(np.load(path / "projection.npz"))}
    params = {"encoder": self.student.params, "projection": projection}
    state = step_lib.init_state(params, self._tx, jax.random.key(0))
    # One for each number of models that train together.
    self._states = {1: mesh_lib.put_params(jax.device_get(state), self.mesh)}
    self._next = 0
    # While one is traced the form of its layers is set for all.
    self._tracing = threading.Lock()
    self._taught = {0: ((), {"teachers": ()})}

  def _teachers(self, count: int):
    """Stacks of as many teachers, and their parameters, which programs share."""
    if count not in self._taught:
      self._taught[count] = self._make_teachers(count)
    return self._taught[count]

  def _make_teachers(self, count: int):
    models = [self.student] * count
    stacks, params = stacks_lib.stack_teachers(models, [1] * count, dtype=jnp.bfloat16)
    return stacks, mesh_lib.put_params({"teachers": params}, self.mesh)

  def _state(self, models: int):
    """Returns the state of one model, or of several that begin as that one is."""
    if models not in self._states:
      state = runs_lib.stack([jax.device_get(self._states[1])] * models)
      self._states[models] = mesh_lib.put_params(state, self.mesh)
    return self._states[models]

  def _packing(self, spec: Spec):
    if not spec.packed:
      return None
    packings = packing_lib.make_packings(
      self.lengths,
      batch_size=spec.batch,
      padded=prepare.MAX_LENGTH,
      num_steps=100,  # One that fits all batches.
      groups=self.mesh.size * spec.microbatches,
    )
    if not packings:
      raise ValueError("these sentences have too little padding to pack")
    return packings[0]

  def _lower(self, spec: Spec) -> Program:
    """Traces a step; its `run` is yet to be compiled."""
    stacks, frozen = self._teachers(spec.teachers)
    objective = Objective(
      losses.parse(
        "info_nce + distillation" if stacks else "info_nce",
        {"distillation": {"group_probability": 0.1}},
      ),
      config=self.student.config,
      pooling=self.student.pooling,
      dtype=jnp.bfloat16,
      stacks=stacks,
      microbatches=Chunks(spec.microbatches, self.mesh.size),
    )
    step_fn = runs_lib.make_step(
      objective,
      self._tx,
      self._schedule,
      mesh=self.mesh,
      num_models=spec.models,
      num_steps=1000,
    )
    start = time.perf_counter()
    with contextlib.ExitStack() as patches:
      set_to = lambda *patch: patches.enter_context(mock.patch.object(*patch))
      if spec.layers:
        set_to(
          stack, "_unroll", (lambda _: 1) if spec.layers == "scan" else lambda n: n
        )
      if spec.kernels:
        set_to(attention_kernel, "is_for", lambda *_: spec.kernels != "none")
        set_to(norm_kernel, "is_for", lambda *_: spec.kernels == "all")
      lowered = step_fn.lower(
        self._state(spec.models), self._batch(spec), frozen, self._packing(spec)
      )
    lengths = self.lengths.astype(np.float64)
    size = Size(
      batch=spec.batch,
      columns=1,
      length=lengths.mean(),
      squared_length=np.square(lengths).mean(),
      max_length=prepare.MAX_LENGTH,
    )
    facts = {"lower_seconds": time.perf_counter() - start}
    return Program(spec, lowered, frozen, spec.models * objective.flops(size), facts)

  def compile(self, specs: Sequence[Spec], record) -> list[Program]:
    """Compiles programs side by side; one that fails is left out, and said."""
    programs = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
      waiting = [pool.submit(self._make, spec) for spec in specs]
      for spec, future in zip(specs, waiting):
        facts = lambda future=future: future.result().facts
        if record.measure(f"compile: {spec.name}", facts) is not None:
          programs.append(future.result())
    return programs

  def _make(self, spec: Spec) -> Program:
    with self._tracing:
      program = self._lower(spec)
    start = time.perf_counter()
    options = {} if spec.graphs else {"xla_gpu_enable_command_buffer": ""}
    program.run = program.run.compile(options)
    program.facts["compile_seconds"] = time.perf_counter() - start
    stats = program.run.memory_analysis()
    if stats is not None:
      forecast = stats.argument_size_in_bytes + stats.temp_size_in_bytes
      forecast += stats.output_size_in_bytes - stats.alias_size_in_bytes
      program.facts["forecast_bytes"] = forecast
      program.facts["temporary_bytes"] = stats.temp_size_in_bytes
    return program

  def _batch(self, spec: Spec):
    parts = []
    for _ in range(spec.models):
      rows = (self._next + np.arange(spec.batch)) % len(self._cache)
      self._next = (self._next + spec.batch) % len(self._cache)
      parts.append(self._cache.gather(rows))
    sharding = runs_lib.batch_sharding(self.mesh, spec.models)
    return mesh_lib.put_batch(runs_lib.stack(parts), sharding)

  def run(self, program: Program, count: int) -> float:
    """Runs steps from batches on the host, and returns the seconds they took."""
    models = program.spec.models
    start = time.perf_counter()
    for _ in range(count):
      state, batch = self._state(models), self._batch(program.spec)
      self._states[models], metrics = program.run(state, batch, program.frozen)
    loss = float(metrics["loss"].mean())
    took = time.perf_counter() - start
    if not np.isfinite(loss):
      raise ValueError(f"the loss is {loss}")
    return took

  def warm(self, program: Program) -> int:
    """Runs a step and a few; returns how many make up a round."""
    program.facts["first_run_seconds"] = self.run(program, 1)
    once = self.run(program, 3) / 3
    return max(1, round(_ROUND_SECONDS / once))

  def measure(self, program: Program) -> dict[str, Any]:
    """Times a program alone."""
    before = peak_bytes()
    count = self.warm(program)
    times = [self.run(program, count) / count for _ in range(_ROUNDS)]
    program.milliseconds = 1e3 * statistics.median(times)
    after = peak_bytes()
    if after is not None:
      program.facts["peak_bytes"] = after
      # The peak of a process only ever rises.
      program.facts["peak_is_its_own"] = after > (before or 0)
    return {**program.facts, "steps_a_round": count, **self.rates(program, times)}

  def rates(self, program: Program, times: Sequence[float]) -> dict[str, Any]:
    """What seconds a step mean, with the quartiles of the rounds."""
    sentences = program.spec.models * program.spec.batch
    return rates(times, sentences, self.lengths.mean(), program.flops)


def rates(
  times, sentences: int, mean_tokens: float, model_flops: float
) -> dict[str, Any]:
  """Speeds from seconds a step; the utilisation is that of real tokens."""
  low, middle, high = statistics.quantiles(times, n=4)
  found = {
    "ms": 1e3 * middle,
    "ms_quartiles": [1e3 * low, 1e3 * high],
    "sentences_per_second": sentences / middle,
    "tokens_per_second": sentences * mean_tokens / middle,
    "model_tflops_per_second": model_flops / middle / 1e12,
  }
  known = flops.DEVICES.get(jax.devices()[0].device_kind)
  if known:
    peak = known.bfloat16 * jax.device_count()
    found["model_flop_utilisation"] = model_flops / middle / peak
  return found


def peak_bytes() -> int | None:
  """Returns the most bytes that were ever in use on the device."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def save_program(program: Program, path: pathlib.Path) -> dict[str, Any]:
  """Keeps the compiled text, and reads from it what moves."""
  text = program.run.as_text()
  path.write_bytes(gzip.compress(text.encode()))
  return {"file": path.name, "bytes_moved": hlo.Program(text, 1).memory_bytes()}


def profile(steps: Steps, program: Program, path: pathlib.Path) -> dict[str, Any]:
  """Sums the device's time by kernel over three steps."""
  with jax.profiler.trace(str(path)):
    steps.run(program, 3)
  (file,) = path.glob("**/*.xplane.pb")
  totals: dict[str, list[float]] = {}
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    if not plane.name.startswith("/device:"):
      continue
    for line in plane.lines:
      if not line.name.startswith("Stream"):
        continue
      for event in line.events:
        name = dict(event.stats).get("hlo_op", "") or event.name
        entry = totals.setdefault(str(name), [0, 0.0, event.name])
        entry[0] += 1
        entry[1] += event.duration_ns / 1e6
  if not totals:
    raise ValueError("the trace has no events of a device")
  sources = hlo.Program(program.run.as_text(), 1).sources()
  by_source: dict[str, list[float]] = {}
  for name, (count, ms, kernel) in totals.items():
    entry = by_source.setdefault(sources.get(name, kernel[:80]), [0, 0.0])
    entry[0] += count / 3
    entry[1] += ms / 3
  return {
    "device_ms_a_step": sum(entry[1] for entry in totals.values()) / 3,
    "kernels_a_step": sum(entry[0] for entry in totals.values()) / 3,
    "by_source": [
      (name, *entry)
      for name, entry in sorted(by_source.items(), key=lambda item: -item[1][1])
    ],
    "most": [
      {"op": name, "kernel": kernel[:120], "calls": count / 3, "ms": ms / 3}
      for name, (count, ms, kernel) in sorted(
        totals.items(), key=lambda item: -item[1][1]
      )[:400]
    ],
  }

"""Large batches: memory and time of losses in row blocks and of microbatches.

`python -m benchmarks.batches` prints, for batches from 512 up, the memory that the
compiled value and gradient need besides arguments and results, and the time that they
take, where it is bearable. Times are medians of interleaved rounds.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import prepare
from dcse_jax import losses
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.chunks import Chunks
from dcse_jax.objective import objective as objective_lib
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective

_WIDTH = 768
_LOSSES = {
  "info_nce": ("info_nce", {}),
  "focal_info_nce": ("focal_info_nce", {}),
  "distillation": ("distillation", {}),
  "Group-P": ("distillation", {"distillation": {"group_probability": 0.1}}),
}


def _compile(fn, *shapes):
  """Compiles a program; returns it and the bytes it needs besides its arrays."""
  program = jax.jit(fn).lower(*shapes).compile()
  return program, program.memory_analysis().temp_size_in_bytes


def _seconds(programs, *arguments, rounds: int) -> list[float]:
  """Returns the medians of programs that take turns."""
  times = [[] for _ in programs]
  for i in range(rounds + 1):
    for program, seconds in zip(programs, times):
      begin = time.perf_counter()
      jax.block_until_ready(program(*arguments))
      if i:
        seconds.append(time.perf_counter() - begin)
  return [statistics.median(seconds) for seconds in times]


def _loss(terms, number: int, anchors, positives, teacher, rng):
  offered = {"anchors": anchors, "positives": positives, "teacher": teacher}
  values = objective_lib.compare(terms, offered, rng, row_chunks=Chunks(number))
  return sum(map(jnp.mean, values.values()))


def measure_losses(options) -> None:
  """Measures the loss alone, on given embeddings."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  print(
    f"\nLosses of [B, {_WIDTH}], value and gradient; blocks of {options.block} rows"
  )
  print("  B, loss, plain MB, in blocks MB, seconds plain, in blocks, ratio")
  for batch in options.batches:
    rows = jax.ShapeDtypeStruct((batch, _WIDTH), jnp.float32)
    rng = np.random.default_rng(0)
    views = [rng.standard_normal(rows.shape, np.float32) for _ in range(3)]
    for name, (text, settings) in _LOSSES.items():
      terms = losses.parse(text, settings)
      programs, sizes = [], []
      for number in (1, max(1, batch // options.block)):
        if number == 1 and batch > options.largest_plain:
          sizes.append(None)
          continue
        fn = jax.value_and_grad(functools.partial(_loss, terms, number), (0, 1))
        program, size = _compile(fn, rows, rows, rows, key)
        programs.append(program)
        sizes.append(size)
      shown = ["-" if size is None else f"{size / 1e6:8.0f}" for size in sizes]
      seconds = []
      if batch <= options.largest_timed:
        arguments = (*views, jax.random.key(0))
        seconds = _seconds(programs, *arguments, rounds=options.rounds)
        shown += [f"{s:7.3f}" for s in seconds]
      if len(seconds) == 2:
        shown.append(f"{seconds[1] / seconds[0]:.2f}")
      print(f"  {batch:6d}  {name:15s}", *shown, flush=True)


def measure_microbatches(options) -> None:
  """Measures a whole step, except for the optimizer, by microbatches."""
  config = prepare.encoder_config(*options.shape, 8000)
  encoder = encoder_lib.init_params(config, jax.random.key(0))
  key = jax.random.key(0)
  print(f"\nInfoNCE of a new encoder, {options.shape}, 32 tokens, value and gradient")
  print("  B, microbatches, MB, seconds, ratio to one")
  for batch in options.encoded:
    rng = np.random.default_rng(0)
    data = {
      "input_ids": rng.integers(5, 8000, (batch, 1, 32)).astype(np.int32),
      "attention_mask": np.ones((batch, 1, 32), bool),
    }
    programs, sizes, numbers = [], [], (1, 4, 16)
    for number in numbers:
      loss_fn = Objective(
        losses.parse("info_nce"),
        config=config,
        pooling="cls",
        microbatches=Chunks(number),
      )
      params = loss_fn.init_params(encoder, key)
      call = lambda params, data, key, f=loss_fn: f(params, StepInputs(data, key))
      program, size = _compile(
        jax.value_and_grad(call, has_aux=True), params, data, key
      )
      programs.append(program)
      sizes.append(size)
    seconds = [None] * len(numbers)
    if batch <= options.largest_timed_encoded:
      seconds = _seconds(programs, params, data, key, rounds=options.rounds)
    for number, size, time_ in zip(numbers, sizes, seconds):
      shown = "" if time_ is None else f"{time_:7.2f}  {time_ / seconds[0]:.2f}"
      print(f"  {batch:6d}  {number:3d}  {size / 1e6:8.0f}  {shown}", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  sizes = [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]
  parser.add_argument("--batches", type=int, nargs="*", default=sizes)
  parser.add_argument("--block", type=int, default=512)
  parser.add_argument("--largest_plain", type=int, default=16_384)
  parser.add_argument("--largest_timed", type=int, default=4096)
  parser.add_argument("--shape", type=int, nargs=2, default=(4, 256))
  parser.add_argument("--encoded", type=int, nargs="*", default=[512, 2048, 8192])
  parser.add_argument("--largest_timed_encoded", type=int, default=512)
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  measure_losses(options)
  measure_microbatches(options)


if __name__ == "__main__":
  main()

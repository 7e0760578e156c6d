"""Whether the device computes what a CPU does, and trains; and what encoding takes."""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import prepare
from benchmarks.accelerator import device
from dcse_jax import losses
from dcse_jax.hub import folder
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import stack
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective
from dcse_jax.teachers import stacks as stacks_lib

_TEMPERATURE = 0.05


def compute(path: pathlib.Path, batch: int, dtype: Any) -> dict[str, np.ndarray]:
  """Computes embeddings, loss and gradient of InfoNCE without dropout.

  Args:
    path: as `prepare.prepare` fills it.
    batch: the first sentences of the text.
    dtype: that of the matrix products.

  Returns:
    `embeddings` [B, D], `loss` [], `gradient` [parameters]; float32.
  """
  model = folder.load(str(path / "model"))
  config = dataclasses.replace(model.config, dropout=0.0, attention_dropout=0.0)
  objective = Objective(
    losses.parse("info_nce"), config=config, pooling=model.pooling, dtype=dtype
  )
  ids, mask = (x[:batch] for x in prepare.read_tokens(path))
  projection = {"dense": dict(np.load(path / "projection.npz"))}
  params = {"encoder": model.params, "projection": projection}

  @jax.jit
  def run(params, ids, mask):
    batch = {"input_ids": ids[:, None], "attention_mask": mask[:, None]}
    loss = lambda p: objective(p, StepInputs(batch, jax.random.key(0)))[0]
    value, grads = jax.value_and_grad(loss)(params)
    embeddings = encoder_lib.encode(
      params["encoder"], config, ids, mask, pooling=model.pooling, dtype=dtype
    )
    return embeddings, value, grads

  embeddings, value, grads = jax.device_get(run(params, ids, mask))
  gradient = np.concatenate([x.ravel() for x in jax.tree.leaves(grads)])
  return {"embeddings": embeddings, "loss": value, "gradient": gradient}


class Reference:
  """`compute` in float32 on the CPU, by a process that starts at once.

  Args:
    path: as `prepare.prepare` fills it.
    batch: sentences.
  """

  def __init__(self, path: pathlib.Path, batch: int):
    self._path, self._batch = path, batch
    self._file = path / "reference.npz"
    command = [sys.executable, "-m", "benchmarks.accelerator.checks"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    self._process = subprocess.Popen(
      [*command, str(path), str(batch), str(self._file)],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )

  def compare(self) -> dict[str, Any]:
    """Returns relative errors on the device, in bfloat16 and in float32."""
    run = functools.partial(compute, self._path, self._batch)

    def exact():
      with jax.default_matmul_precision("highest"):
        return run(jnp.float32)

    # A loop over the layers: the same numbers, and compiled in half the time.
    with mock.patch.object(stack, "_unroll", lambda _: 1):
      with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = {
          "bfloat16": pool.submit(run, jnp.bfloat16),
          "float32": pool.submit(exact),
        }
        ours = {dtype: future.result() for dtype, future in waiting.items()}
    _, errors = self._process.communicate()
    if self._process.returncode:
      raise ValueError(f"the reference ended: {errors[-500:]}")
    reference = np.load(self._file)
    return {
      f"{dtype} {name}": relative(found[name], reference[name])
      for dtype, found in ours.items()
      for name in reference.files
    }

  def close(self) -> None:
    self._process.kill()


def relative(found: np.ndarray, reference: np.ndarray) -> float:
  """Returns the norm of the difference over that of the reference."""
  found, reference = (np.asarray(x, np.float64) for x in (found, reference))
  return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def encode(path: pathlib.Path, batch: int, peer) -> dict[str, Any]:
  """Times `SentenceEncoder.encode` of the text, and sentence-transformers'."""
  from benchmarks import ours

  encoder = ours.EncodeOurs(path, argparse.Namespace(batch=batch))
  count = len(path.joinpath("text.txt").read_text().splitlines())
  start = time.perf_counter()
  encoder.steps(0, 1)  # Compiles.
  first = time.perf_counter() - start
  mine = []
  for _ in range(3):
    start = time.perf_counter()
    encoder.steps(0, 1)
    mine.append(time.perf_counter() - start)
  found = {"first_seconds": first, "per_second": count / statistics.median(mine)}
  try:
    peer.ask("steps", 0, 1)
    theirs = [peer.ask("steps", 0, 1)["seconds"] for _ in range(3)]
    found["sentence_transformers_per_second"] = count / statistics.median(theirs)
  except SystemExit as error:
    found["sentence_transformers"] = str(error)[:500]
  return found


def stack_forms(path: pathlib.Path, batch: int, teachers: int) -> dict[str, float]:
  """Times the forward pass of a stack of teachers in each of its forms, in ms."""
  model = folder.load(str(path / "model"))
  _, (params,) = stacks_lib.stack_teachers(
    [model] * teachers, [1] * teachers, dtype=jnp.bfloat16
  )
  params = jax.device_put(params)
  ids, mask = (jax.device_put(x[:batch]) for x in prepare.read_tokens(path))

  @functools.partial(jax.jit, static_argnames="form")
  def run(params, ids, mask, form):
    embed = lambda teacher: encoder_lib.encode(
      teacher, model.config, ids, mask, pooling=model.pooling, dtype=jnp.bfloat16
    )
    return stacks_lib.run_stack(embed, params, form)

  forms = ("scan", "vmap", "unrolled")
  return {
    form: 1e3 * device.seconds(functools.partial(run, form=form), params, ids, mask)
    for form in forms
  }


def real_run(workdir: pathlib.Path, flags: list[str], limit: float) -> dict[str, Any]:
  """Trains by `dcse_jax.main`, as anybody would, for as long as there is time.

  Args:
    workdir: the run's.
    flags: the command's.
    limit: seconds after which it is told to stop, as by the end of a lease.

  Returns:
    The curves of its rounds, its last scores, and how it ended.
  """
  command = [sys.executable, "-m", "dcse_jax.main", f"--workdir={workdir}", *flags]
  environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  start = time.perf_counter()
  with subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    try:
      output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM)
      try:
        output, _ = process.communicate(timeout=15)
      except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
  return {
    "seconds": time.perf_counter() - start,
    "status": process.returncode,
    "curves": curves(workdir),
    "last_words": output[-2500:],
  }


def curves(workdir: pathlib.Path) -> dict[str, list[dict[str, float]]]:
  """Reads the metrics of every model of a run, by ROUND/SEED."""
  found = {}
  for file in sorted(workdir.glob("*/*/metrics.jsonl")):
    rows = []
    for line in file.read_text().splitlines():
      with contextlib.suppress(ValueError):  # A line that was cut.
        rows.append(json.loads(line))
    found[f"{file.parent.parent.name}/{file.parent.name}"] = rows
  return found


if __name__ == "__main__":
  _path, _batch, _file = sys.argv[1:]
  # Written beside and renamed: whoever waits reads all or nothing.
  _found = compute(pathlib.Path(_path), int(_batch), jnp.float32)
  np.savez(_file + ".new.npz", **_found)
  os.replace(_file + ".new.npz", _file)

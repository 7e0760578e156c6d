"""Measures whatever GPU or TPU it finds, the most important first, within a time.

`python -m benchmarks.accelerator --minutes 7 --output DIR` writes results.json after
every measurement, and report.md and figure.png at the end; what has no time left is
left out and said. `--shape tiny` rehearses all of it on a CPU. A machine without a
registry takes the wheels that `python -m benchmarks.accelerator.wheels` fetches:

    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade \\
        --target /tmp/site .whl/*.whl
    PYTHONPATH=/tmp/site:. python3 -m benchmarks.accelerator --output DIR
"""

import time

_START = time.monotonic()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import functools  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402

# PyTorch shares the card: what JAX takes for itself at its start is set before.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")

import jax  # noqa: E402

from benchmarks import prepare  # noqa: E402
from benchmarks.accelerator import checks  # noqa: E402
from benchmarks.accelerator import device  # noqa: E402
from benchmarks.accelerator import kernels  # noqa: E402
from benchmarks.accelerator import peers as peers_lib  # noqa: E402
from benchmarks.accelerator import report  # noqa: E402
from benchmarks.accelerator import steps as steps_lib  # noqa: E402
from benchmarks.accelerator.record import Record  # noqa: E402
from benchmarks.accelerator.steps import Spec  # noqa: E402

# What is written up when time ends, whatever is being compiled then.
_WRITING_SECONDS = 8


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large all of it is.

  Attributes:
    small, large, huge: batches; the last by `microbatches`.
    sentences: how many the text has.
    matmul, copy: sides of a matrix, megabytes.
    run_steps: those of the real run, of the large batch.
  """

  small: int
  large: int
  huge: int
  microbatches: int
  sentences: int
  matmul: int
  copy: int
  run_steps: int


_SCALES = {
  "tiny": Scale(8, 32, 128, 4, 1_000, 512, 16, 60),
  "base": Scale(64, 512, 4096, 8, 16_384, 8192, 4096, 300),
}


def _run_flags(path: pathlib.Path, scale: Scale) -> list[str]:
  """Returns the flags of a run on the same model and text, without a dev set."""
  fields = {
    "model": path / "model",
    "text": path / "text.txt",
    "batch_size": scale.large,
    "num_train_steps": scale.run_steps,
    "log_every": scale.run_steps // 15,
    "eval_every": scale.run_steps,
    "dtype": "bfloat16",
  }
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return ["--config=configs/simcse.py:bert-base", *flags]


def _measure_steps(
  record, steps, specs, needs: float = 0.0
) -> dict[Spec, steps_lib.Program]:
  """Compiles programs side by side, then times each alone, if `needs` seconds are left."""
  specs = [spec for spec in specs if record.has_time(f"step: {spec.name}", needs)]
  programs = {program.spec: program for program in steps.compile(specs, record)}
  for spec, program in programs.items():
    record.measure(f"step: {spec.name}", lambda p=program: steps.measure(p))
  return programs


def _measure_peers(record, steps, peers, programs) -> None:
  for program in programs:
    for label in peers.labels:
      record.measure(
        f"peer: {label} against {program.spec.name}",
        lambda p=program, label=label: peers.measure(steps, p, label),
      )


def _fastest(programs, is_packed) -> steps_lib.Program | None:
  fits = lambda p: p.milliseconds and p.spec.graphs and p.spec.packed == is_packed
  found = list(filter(fits, programs))
  return min(found, key=lambda p: p.milliseconds, default=None)


def _first_step(record: Record, facts) -> dict[str, float]:
  """Seconds from the start of the process to the end of a step, its parts."""
  parts = {name: value for name, value in facts.items() if name.endswith("_seconds")}
  parts["import_seconds"] = record.facts["import_seconds"]
  return {"start_to_end": sum(parts.values()), **parts}


def _profile(record, steps, program, path: pathlib.Path) -> None:
  name = program.spec.name
  record.measure(f"profile: {name}", lambda: steps_lib.profile(steps, program, path))
  file = record.folder / ("packed.hlo.gz" if program.spec.packed else "padded.hlo.gz")
  record.measure(f"program: {name}", lambda: steps_lib.save_program(program, file))


def _forms(scale: Scale) -> list[Spec]:
  """The programs of the large batch whose times decide how the rest is run."""
  large, packed = Spec(scale.large), Spec(scale.large, packed=True)
  if jax.default_backend() != "gpu":
    return [large, packed]
  fused = [dataclasses.replace(spec, kernels="all") for spec in (large, packed)]
  return [large, *fused, *(dataclasses.replace(s, graphs=False) for s in fused)]


def _measure(options, record: Record, path: pathlib.Path, stack) -> None:
  scale = _SCALES[options.shape]
  record.measure("matrix product", lambda: device.matmul(scale.matmul))
  record.measure("copy", lambda: device.copy(scale.copy))

  def make_up():
    sentences, kind = prepare.read_sentences(options.text, scale.sentences)
    prepare.prepare(path, shape=options.shape, sentences=sentences, num_teachers=0)
    return f"{len(sentences)} {kind}"

  if record.measure("preparation", make_up) is None:
    return
  reference = checks.Reference(path, scale.small)
  stack.callback(reference.close)
  # PyTorch has no TPU: there none of its sizes is measured.
  name = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
  sizes = () if jax.default_backend() == "tpu" else (scale.large, scale.small)
  peers = peers_lib.Peers(path, name, sizes)
  stack.callback(peers.close)
  steps = steps_lib.Steps(path)
  record.facts["mean_tokens"] = float(steps.lengths.mean())

  large = Spec(scale.large)
  programs = _measure_steps(record, steps, _forms(scale))
  if large in programs:
    record.measure("first step", lambda: _first_step(record, programs[large].facts))
  for program in programs.values():
    if not program.spec.graphs or jax.default_backend() != "gpu":
      _profile(record, steps, program, path / f"profile-{program.spec.packed}")
  # What was fastest goes on.
  best, best_packed = (_fastest(programs.values(), is_packed) for is_packed in (0, 1))
  make = functools.partial(Spec, kernels=best.spec.kernels if best else "")
  record.measure("peers", lambda: peers.settle(min(45, record.left() / 6)))
  _measure_peers(record, steps, peers, filter(None, (best, best_packed)))
  if jax.default_backend() == "gpu":
    record.measure("kernels", lambda: kernels.measure(2 * scale.large), needs=20)
  small = [make(scale.small), make(scale.small, packed=True)]
  found = _measure_steps(record, steps, small, needs=60)
  _measure_peers(record, steps, peers, list(found.values())[::-1])
  huge = make(scale.huge, packed=True, microbatches=scale.microbatches)
  taught = [make(scale.large, teachers=count) for count in (4, 1)]
  taught.append(make(scale.small, teachers=4))
  _measure_steps(record, steps, [huge, *taught], needs=90)
  record.measure(
    "encode", lambda: checks.encode(path, scale.large, peers.encode), needs=30
  )
  record.measure("parity", reference.compare, needs=60)
  record.measure(
    "forms of a stack", lambda: checks.stack_forms(path, scale.large, 4), needs=30
  )
  seeds = [make(scale.small, models=count) for count in (2, 4)]
  scanned = dataclasses.replace(large, layers="scan")
  _measure_steps(record, steps, [*seeds, scanned], needs=90)
  record.measure(
    "real run",
    lambda: checks.real_run(path / "run", _run_flags(path, scale), record.left() - 35),
    needs=60,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--minutes", type=float, default=7)
  parser.add_argument("--output", required=True, type=pathlib.Path)
  parser.add_argument("--shape", default="base", choices=_SCALES)
  parser.add_argument("--text", help="a text file, in place of made-up sentences")
  options = parser.parse_args()
  record = Record(options.output, options.minutes)
  # Imports are a part of the time for which the machine is lent.
  record.spend(time.monotonic() - _START)
  record.facts |= device.facts()
  record.facts["import_seconds"] = time.monotonic() - _START
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    ended = threading.Lock()

    def finish():
      with ended:
        record.close()
        stack.close()  # Ends what others are at.
        record.write()
        report.write(record)

    def stop():
      finish()
      print("time is up: what there was until now is written", flush=True)
      os._exit(0)

    timer = threading.Timer(record.left() - _WRITING_SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
      _measure(options, record, pathlib.Path(folder), stack)
    finally:
      timer.cancel()
      finish()


if __name__ == "__main__":
  main()

"""Compiles a round's step for TPUs or GPUs that are not there, and estimates its cost.

`python -m dcse_jax.compile --config distillcse --topology v5e:2x4`
"""

from typing import Any

from absl import flags
import jax
from ml_collections import config_flags

from dcse_jax import config as config_lib
from dcse_jax.ahead import abstract_step
from dcse_jax.ahead import devices as devices_lib
from dcse_jax.ahead import hlo
from dcse_jax.recipe import validate
from dcse_jax.runtime import backend
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import flops

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  help_string="A config as for training; its text, sets and weights are not read.",
  lock_config=True,
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "Chips to compile for, such as v5e:2x4, v5p:2x2x2 or h100:8."
)
_ROUND = flags.DEFINE_string(
  "round", None, "A round of the recipe; by default its last."
)
_BATCH_PER_CHIP = flags.DEFINE_integer(
  "batch_per_chip",
  None,
  "Sentences for each chip, in place of the round's batch_size for all.",
  lower_bound=1,
)
_JSON = flags.DEFINE_string("json", None, "JSON file to write, with the same.")

_PACKED = flags.DEFINE_float(
  "packed",
  None,
  "Mean tokens of a sentence; batches are then packed and not padded.",
  lower_bound=1.0,
)
_GIB, _SHOWN_MOVERS = 2**30, 10


def compile_step(
  config: config_lib.ConfigDict,
  topology: str,
  *,
  name: str | None = None,
  batch_per_chip: int | None = None,
  packed: float | None = None,
) -> dict[str, Any]:
  """Compiles the step of a round for a topology.

  Args:
    config: the recipe's.
    topology: a generation and the shape of its chips, such as "v5e:2x4"; or a GPU and
      how many, such as "h100:8".
    name: the round's; None takes the recipe's last.
    batch_per_chip: sentences for each chip, in place of the round's batch_size.
    packed: mean tokens of a sentence, of batches that are packed; None leaves the
      padding in.

  Returns:
    JSON: what was compiled, and for each chip and step `memory` in bytes, model
    `flops`, `collectives` with their count, bytes and how many of them run beside other
    work, `moved` bytes in as many `kernels`, the largest `movers` of them, and
    `estimate`, seconds by published rates. One half of a TPU7x chip counts as a chip,
    as it does for JAX.

  Raises:
    UserError: what compiles for it is not installed, there is no such topology, the
      config does not fit it, or the step does not fit the chips' memory.
  """
  devices = devices_lib.find(topology)
  config = config.copy_and_resolve_references()
  name = name or (config.recipe[-1] if config.recipe else None)
  if name not in config.recipe:
    raise UserError(f"--round {name}: the recipe has {', '.join(config.recipe)}")
  if batch_per_chip:
    with config.unlocked():
      config.rounds[name].batch_size = batch_per_chip * len(devices)
  validate.check(config)
  mesh = mesh_lib.make_mesh(devices, **config.mesh)
  kind = "gpu" if devices_lib.is_gpu(topology) else "tpu"
  with backend.traced_for(kind), devices_lib.traced(devices[0]):
    step = abstract_step.make_abstract_step(config, name, mesh, mean_length=packed)
    lowered = step.step_fn.lower(*step.arguments, step.packing)
  try:
    compiled = lowered.compile(devices_lib.options(topology))
  except jax.errors.JaxRuntimeError as error:
    raise _does_not_fit(error, topology) from error
  round_config = config_lib.of_round(config, name)
  return {
    "round": name,
    "topology": topology,
    "device_kind": devices[0].device_kind,
    "chips": len(devices),
    "batch_size": round_config.batch_size,
    "microbatches": round_config.microbatches,
    "dtype": round_config.dtype,
    "packed": packed,
    "models": step.num_models,
    "memory": _memory(compiled.memory_analysis(), devices[0].device_kind),
    **_cost(compiled, step, round_config, devices),
  }


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0]


def _does_not_fit(error: Exception, topology: str) -> Exception:
  """Makes an error of one line if the compiler's many lines are about memory."""
  kind, _, what = _first_line(error).partition(": ")
  if kind != "RESOURCE_EXHAUSTED":
    return error
  return UserError(
    f"the step does not fit a chip of {topology} ({what.rstrip('.')}): raise "
    "config.microbatches or config.mesh.fsdp, cache the teachers "
    '(config.teacher_cache="float16"), or take smaller batches'
  )


def _memory(stats: Any, device_kind: str) -> dict[str, float]:
  # Donated arrays take no new memory.
  outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
  parts = {
    "arguments": stats.argument_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "outputs": outputs,
    "program": stats.generated_code_size_in_bytes,
  }
  return {
    **parts,
    "total": sum(parts.values()),
    "chip": flops.DEVICES[device_kind].memory,
  }


def _cost(compiled, step, config, devices) -> dict[str, Any]:
  chip = flops.DEVICES[devices[0].device_kind]
  program = hlo.Program(compiled.as_text(), len(devices))
  collectives, movers = program.collectives(), program.movers()
  model_flops = step.flops / len(devices)
  seconds = {
    "compute": model_flops / chip.peak(config.dtype),
    "memory": program.memory_bytes() / chip.memory_rate,
    "links": sum(kind.sent for kind in collectives.values()) / chip.link_rate,
  }
  step_seconds = max(seconds.values())
  return {
    "flops": model_flops,
    "collectives": {
      kind: {"count": total.count, "bytes": total.bytes, "beside": total.beside}
      for kind, total in collectives.items()
    },
    "moved": program.memory_bytes(),
    "kernels": program.kernels(),
    "movers": {
      name: {"count": mover.count, "bytes": mover.bytes}
      for name, mover in list(movers.items())[:_SHOWN_MOVERS]
    },
    "estimate": {
      **seconds,
      "step": step_seconds,
      "model_flop_utilisation": seconds["compute"] / step_seconds,
    },
  }


def _format(report: dict[str, Any]) -> str:
  memory, estimate = report["memory"], report["estimate"]
  gib = lambda field: f"{memory[field] / _GIB:.2f}"
  ms = lambda field: f"{1e3 * estimate[field]:.2f}"
  lines = [
    f"round {report['round']} on {report['topology']}: {report['chips']} x "
    f"{report['device_kind']}, batches of {report['batch_size']}, {report['dtype']}"
    + (f", packed at {report['packed']:g} tokens" if report["packed"] else ""),
    f"memory of a chip: arguments {gib('arguments')} GiB, temporaries "
    f"{gib('temporaries')}, in all {gib('total')} of {gib('chip')}",
    f"model FLOPs of a chip and step: {report['flops'] / 1e12:.3f} T",
    "collectives of a step:" + ("" if report["collectives"] else " none"),
    *(
      f"  {kind:<18} {total['count']:>5} x, {total['bytes'] / 1e6:>10.2f} MB in all, "
      f"{total['beside']} x beside other work"
      for kind, total in report["collectives"].items()
    ),
    f"bytes moved: {report['moved'] / 1e9:.2f} GB in {report['kernels']} kernels; most by",
    *(
      f"  {mover['bytes'] / 1e9:>7.2f} GB {mover['count']:>5} x  {name}"
      for name, mover in report["movers"].items()
    ),
    "estimate by published rates, nothing was run: a step takes "
    f"{ms('step')} ms or more (compute {ms('compute')}, memory {ms('memory')}, links "
    f"{ms('links')}), model-FLOP utilisation "
    f"{100 * estimate['model_flop_utilisation']:.0f} % or less",
  ]
  return "\n".join(lines)


def main() -> None:
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise UserError("give --config FILE.py and --topology, such as v5e:2x4")
  # What is computed on this machine needs no TPU.
  jax.config.update("jax_platforms", "cpu")
  report = compile_step(
    _CONFIG.value,
    _TOPOLOGY.value,
    name=_ROUND.value,
    batch_per_chip=_BATCH_PER_CHIP.value,
    packed=_PACKED.value,
  )
  print(_format(report))
  if _JSON.value:
    files.write_json(files.user_path(_JSON.value), report)


if __name__ == "__main__":
  command_line.run(main)

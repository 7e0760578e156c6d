"""One of several processes: `python -m tests.host WHAT COORDINATOR NUM ID ARG ...`."""

import os
import pathlib
import pickle
import sys

import jax

from dcse_jax.runtime import command_line
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import processes


def steps(folder):
  """Takes five steps on a mesh of both axes; gives their metrics and the parameters."""
  # It makes models, so it is imported only now.
  from tests.train import test_train

  mesh = mesh_lib.make_mesh(fsdp=2)
  _, state, metrics = test_train.run_steps(num_steps=5, mesh=mesh)
  params = jax.device_get(mesh_lib.gathered(state.params, mesh))
  result = {"process": processes.gather(jax.process_index()), "metrics": metrics}
  path = pathlib.Path(folder) / f"{jax.process_index()}.pickle"
  path.write_bytes(pickle.dumps({**result, "params": params}))


def train(*arguments):
  """Runs `dcse_jax.main`."""
  # It defines flags, so it is imported only now.
  from dcse_jax import main

  sys.argv[1:] = arguments
  command_line.run(main.main, goes_on=True)


def main():
  what, coordinator, num_processes, process_id, *arguments = sys.argv[1:]
  if what == "bereaved":  # A busy machine may be silent for this long.
    processes._HEARTBEAT_SECONDS = 10
  if what == "slurm":
    host, _, port = coordinator.partition(":")
    os.environ.update(
      SLURM_JOB_ID="1",
      SLURM_STEP_NODELIST=host,
      SLURM_NTASKS=num_processes,
      SLURM_PROCID=process_id,
      SLURM_LOCALID=process_id,
      JAX_COORDINATOR_PORT=port,
    )
    train(*arguments)
  elif what == "steps":
    processes.initialize(coordinator, int(num_processes), int(process_id))
    steps(*arguments)
  else:
    given = ("coordinator", coordinator), ("num_processes", num_processes)
    flags = (*given, ("process_id", process_id))
    train(*arguments, *(f"--{name}={value}" for name, value in flags))


if __name__ == "__main__":
  main()

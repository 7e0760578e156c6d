"""Trains the models of a config's recipe.

`python -m dcse_jax.main --config quickstart --workdir runs/quickstart`
`python -m dcse_jax.main --config distillcse:bert-base --config.text=my.txt --workdir DIR`
`python -m dcse_jax.main --config my_config.py --config.seed=1 --workdir DIR`

A config is a Python file, or the name of one that comes with the package; some have
variants, after a colon. dcse_jax/config.py explains every field.
"""

from absl import flags
from ml_collections import config_flags

from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import command_line
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  help_string="A config's file, or the name of one that comes with the package, with a "
  "variant after a colon if it has any; --config.FIELD=VALUE overrides a field.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder for all that the run writes, shared by all processes, or gs://BUCKET/PATH; the "
  "same command goes on with an interrupted run.",
)
_ACCEPT_CHANGES = flags.DEFINE_bool(
  "accept_changes",
  False,
  "Goes on in a workdir that another config, text or model began; without it, such "
  "a command is refused.",
)


_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of process 0, as the others reach it. With the next two for processes that "
  "train together and that JAX does not find by itself, as it does on Cloud TPUs, under "
  "Slurm and on GKE.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is, from 0.")


def main() -> None:
  if _CONFIG.value is None or not _WORKDIR.value:
    raise UserError(
      "give --config FILE.py, or a packaged name such as quickstart, and --workdir DIR"
    )
  processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  recipe_lib.run(_CONFIG.value, _WORKDIR.value, accept_changes=_ACCEPT_CHANGES.value)


if __name__ == "__main__":
  command_line.run(main, goes_on=True)

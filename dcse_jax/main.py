"""Trains: `python -m dcse_jax.main --config configs/quickstart.py --workdir DIR`."""

from absl import flags
from ml_collections import config_flags

from dcse_jax import cli
from dcse_jax import rounds
from dcse_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  help_string="A file of configs/, with a variant after a colon if it has "
  "any; --config.FIELD=VALUE overrides a field.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder for all that the run writes; the same command "
  "goes on with an interrupted run.",
)
_ACCEPT_CHANGES = flags.DEFINE_bool(
  "accept_changes",
  False,
  "Goes on in a workdir that another config, text or model began; without it, such "
  "a command is refused.",
)


def main() -> None:
  if _CONFIG.value is None or not _WORKDIR.value:
    raise UserError("give --config FILE.py and --workdir DIR")
  cli.check_config_file()
  rounds.run(_CONFIG.value, _WORKDIR.value, accept_changes=_ACCEPT_CHANGES.value)


if __name__ == "__main__":
  cli.run(main, goes_on=True)

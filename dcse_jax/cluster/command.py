"""The flags that commands share which write folders of parts."""

import pathlib

from absl import flags

from dcse_jax.cluster import driver
from dcse_jax.cluster import engine as engine_lib
from dcse_jax.cluster import parts as parts_lib
from dcse_jax.cluster import tables
from dcse_jax.cluster.embedders import Embedder
from dcse_jax.cluster.spread import SpreadEncoder
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS


def define_engine_flags() -> None:
  """Defines the flags of engines: not on import, since commands share names."""
  flags.DEFINE_enum(
    "engine", "local", engine_lib.ENGINES, "This process, or actors of Ray."
  )
  flags.DEFINE_string(
    "address",
    None,
    "Ray's cluster: HOST:PORT, or auto for the one that this machine is in. Unless told, "
    "RAY_ADDRESS, or else Ray starts on this machine.",
  )
  flags.DEFINE_integer(
    "workers", None, "Actors of Ray; one for each device by default.", 1
  )


def define_flags() -> None:
  """Defines the flags of engines and of folders."""
  define_engine_flags()
  flags.DEFINE_string(
    "id_column",
    None,
    'A table\'s column of ids; "id" where there is one, or else rows are numbered.',
  )
  flags.DEFINE_list("columns", [], "Columns that are kept beside embeddings.")
  flags.DEFINE_bool(
    "skip_bad_rows",
    False,
    "Whether to leave out, and count, rows that are null or not UTF-8.",
  )
  flags.DEFINE_integer(
    "part_rows", parts_lib.PART_ROWS, "Rows of a part of the output.", 1
  )


def is_folder(output: str) -> bool:
  """Returns whether the flags ask for a folder of parts.

  Args:
    output: NAME.npy is a file, and a name without a suffix a folder.

  Raises:
    UserError: a flag is given that files have no use for, or folders have none.
  """
  if not output.endswith(".npy"):
    # Whatever has another suffix is refused as a file is.
    return output.endswith("/") or "." not in output.rpartition("/")[2]
  given = [
    name
    for name in ("address", "workers", "id_column", "columns", "skip_bad_rows")
    if _FLAGS[name].value
  ]
  if _FLAGS.engine != "local":
    given.insert(0, "engine")
  if given:
    raise UserError(
      f"--{given[0]} is for folders of parts, and {output} is a file: name a folder, "
      "without a suffix"
    )
  return False


def embed(
  embedder: Embedder,
  source: str,
  output: str,
  *,
  text_column: str | None = None,
  precision: str = "float32",
  calibration: str | None = None,
) -> None:
  """Writes a folder as the flags say: see `driver.embed_parts`."""
  _check_engine()
  columns = tables.Columns(text_column, _FLAGS.id_column, tuple(_FLAGS.columns))
  driver.embed_parts(
    embedder,
    source,
    output,
    columns=columns,
    precision=precision,
    calibration=calibration,
    skip_bad_rows=_FLAGS.skip_bad_rows,
    part_rows=_FLAGS.part_rows,
    engine=_FLAGS.engine,
    address=_FLAGS.address,
    workers=_FLAGS.workers,
  )


def make_encoder(model: str, work: pathlib.Path) -> SentenceEncoder | SpreadEncoder:
  """Returns what embeds streams as the flags of engines say.

  Args:
    model: a model folder or hub id.
    work: a folder for what waits for a cluster, and for what it made.
  """
  _check_engine()
  if _FLAGS.engine == "local":
    return SentenceEncoder(model)
  return SpreadEncoder(
    model,
    work,
    engine=_FLAGS.engine,
    address=_FLAGS.address,
    workers=_FLAGS.workers,
  )


def _check_engine() -> None:
  if _FLAGS.engine == "local" and (_FLAGS.address or _FLAGS.workers):
    raise UserError("--address and --workers are for --engine=ray: add it")

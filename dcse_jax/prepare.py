"""Cleans text, leaves out what repeats, and writes what training reads.

`python -m dcse_jax.prepare --input 'raw/*.txt.gz' --output clean`

clean/ has Parquet parts with the columns id and text, and a manifest.json with what each rule
left out; it is a text as it is: `--config.text=clean`. An --output that ends in .txt is a
sentence a line. Sentences that repeat an earlier one, or nearly do (MinHash), are left out.
Interrupted, the same command goes on, to the same bytes. Text need not fit into memory.
--engine ray cleans on all cores of a cluster.
"""

import contextlib

from absl import flags

from dcse_jax.cluster import chunks
from dcse_jax.cluster import engine as engine_lib
from dcse_jax.data import cleaning
from dcse_jax.data import preparing
from dcse_jax.data import text as text_lib
from dcse_jax.runtime import command_line
from dcse_jax.runtime import pool
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS
_DEFAULTS = preparing.Settings()


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_multi_string(
    "input", [], "A file, a folder of files or a pattern; may be given several times."
  )
  flags.DEFINE_string("output", None, "The folder to write, or a .txt file.")
  flags.DEFINE_string("column", _DEFAULTS.column, "The column of text of tables.")
  flags.DEFINE_string(
    "id_column", "", "That of ids; by default the file's name and the row make them."
  )
  flags.DEFINE_string(
    "split", "", "Makes sentences of documents, as config.split does."
  )
  flags.DEFINE_integer(
    "min_characters", _DEFAULTS.rules.min_characters, "The least of a sentence.", 1
  )
  flags.DEFINE_integer(
    "max_characters",
    _DEFAULTS.rules.max_characters,
    "The most of a sentence.",
    1,
    text_lib.MAX_CHARACTERS,
  )
  flags.DEFINE_float(
    "near_duplicates",
    _DEFAULTS.near_duplicates,
    "The similarity to an earlier sentence from which one is left out, in [0.5, 1], of "
    "runs of five characters; 0 leaves out equal ones alone.",
  )
  flags.DEFINE_integer("workers", None, "Processes; by default one for each core.", 1)
  flags.DEFINE_enum(
    "engine",
    "local",
    engine_lib.ENGINES,
    "Processes of this machine, or actors of Ray.",
  )
  flags.DEFINE_string("address", None, "Ray's cluster, as encode has it.")


def main() -> None:
  if not _FLAGS.input or not _FLAGS.output:
    raise UserError("give --input FILE_or_folder_or_pattern and --output DIR")
  settings = preparing.Settings(
    column=_FLAGS.column,
    id_column=_FLAGS.id_column,
    split=_FLAGS.split,
    rules=cleaning.Rules(_FLAGS.min_characters, _FLAGS.max_characters),
    near_duplicates=_FLAGS.near_duplicates,
  )
  by_ray = _FLAGS.engine == "ray"
  if _FLAGS.address and not by_ray:
    raise UserError("--address is for --engine=ray: add it")
  with contextlib.ExitStack() as stack:
    workers = None if by_ray else _FLAGS.workers
    here = run = stack.enter_context(pool.mapping(workers or pool.num_cores()))
    if by_ray:
      run = stack.enter_context(chunks.mapping(_FLAGS.address, _FLAGS.workers))
    manifest = preparing.prepare(_FLAGS.input, _FLAGS.output, settings, run, here)
  print(preparing.describe(manifest))
  print(f"{manifest['rows']:,} sentences: written to {_FLAGS.output}")


if __name__ == "__main__":
  command_line.run(main, define_flags, goes_on=True)

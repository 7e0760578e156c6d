"""Embeds a text by any model that sentence-transformers runs, for use as a teacher.

`python -m dcse_jax.embed_with --model ID_OR_DIR --text my.txt --output teacher.npy`

Row i is of row i of the text file, blank ones included, so that the file may be named
as a teacher: `--config.rounds.student.teachers="('teacher.npy',)"`. Beside it
`teacher.npy.json` says what made it. Neither file need fit into memory. Interrupted, the
same command goes on, to the same bytes.

An --output without a suffix is a folder of Parquet parts, as `encode` writes them, and
--engine ray divides the text among the devices of a cluster: docs/scale.md.
"""

from collections.abc import Iterator
import itertools

from absl import flags
import numpy as np

from dcse_jax.cluster import command as cluster
from dcse_jax.cluster import embedders
from dcse_jax.data import text as text_lib
from dcse_jax.embed import bridge
from dcse_jax.embed import devices as devices_lib
from dcse_jax.embed import row_file
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_FLAGS = flags.FLAGS

_BACKENDS = ("sentence-transformers",)


def embed_file(
  model: str,
  source: str,
  output: str,
  *,
  column: str | None = None,
  prompt: str | None = None,
  prompt_text: str | None = None,
  truncate_dim: int | None = None,
  batch_size: int = 64,
  dtype: str = "float16",
  devices: int | None = None,
) -> None:
  """Writes a model's embeddings of every row of a text, [rows, D] in a .npy file.

  Args:
    model: a folder or hub id, or ID@REVISION.
    source: a text as `config.text` takes it.
    output: the file to write, .npy; OUTPUT.json is written beside it.
    column: the table's column to embed; None for a plain text.
    prompt: the name of one of the model's prompts; None for its default, if any.
    prompt_text: stands before every sentence, in place of a prompt by name.
    truncate_dim: leading numbers that are kept; None for the model's own.
    batch_size: sentences that are embedded at once.
    dtype: the file's, "float16" or "float32".
    devices: how many of this host's devices embed; None takes all accelerators.

  Raises:
    UserError: bad input, or something that cannot be read or written.
  """
  path = row_file.output_path(output)
  columns = (column,) if column else ()
  number, digest = text_lib.measure(source, columns)
  teacher = bridge.Teacher(
    model,
    prompt=prompt,
    prompt_text=prompt_text,
    truncate_dim=truncate_dim,
    batch_size=batch_size,
    devices=devices,
  )
  made_by = {
    **teacher.origin,
    "dtype": dtype,
    "text": {"source": source, "rows": number, "digest": digest},
  }

  def parts(done: int) -> Iterator[np.ndarray]:
    rows = itertools.islice(text_lib.first_cells(source, columns), done, None)
    return (part.astype(dtype) for part in teacher.stream(rows))

  origin = {**made_by, "text": digest}
  made_by["sha256"] = row_file.write_rows(
    path, parts, shape=(number, teacher.width), origin=origin, dtype=dtype
  )
  files.write_json(path.with_name(f"{path.name}.json"), made_by)


def define_flags() -> None:
  """Defines the command's flags: not on import, since commands share names."""
  flags.DEFINE_string("model", None, "Model folder or hub id, perhaps ID@REVISION.")
  flags.DEFINE_string("text", None, "Text as config.text takes it.")
  flags.DEFINE_string(
    "output", None, "The .npy file to write, [rows, D], or a folder of parts."
  )
  flags.DEFINE_string("column", None, "The column of a table that is embedded.")
  flags.DEFINE_string("prompt", None, "The name of one of the model's prompts.")
  flags.DEFINE_string("prompt_text", None, "Words before every sentence.")
  flags.DEFINE_integer("truncate_dim", None, "Leading numbers that are kept.", 1)
  flags.DEFINE_integer("batch_size", 64, "Sentences that are embedded at once.", 1)
  devices_lib.define_flag()
  flags.DEFINE_enum(
    "dtype", "float16", ("float16", "float32", "int8"), "int8 is for folders of parts."
  )
  flags.DEFINE_enum("backend", _BACKENDS[0], _BACKENDS, "What runs the model.")
  cluster.define_flags()


def main() -> None:
  if not _FLAGS.model or not _FLAGS.text or not _FLAGS.output:
    raise UserError("give --model DIR_or_id, --text FILE and --output FILE.npy")
  settings = {
    "prompt": _FLAGS.prompt,
    "prompt_text": _FLAGS.prompt_text,
    "truncate_dim": _FLAGS.truncate_dim,
    "batch_size": _FLAGS.batch_size,
    "devices": _FLAGS.devices,
  }
  if cluster.is_folder(_FLAGS.output):
    teacher = embedders.Teacher(_FLAGS.model, **settings)
    cluster.embed(
      teacher,
      _FLAGS.text,
      _FLAGS.output,
      text_column=_FLAGS.column,
      precision=_FLAGS.dtype,
    )
    print(f"written to {_FLAGS.output}")
    return
  if _FLAGS.dtype == "int8":
    raise UserError("--dtype=int8 is for folders of parts: use float16 for a file")
  embed_file(
    _FLAGS.model,
    _FLAGS.text,
    _FLAGS.output,
    column=_FLAGS.column,
    dtype=_FLAGS.dtype,
    **settings,
  )
  print(f"written to {_FLAGS.output}, and what made it to {_FLAGS.output}.json")


if __name__ == "__main__":
  command_line.run(main, define_flags, goes_on=True)

"""Training from Python: the run that the command line would do, and what it leaves."""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import threading
from typing import Any

import numpy as np

from dcse_jax import config as config_lib
from dcse_jax import report
from dcse_jax.data import candidates
from dcse_jax.data import decoding
from dcse_jax.data.sentences import checked
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import arguments
from dcse_jax.runtime import files
from dcse_jax.runtime import memory
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.errors import UserTypeError
from dcse_jax.runtime.workdir import Workdir

Text = str | os.PathLike[str] | Iterable[str] | Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trained:
  """A finished run.

  Attributes:
    workdir: its folder.
    results: a row for each model in order of training: name, round, seed, dev and test;
      the last two are mean scores in percent, None without such sets.
  """

  workdir: pathlib.Path
  results: list[dict[str, Any]]

  @property
  def export(self) -> pathlib.Path:
    """The folder of the last round's best model, for any of sbert's tools."""
    return self.workdir / "export"

  def encoder(self, **options: Any) -> SentenceEncoder:
    """Loads the exported model; the options are `SentenceEncoder`'s."""
    return SentenceEncoder(str(self.export), **options)

  def report(self) -> pathlib.Path:
    """Writes WORKDIR/report, as the command does, and returns the page's path."""
    return report.write_report(self.workdir)


def train(
  *,
  workdir: str | os.PathLike[str],
  text: Text | None = None,
  model: str | os.PathLike[str] | None = None,
  teachers: Sequence[str | os.PathLike[str]] = (),
  config: str | config_lib.ConfigDict = "",
  accept_changes: bool = False,
  **fields: Any,
) -> Trained:
  """Trains the models of a recipe, or what is left of them.

  The run is the one that `python -m dcse_jax.main` does with the same config and fields,
  and either goes on with what the other began in a workdir.

  Args:
    workdir: the folder for all that the run writes, or gs://BUCKET/PATH.
    text: a path as in `config.text`, or the text itself: sentences, or mappings from
      the names of `columns` to sentences, and of `score_columns` to numbers, such as a
      `datasets.Dataset`. It is written into the workdir. None leaves the config's.
    model: the encoder to start from, a folder or hub id; None leaves the config's.
    teachers: folders or hub ids that the last round learns from, or earlier rounds.
    config: a file, the name of a packaged config, either with :VARIANT, or a config
      itself. Without any `simcse`, or with teachers the student of `distillcse`.
    accept_changes: see `recipe.run`.
    **fields: fields of the config, such as `num_train_steps=500`; a mapping sets
      fields of a field: `info_nce={"temperature": 0.1}`.

  Returns:
    The run, once all of its models are trained.

  Raises:
    UserError: there is bad input; most is found before anything is compiled.
    UserTypeError: a sentence is no string; the error names its position.
    KeyboardInterrupt: Ctrl-C; what was trained is saved, and the same call goes on.
  """
  # As commands do, and before there are other threads, which would have memory apart.
  memory.keep_freed_memory()
  place = Workdir(os.fspath(workdir))
  made = _make_config(config, bool(teachers))
  if model is not None:
    fields["model"] = os.fspath(model)
  for name, value in fields.items():
    _set(made, name, value)
  if teachers:
    _set(made, f"rounds.{made.recipe[-1]}.teachers", tuple(map(os.fspath, teachers)))
  if text is not None:
    if isinstance(text, str | os.PathLike):
      made.text = os.fspath(text)
    else:
      path, made.columns = _write_text(
        text, made.columns, place.folder / "data", made.score_columns
      )
      made.text = str(path)
  # Handlers of signals belong to the main thread.
  is_main = threading.current_thread() is threading.main_thread()
  try:
    with signals.handled() if is_main else contextlib.nullcontext():
      results = recipe_lib.run(made, os.fspath(workdir), accept_changes=accept_changes)
  except signals.Interrupted:
    raise KeyboardInterrupt("saved: the same call goes on") from None
  return Trained(place.folder, results)


def _make_config(
  config: str | config_lib.ConfigDict, has_teachers: bool
) -> config_lib.ConfigDict:
  """Returns a locked config of the caller's own: see `train`."""
  if isinstance(config, str):
    made = load_config(config or ("distillcse" if has_teachers else "simcse"))
    if has_teachers and not config:
      made.recipe, made.rounds.student.seeds = ("student",), (42,)
  else:
    made = config.copy_and_resolve_references()
  return made.lock()


def load_config(name: str) -> config_lib.ConfigDict:
  """Runs a config's file, as `--config` does.

  Args:
    name: a file's path, or the name of a packaged config, perhaps with :VARIANT.

  Raises:
    UserError: there is no such file or variant.
  """
  path, colon, variant = arguments.find_config(name).partition(":")
  spec = importlib.util.spec_from_file_location("config_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*([variant] if colon else []))


def _set(config: config_lib.ConfigDict, name: str, value: Any) -> None:
  """Sets a field by its dotted name, or raises a UserError that names it."""
  if isinstance(value, Mapping):
    for key, each in value.items():
      _set(config, f"{name}.{key}", each)
    return
  *path, last = name.split(".")
  target = config
  try:
    for part in path:
      target = target[part]
    # A round may set any field for itself.
    is_round = len(path) == 2 and path[0] == "rounds"
    with target.unlocked() if is_round else contextlib.nullcontext():
      _ = is_round or target[last]  # An unknown field is named better when it is read.
      target[last] = tuple(value) if isinstance(value, list) else value
  except (AttributeError, KeyError) as error:
    raise arguments.unknown_field(error) from error
  except TypeError as error:
    raise UserTypeError(f"config.{name}={value!r:.80}: {error}") from error


def _write_text(
  text: Iterable[Any],
  columns: Sequence[str],
  folder: pathlib.Path,
  score_columns: Sequence[str] = (),
) -> tuple[pathlib.Path, tuple[str, ...]]:
  """Writes rows into a file that is named by its content.

  Args:
    text: sentences, or mappings with the columns.
    columns: which to write; empty takes all that the first row has, less those of
      scores.
    folder: gets the file.
    score_columns: those of scores, which are written too.

  Returns:
    Its path, and the columns to read from it; none for sentences.
  """
  if isinstance(text, Mapping) or not isinstance(text, Iterable):
    raise UserTypeError(
      f"text is a {type(text).__name__}: give a path, a list of sentences, or rows that "
      "are dicts; of a dataset, one split"
    )
  rows = iter(text)
  first = next(rows, None)
  if first is None:
    raise UserError("text is empty, or begins with None: give at least one sentence")
  rows = itertools.chain([first], rows)
  is_table = isinstance(first, Mapping)
  if is_table and not columns:
    columns = [name for name in first if name not in score_columns]
  columns, score_columns = tuple(columns), tuple(score_columns)
  if not is_table:
    columns = ()
  lines = _plain_lines(rows)
  if is_table:
    types = dict.fromkeys(columns, candidates.NEGATIVE)
    types |= dict.fromkeys(columns[:2], (str,))
    lines = _table_lines(rows, types | dict.fromkeys(score_columns, candidates.SCORE))
  files.make_folder(folder)
  written = folder / f".text-{os.getpid()}"
  digest = hashlib.blake2b(digest_size=8)
  try:
    with written.open("wb") as file:
      for line in lines:
        digest.update(line)
        file.write(line)
    suffix = ".jsonl" if is_table else ".txt"
    path = folder / f"text-{digest.hexdigest()}{suffix}"
    written.replace(path)
  except OSError as error:
    raise files.cannot_write(written, error) from error
  finally:
    written.unlink(missing_ok=True)
  return path, columns


def _plain_lines(rows: Iterable[Any]) -> Iterable[bytes]:
  for i, sentence in enumerate(checked(rows)):
    # The reader would take a line feed for the end; it makes blanks of all others.
    yield _encoded(sentence.replace("\n", " ") + "\n", f"sentence {i}")


def _table_lines(
  rows: Iterable[Any], types: Mapping[str, tuple[type, ...]]
) -> Iterable[bytes]:
  for i, row in enumerate(rows):
    if not isinstance(row, Mapping):
      raise UserTypeError(
        f"row {i} is a {type(row).__name__} ({row!r:.80}), not a dict"
      )
    cells = {}
    for column, known in types.items():
      cell = row.get(column)
      if isinstance(cell, np.ndarray | np.generic):
        cell = cell.tolist()
      if not isinstance(cell, known):
        raise UserTypeError(
          f"row {i}, column {column!r} is a {type(cell).__name__} ({cell!r:.80}), not a "
          f"{decoding.kind_of(known)}: leave the row out, or name other columns"
        )
      cells[column] = cell
    yield _encoded(json.dumps(cells, ensure_ascii=False) + "\n", f"row {i}")


def _encoded(line: str, where: str) -> bytes:
  try:
    return line.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"{where} holds half a surrogate pair, which is no text: leave it out"
    ) from error

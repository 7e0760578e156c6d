"""Where metrics go: each value once, however often a run ends and goes on."""

import contextlib
import json
import logging
import sqlite3
import struct
import sys
import types

import pytest

from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.recipe import validate
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import loggers
from dcse_jax.train.loggers import Place
from dcse_jax.train.metrics import Metrics
from tests import models
from tests.recipes import from_files


def write(folder, first, last, names):
  """Takes the steps after `first` up to `last` as a run does, and is then killed."""
  place = Place(folder, first, {"batch_size": 8})
  metrics = Metrics(place, name="base-1", num_steps=8, loggers=names)
  for step in range(first + 1, last + 1):
    metrics.write(step, {"train/loss": 1 / step})
    if step % 2 == 0:
      metrics.write(step, {"eval/x": float(step)})
  metrics.lines.close()
  return metrics


def run_thrice(folder, *names):
  """Takes 8 steps with checkpoints at 2 and 4; is killed at 5, at 3 and in 7."""
  write(folder, 0, 5, names)
  write(folder, 2, 3, names)
  write(folder, 2, 7, names)
  write(folder, 4, 8, names).close()


EXPECTED = {("train/loss", step): 1 / step for step in range(1, 9)}
EXPECTED |= {("eval/x", step): float(step) for step in (2, 4, 6, 8)}


class Library(types.ModuleType):
  """A made-up wandb and trackio, which keeps what it is told."""

  def __init__(self, name):
    super().__init__(name)
    self.started, self.given, self.ended, self.fails = [], [], 0, False
    self.Settings = dict

  def init(self, **about):
    self.started.append(about)
    return self

  def define_metric(self, *args, **kwargs):
    pass

  def log(self, values, step=None):
    if self.fails:
      raise ConnectionError("no\nserver")
    values = dict(values)
    step = values.pop("step") if step is None else step
    self.given += [((key, step), value) for key, value in values.items()]

  def finish(self):
    self.ended += 1


@pytest.fixture(params=["wandb", "trackio"])
def library(request, monkeypatch):
  made = Library(request.param)
  monkeypatch.setitem(sys.modules, request.param, made)
  return made


def test_a_tracker_gets_every_value_once_in_one_run(library, tmp_path):
  run_thrice(tmp_path / "runs/base/1", library.__name__)
  assert dict(library.given) == EXPECTED and len(library.given) == len(EXPECTED)
  first, *others = library.started
  assert len(others) == 3 and all(other == first for other in others)
  assert first["resume"] == "allow" and first["config"] == {"batch_size": 8}
  assert first["name"].startswith("runs/base/1") and first["group"] == "runs"
  assert library.ended == 1
  # Our own record is cut and written anew, as ever.
  rows = models.read_jsonl(tmp_path / "runs/base/1/metrics.jsonl")
  assert {(k, r["step"]): v for r in rows for k, v in r.items() if k != "step"} == (
    EXPECTED
  )


def test_two_models_are_two_runs(library, tmp_path):
  for seed in "12":
    write(tmp_path / "runs/base" / seed, 0, 1, (library.__name__,))
  one, other = library.started
  assert one["name"] != other["name"]
  assert library.__name__ == "trackio" or one["id"] != other["id"]


def test_a_tracker_that_fails_is_left_alone_and_the_run_goes_on(
  library, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(logging.getLogger("dcse_jax"), "propagate", True)
  library.fails = True
  write(tmp_path / "runs/base/1", 0, 4, (library.__name__,)).close()
  (message,) = caplog.messages
  assert message.startswith(f"{library.__name__} gets no more of this run (no server)")
  rows = models.read_jsonl(tmp_path / "runs/base/1/metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4]


def test_a_missing_library_is_said_before_anything_is_read(files, monkeypatch):
  monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
  config = from_files(files, logger=("wandb",), text="nowhere.txt")
  with pytest.raises(
    UserError, match=r"wandb is not .* pip install 'dcse_jax\[wandb\]'"
  ):
    recipe_lib.run(config, str(files / "run"))


@pytest.mark.parametrize("logger", [("wandb", "wandb"), ("mlflow",)])
def test_an_unknown_logger_is_refused_with_those_there_are(logger, files):
  config = from_files(files, logger=logger)
  with pytest.raises(
    UserError, match="logger=.*tensorboard, wandb, trackio, each once"
  ):
    validate.check(config)


@pytest.mark.slow  # wandb alone takes ten seconds to start.
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_library_itself_has_every_value_once_after_two_interruptions(
  name, tmp_path, monkeypatch
):
  # The libraries read these as they are imported.
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  pytest.importorskip(name, reason=f"{name} is not installed")
  folder = tmp_path / "runs/base/1"
  # A signal lets a run end; it then goes on from its last checkpoint.
  for first, last in ((0, 5), (2, 7), (4, 8)):
    write(folder, first, last, (name,)).close()
  read = {"wandb": read_wandb, "trackio": read_trackio}[name]
  found, runs = read(tmp_path)
  assert len(runs) == 1 and dict(found) == EXPECTED and len(found) == len(EXPECTED)


def read_trackio(place):
  with contextlib.closing(sqlite3.connect(place / "trackio/dcse_jax.db")) as base:
    rows = base.execute("select run_name, step, metrics from metrics").fetchall()
  found = [
    ((key, step), value)
    for _, step, values in rows
    for key, value in json.loads(values).items()
  ]
  return found, {name for name, *_ in rows}


def read_wandb(place):
  """Reads what an offline run leaves: a log in LevelDB's form of its messages."""
  import wandb
  from wandb.proto import wandb_internal_pb2

  wandb.teardown()  # As at a process's end; until then files may lack their last lines.
  found, runs = [], set()
  for path in sorted(place.glob("runs/base/1/wandb/offline-run-*/*.wandb")):
    for content in level_db_records(path.read_bytes()):
      record = wandb_internal_pb2.Record.FromString(content)
      if record.WhichOneof("record_type") == "run":
        runs.add(record.run.run_id)
      if record.WhichOneof("record_type") == "history":
        named = {
          each.key or each.nested_key[0]: json.loads(each.value_json)
          for each in record.history.item
        }
        step = named.pop("step")
        values = {k: v for k, v in named.items() if not k.startswith("_")}
        found += [((key, step), value) for key, value in values.items()]
  return found, runs


def level_db_records(content, header=7, block=32768):
  at, parts = header, b""
  while at + header <= len(content):
    if block - at % block < header:
      at += block - at % block
      continue
    length, kind = struct.unpack("<HB", content[at + 4 : at + header])
    parts += content[at + header : at + header + length]
    at += header + length
    if kind in (1, 4):  # Whole, or the last part.
      yield parts
      parts = b""

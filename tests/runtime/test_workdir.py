"""Workdirs in a bucket: what is fetched and sent, and runs that end as elsewhere."""

import contextlib
import importlib
import pathlib
import re
import shutil
import signal
import sys
import time

from fsspec.implementations.local import LocalFileSystem
import pytest

from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.workdir import Workdir
from tests import bucket_server
from tests import models
from tests import processes
from tests import recipes

# The package has a mapping of the same name.
_REGISTRY = importlib.import_module("fsspec.registry")._registry
TEXTS = {
  "config.json": "{}",
  "base/origin.json": "{}",
  "base/1/metrics.jsonl": '{"step": 1}\n',
  "base/1/model/weights": "w",
  "base/1/result.json": "{}",
}


def write(folder, texts):
  for name, text in texts.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def read(folder):
  """Reads the files of a folder that are not hidden, by name."""
  return {
    str(path.relative_to(folder)): path.read_text()
    for path in folder.rglob("*")
    if path.is_file() and not path.name.startswith(".")
  }


class Folder(LocalFileSystem):
  """A stand-in for the file system of buckets: a folder with one for each."""

  protocol = ("gs", "gcs")
  root: pathlib.Path
  sent: list[list[str]]

  def __init__(self, **kwargs):
    super().__init__(auto_mkdir=True, **kwargs)

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(str(path).replace("gs://", f"{cls.root}/", 1))

  def pipe_file(self, path, value, **kwargs):
    # Writing to a bucket does not make it.
    (self.root / "bucket").stat()
    super().pipe_file(path, value, **kwargs)

  def put(self, lpath, rpath, **kwargs):
    self.sent.append(sorted(pathlib.Path(path).name for path in rpath))
    super().put(lpath, rpath, **kwargs)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """The folder that stands for gs://bucket; the local ones are beside it."""
  monkeypatch.setitem(_REGISTRY, "gs", Folder)
  monkeypatch.setattr(Folder, "root", tmp_path / "buckets", raising=False)
  monkeypatch.setattr(Folder, "sent", [], raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "local"))
  (tmp_path / "buckets" / "bucket").mkdir(parents=True)
  return tmp_path / "buckets" / "bucket"


def test_another_host_finds_what_one_wrote(bucket, tmp_path, monkeypatch):
  workdir = Workdir("gs://bucket/runs/a")
  with workdir.synced():
    write(workdir.folder, TEXTS)
  assert read(bucket / "runs/a") == TEXTS
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  workdir = Workdir("gs://bucket/runs/a/")
  assert workdir.folder.is_relative_to(tmp_path / "other")
  with workdir.synced():
    assert read(workdir.folder) == TEXTS


def test_of_a_folder_that_differs_from_the_bucket_the_bucket_is_right(bucket):
  workdir = Workdir("gs://bucket/run")
  write(bucket / "run", TEXTS)
  write(workdir.folder, {"base/1/metrics.jsonl": "newer", "base/2/result.json": "{}"})
  with workdir.synced():
    assert read(workdir.folder) == TEXTS
  assert read(bucket / "run") == TEXTS


def test_caches_checkpoints_and_hidden_files_are_neither_sent_nor_fetched(bucket):
  left_out = {
    "cache/compiled/a": "",
    "base/1/checkpoints/2/state": "",
    "base/1/.model.tmp/weights": "",
    ".lock": "",
  }
  workdir = Workdir("gs://bucket/run")
  write(bucket / "run", {"base/1/checkpoints/4/state": "", "cache/b": ""})
  write(workdir.folder, left_out)
  with workdir.synced():
    # A cache outlives its run; a checkpoint is only in the bucket.
    assert [name for name in left_out if (workdir.folder / name).exists()] == [
      "cache/compiled/a",
      ".lock",
    ]
    write(workdir.folder, left_out)
    write(workdir.folder, TEXTS)
  assert read(bucket / "run") == TEXTS | {
    "base/1/checkpoints/4/state": "",
    "cache/b": "",
  }


def test_only_what_is_new_is_sent_and_what_says_finished_goes_last(bucket):
  workdir = Workdir("gs://bucket/run")
  write(bucket / "run", TEXTS)
  with workdir.synced():
    workdir.push()
    assert Folder.sent == []
    new = {
      "base/2/result.json": "{}",
      "base/2/model/weights": "w",
      "results.json": "{}",
    }
    write(workdir.folder, new | {"base/1/metrics.jsonl": "more"})
    workdir.push()
    assert Folder.sent == [
      ["metrics.jsonl", "weights"],
      ["result.json", "results.json"],
    ]
    (workdir.folder / "base/1/metrics.jsonl").unlink()
    workdir.push()
    assert not (bucket / "run/base/1/metrics.jsonl").exists()
  assert len(Folder.sent) == 2


def test_what_a_failed_run_wrote_is_sent(bucket):
  workdir = Workdir("gs://bucket/run")
  with pytest.raises(UserError, match="not a number"), workdir.synced():
    write(workdir.folder, {"base/1/skipped.jsonl": "{}"})
    raise UserError("the loss is not a number")
  assert read(bucket / "run") == {"base/1/skipped.jsonl": "{}"}


def test_checkpoints_are_in_the_bucket_and_of_a_folder_in_it(bucket, tmp_path):
  workdir = Workdir("gs://bucket/run")
  folder = workdir.checkpoints(workdir.folder / "base" / "1")
  assert str(folder) == "gs://bucket/run/base/1/checkpoints"
  plain = Workdir(str(tmp_path / "run"))
  assert plain.folder == tmp_path / "run"
  folder = plain.checkpoints(plain.folder / "base" / "1")
  assert str(folder) == str(tmp_path / "run/base/1/checkpoints")


@pytest.mark.parametrize(
  "name, message",
  [
    ("s3://bucket/run", "s3://bucket/run is neither a folder nor gs://BUCKET/PATH"),
    ("gs:///run", "is not gs://BUCKET/PATH"),
    ("gs://bucket//run", "is not gs://BUCKET/PATH"),
    ("gs://bucket/../run", "is not gs://BUCKET/PATH"),
  ],
)
def test_another_address_is_refused(name, message):
  with pytest.raises(UserError, match=message):
    Workdir(name)


def test_a_bucket_that_is_not_there_or_may_not_be_written_is_one_line(bucket):
  bucket.rmdir()
  message = (
    r"cannot use --workdir=gs://bucket/run \(.*No such file.*\): make the bucket"
  )
  with pytest.raises(UserError, match=message):
    with Workdir("gs://bucket/run").synced():
      raise AssertionError("it began")


def test_without_gcsfs_a_bucket_is_refused_saying_how_to_get_it(monkeypatch):
  monkeypatch.delitem(_REGISTRY, "gs", raising=False)
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(UserError, match=r"pip install 'dcse_jax\[gcs\]'"):
    Workdir("gs://bucket/run")


# --- With the service's interface ---------------------------------------------------

MODELS = ("base/1", "base/2", "distilled/3")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
  """A bucket, and the environment of a command that finds it as gs://bucket."""
  pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'dcse_jax[gcs]'")
  # One for all tests: another would cost the imports once more.
  local = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("local"))}
  with bucket_server.serve() as (bucket, environment):
    yield bucket, environment | local


def quickstart(workdir):
  """Two rounds of the quickstart, tiny."""
  short = dict(num_train_steps=20, eval_every=10, log_every=5)
  fields = dict(
    recipe="('base','distilled')",
    synthetic_sentences=400,
    synthetic_pairs=60,
    batch_size=8,
    max_length=16,
    parallel_seeds=True,
    **{f"encoder.{key}": value for key, value in recipes.TINY.items()},
    **short,
    **{f"rounds.distilled.{key}": value for key, value in short.items()},
    **{"rounds.base.num_train_steps": 20},
    **{f"rounds.{name}.start": "" for name in ("base", "distilled")},
  )
  return [
    *("dcse_jax.main", "--config=configs/quickstart.py", f"--workdir={workdir}"),
    *(f"--config.{key}={value}" for key, value in fields.items()),
  ]


@pytest.mark.slow
def test_a_run_on_machines_that_vanish_ends_as_one_that_was_never_interrupted(
  service, tmp_path
):
  bucket, env = service
  with contextlib.ExitStack() as stack:
    whole = stack.enter_context(processes.start(*quickstart(tmp_path / "whole")))
    # The first is told to stop, the second dies: neither leaves anything here.
    for i, (saved, number, status) in enumerate(
      (
        ("base/1/checkpoints/10/commit_success.txt", signal.SIGTERM, 75),
        ("distilled/3/checkpoints/10/commit_success.txt", signal.SIGKILL, -9),
      )
    ):
      process = stack.enter_context(
        processes.start(*quickstart("gs://bucket/run"), env=env)
      )
      while f"run/{saved}" not in bucket and not process.has_ended():
        time.sleep(0.002)
      process.send_signal(number)
      assert process.wait() == status, process.stderr()
      assert ("going on from step" in process.stdout()) == (i > 0)
      shutil.rmtree(env["XDG_CACHE_HOME"])
    last = processes.run(*quickstart("gs://bucket/run"), env=env)
    assert last.returncode == 0, last.stderr
    assert "going on from step 10" in last.stdout
    assert whole.wait() == 0, whole.stderr()
  ours, theirs = bucket.files("run"), tmp_path / "whole"
  names = [f"{model}/model/model.safetensors" for model in MODELS]
  for name in (*names, "export/model.safetensors", "results.json"):
    assert ours[name] == (theirs / name).read_bytes(), name
  for model in MODELS:
    name = f"{model}/metrics.jsonl"
    (tmp_path / "metrics.jsonl").write_bytes(ours[name])
    assert models.read_metrics(tmp_path / "metrics.jsonl") == models.read_metrics(
      theirs / name
    )
  # Nothing is in the bucket that a folder would not hold.
  assert {name.split("/")[0] for name in ours} == {
    path.name for path in theirs.iterdir()
  } - {"cache", ".lock"} | {".dcse_jax"}


@pytest.mark.parametrize(
  "may_write, workdir, message",
  [
    (False, "gs://bucket/other", r"storage\.objects\.create"),
    (True, "gs://none/other", "make the bucket"),
  ],
)
def test_a_bucket_that_refuses_ends_a_run_with_one_line(
  service, monkeypatch, may_write, workdir, message
):
  bucket, env = service
  monkeypatch.setattr(bucket, "may_write", may_write)
  ended = processes.run(*quickstart(workdir), env=env)
  assert ended.returncode == 2
  (line,) = ended.stderr.splitlines()
  assert line.startswith(f"error: cannot use --workdir={workdir} (")
  assert re.search(message, line)

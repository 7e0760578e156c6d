"""Ray's engine: order, the death of an actor, of a machine and of the driver."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.cluster import driver
from dcse_jax.cluster import embedders
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes
from tests.cluster import held
from tests.cluster import test_folder

pytest.importorskip("ray", reason="the engine needs Ray: pip install '.[ray]'")
pytestmark = [
  pytest.mark.slow,
  # Ray forks where JAX has begun here, as it has in no command's driver.
  pytest.mark.filterwarnings("ignore:os.fork"),
]

SENTENCES = [*models.SENTENCES[:70], held.STOP, *models.SENTENCES[70:150]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return models.write_tiny_folder(tmp_path_factory.mktemp("m") / "m", num_layers=1)


@pytest.fixture
def text(tmp_path):
  (tmp_path / "text.txt").write_text("".join(f"{s}\n" for s in SENTENCES))
  return str(tmp_path / "text.txt")


def check(model, folder):
  """Every row is there once, in order, with its embedding."""
  manifest = json.loads((folder / "manifest.json").read_text())
  assert manifest["rows"] == len(SENTENCES)
  tables = [pq.read_table(folder / part["name"]) for part in manifest["parts"]]
  ids = [i for table in tables for i in table.column("id").to_pylist()]
  assert ids == list(range(len(SENTENCES)))
  found = test_folder.rows_of(folder, manifest)
  expected = SentenceEncoder(model).encode(SENTENCES)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  there = {path.name for path in folder.iterdir()}
  assert there == {"manifest.json", *(part["name"] for part in manifest["parts"])}


def check_same(model, text, tmp_path):
  """The folder has the bytes of one that this process writes undisturbed."""
  check(model, tmp_path / "parts")
  test_folder.embed(model, text, tmp_path / "whole")
  assert test_folder.contents(tmp_path / "parts") == test_folder.contents(
    tmp_path / "whole"
  )


@contextlib.contextmanager
def when_held(mark: pathlib.Path, kill):
  """Calls `kill` with what the held worker wrote, once it has."""
  stop = threading.Event()

  def wait():
    while not stop.wait(0.05):
      if mark.exists():
        kill(*mark.read_text().split())
        return

  thread = threading.Thread(target=wait)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()


def test_an_actor_that_is_killed_loses_and_repeats_nothing(
  model, text, tmp_path, caplog
):
  kill = lambda pid, node: os.kill(int(pid), signal.SIGKILL)
  mark = tmp_path / "mark"
  caplog.set_level("INFO", "dcse_jax")
  with when_held(mark, kill):
    held.embed(model, text, str(tmp_path / "parts"), str(mark), workers=2)
  assert mark.exists()
  assert "a worker died; begun again: part-000003 (" in caplog.text
  assert "1 died, 1 parts were done again" in caplog.text
  check_same(model, text, tmp_path)


def test_a_machine_that_is_lost_loses_and_repeats_nothing(
  model, text, tmp_path, caplog
):
  from ray.cluster_utils import Cluster

  cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
  nodes = {}
  for _ in range(2):
    node = cluster.add_node(num_cpus=1)
    nodes[node.node_id] = node
  kill = lambda pid, node: cluster.remove_node(nodes[node], allow_graceful=False)
  mark = tmp_path / "mark"
  caplog.set_level("INFO", "dcse_jax")
  try:
    with when_held(mark, kill):
      held.embed(
        model, text, str(tmp_path / "parts"), str(mark), address=cluster.address
      )
  finally:
    cluster.shutdown()
  assert mark.exists()
  # There was one actor a machine, and the other one did what was left.
  assert "by 2 actors; 1 died, 1 parts were done again" in caplog.text
  check_same(model, text, tmp_path)


def test_a_driver_that_is_killed_goes_on_to_the_same_bytes(model, text, tmp_path):
  mark, output = tmp_path / "mark", tmp_path / "parts"
  arguments = [model, text, str(output), str(mark)]
  with processes.start("tests.cluster.held", *arguments, fresh=True) as process:
    # One is held, and the other does the rest.
    while len(list(output.glob("part-*"))) < 7:
      assert not process.has_ended(), process.stderr()
      time.sleep(0.05)
    second = processes.run("tests.cluster.held", *arguments)
    assert second.returncode == 2
    assert "is in use by process" in second.stderr
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
  assert mark.exists() and not (output / "manifest.json").exists()
  again = processes.run("tests.cluster.held", *arguments)
  assert again.returncode == 0, again.stderr
  assert "going on: 7 of 8 parts are there" in again.stdout
  check_same(model, text, tmp_path)


def test_what_ends_on_a_worker_is_one_line_here(model, text, tmp_path):
  missing = embedders.Encoder(str(tmp_path / "missing"))
  with pytest.raises(UserError, match=rf"^on {socket.gethostname()}: .*missing"):
    driver.embed_parts(missing, text, str(tmp_path / "parts"), engine="ray")
  with open(text, "ab") as file:
    file.write(b"\xff\n")
  options = {"engine": "ray", "part_rows": 20}
  with pytest.raises(UserError, match=r"^on .*: .*text.txt line 152: not valid UTF-8"):
    test_folder.embed(model, text, tmp_path / "parts", **options)
  options["skip_bad_rows"] = True
  manifest = test_folder.embed(model, text, tmp_path / "parts", **options)
  assert (manifest["rows"], manifest["bad_rows"]) == (151, 1)


def test_a_cluster_that_nobody_runs_is_said_in_one_line(model, text, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  for address, message in [
    (f"127.0.0.1:{port}", "no Ray cluster at 127.0.0.1:.* refused"),
    ("auto", "no Ray cluster at auto"),
  ]:
    with pytest.raises(UserError, match=message):
      test_folder.embed(model, text, tmp_path / "parts", engine="ray", address=address)

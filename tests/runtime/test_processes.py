"""Several processes: the same training, each with its part, and one end for all."""

import contextlib
import json
import pickle
import signal
import socket
import time

import jax
import numpy as np
import pytest

from dcse_jax.data import batches as batches_lib
from tests import models
from tests import processes
from tests import recipes
from tests.teachers.test_teachers import make_tokens
from tests.train import test_train

DEVICES = "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0"


def free_port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def start(stack, *arguments, devices=1, what="train"):
  """Starts two processes that meet, `tests.host`; the stack kills them when it closes.

  In their arguments {} stands for the number of the process.
  """
  port = free_port()
  env = {"XLA_FLAGS": DEVICES.format(devices)}
  return [
    stack.enter_context(
      processes.start(
        "tests.host",
        *(what, f"localhost:{port}", "2", str(i)),
        *(argument.format(i) for argument in arguments),
        env=env,
      )
    )
    for i in range(2)
  ]


def wait(both):
  return [process.wait(120) for process in both]


def test_two_processes_of_four_devices_train_as_one_device_does(tmp_path):
  with contextlib.ExitStack() as stack:
    both = start(stack, str(tmp_path), devices=4, what="steps")
    _, one, metrics = test_train.run_steps(num_steps=5)
    assert wait(both) == [0, 0], both[0].stderr() + both[1].stderr()
  one = jax.device_get(one.params)
  del one["encoder"]["layers"]["key"]["bias"]  # Its gradient is rounding.
  for i in range(2):
    found = pickle.loads((tmp_path / f"{i}.pickle").read_bytes())
    assert found["process"] == [0, 1]
    for a, b in zip(metrics, found["metrics"], strict=True):
      assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
      assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)
    del found["params"]["encoder"]["layers"]["key"]["bias"]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max()
      ),
      one,
      found["params"],
    )


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_the_shards_of_an_epoch_are_the_whole_epoch_without_overlap(
  tmp_path, num_hosts
):
  tokens = make_tokens(tmp_path, models.tiny_model())
  size = 4
  shards = [
    batches_lib.make_batches(
      tokens, batch_size=size, seed=0, host=host, num_hosts=num_hosts
    )
    for host in range(num_hosts)
  ]
  met = [
    next(shard)["example_id"] for _ in range(len(tokens) // size) for shard in shards
  ]
  assert {len(ids) for ids in met} == {size // num_hosts}
  met = np.concatenate(met).tolist()
  # Rows that do not fill a last batch are missing.
  assert len(set(met)) == len(met) == len(tokens) // size * size
  assert set(met) <= set(range(len(tokens)))


def tiny_run(workdir):
  """Returns arguments for a round of two models that train together, cached teacher."""
  short = dict(num_train_steps=12, eval_every=4, log_every=2)
  fields = dict(
    recipe="('distilled',)",
    teacher_cache="float16",
    parallel_seeds=True,
    synthetic_sentences=400,
    synthetic_pairs=60,
    batch_size=8,
    max_length=16,
    **{f"encoder.{key}": value for key, value in recipes.TINY.items()},
    **{f"rounds.distilled.{key}": value for key, value in short.items()},
    **{
      "rounds.distilled.start": "",
      "rounds.distilled.seeds": "(1,2)",
      "rounds.distilled.teachers": f"('{workdir.parent / 'teacher'}',)",
      "distillation.group_probability": 0.5,
    },
  )
  return [
    *("--config=configs/quickstart.py", f"--workdir={workdir}"),
    *(f"--config.{key}={value}" for key, value in fields.items()),
  ]


@pytest.mark.slow
def test_two_processes_told_to_stop_go_on_and_end_as_one_does(tmp_path):
  models.write_tiny_folder(tmp_path / "teacher", num_layers=1)
  ours, theirs = tmp_path / "two", tmp_path / "one"
  metrics = ours / "distilled/1/metrics.jsonl"
  with contextlib.ExitStack() as stack:
    both = start(stack, *tiny_run(ours))
    while not metrics.exists() and not both[0].has_ended():
      time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)
    alone = stack.enter_context(
      processes.start(
        "dcse_jax.main", *tiny_run(theirs), env={"XLA_FLAGS": DEVICES.format(2)}
      )
    )
    assert wait(both) == [75, 75], both[0].stderr() + both[1].stderr()
    assert "process 1 of 2 was told to stop" in both[0].stderr()
    assert not (ours / "distilled/1/result.json").exists()
    both = start(stack, *tiny_run(ours))
    assert wait(both) == [0, 0], both[0].stderr() + both[1].stderr()
    assert "going on from step" in both[0].stdout()
    assert "loss" in both[0].stdout() and "loss" not in both[1].stdout()
    assert alone.wait() == 0, alone.stderr()
  rows = [
    json.loads((path / "results.json").read_text())["models"] for path in (ours, theirs)
  ]
  for a, b in zip(*rows, strict=True):
    assert a["name"] == b["name"]
    assert a["dev"] == pytest.approx(b["dev"], abs=0.5)
    assert a["test"] == pytest.approx(b["test"], abs=0.5)
  for seed in "12":
    lines = [
      models.read_jsonl(path / "distilled" / seed / "metrics.jsonl")
      for path in (ours, theirs)
    ]
    for a, b in zip(*lines, strict=True):
      assert a["step"] == b["step"]
      if "train/loss" in a:
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
  # Locks, the processes' marks and what is written beside are all removed.
  assert not list(ours.rglob(".*"))


@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_process_is_killed_the_other_ends_with_a_line(tmp_path, dead):
  with contextlib.ExitStack() as stack:
    both = start(stack, *tiny_run(tmp_path), what="bereaved")
    while not (tmp_path / "cache").exists() and not both[dead].has_ended():
      time.sleep(0.01)
    both[dead].send_signal(signal.SIGKILL)
    assert both[1 - dead].wait(60) == 1
    assert "start all of them again with the same command" in both[1 - dead].stderr()


def test_bad_input_of_one_process_ends_both_with_its_line(tmp_path):
  with contextlib.ExitStack() as stack:
    both = start(
      stack,
      *tiny_run(tmp_path),
      "--config.text=none.txt",
      "--config.synthetic_sentences=0",
    )
    assert wait(both) == [2, 2]
    assert all("error: " in process.stderr() for process in both)


def test_processes_are_found_under_slurm(tmp_path):
  # Each has a workdir of its own, which is refused when they have met.
  with contextlib.ExitStack() as stack:
    both = start(stack, *tiny_run(tmp_path / "{}"), what="slurm")
    assert wait(both) == [2, 2], both[0].stderr() + both[1].stderr()
    assert "is not one folder for all processes" in both[0].stderr()


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--num_processes=2"], "--coordinator, --num_processes and --process_id, or none"),
    (
      ["--coordinator=here", "--num_processes=2", "--process_id=0"],
      "--coordinator=here is not HOST:PORT",
    ),
    (
      ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
      "--process_id=2: processes are numbered from 0 to 1",
    ),
  ],
)
def test_flags_that_name_no_process_are_refused(tmp_path, flags, message):
  ended = processes.run("dcse_jax.main", *tiny_run(tmp_path), *flags)
  assert ended.returncode == 2
  assert message in ended.stderr

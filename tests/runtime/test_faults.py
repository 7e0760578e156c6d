"""Runs that are killed, signalled, damaged or out of disk, as a user meets them.

`pytest -m slow tests/runtime/test_faults.py` tries everything many more times.
"""

import contextlib
import ctypes
import functools
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from dcse_jax.data import tokens as tokens_lib
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import signals
from dcse_jax.runtime import workdir as workdir_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.locks import locked
from dcse_jax.teachers import cache as teacher_cache
from dcse_jax.train import checkpoint
from tests import models
from tests import processes
from tests import recipes

# Pretraining, contrast and distillation: the quickstart's three rounds, tiny, long
# enough for some batches to be packed and others not.
STEPS = dict(num_train_steps=100, eval_every=20, log_every=10)
ENCODER = dict(recipes.TINY, num_heads=2)
ONLINE, CACHED = "online teachers", "cached teachers, models together"
VARIANTS = {
  ONLINE: {},
  CACHED: dict(teacher_cache="float16", parallel_seeds=True, pooling="cls"),
}


def command(workdir, variant=CACHED, **fields):
  fields = dict(
    synthetic_sentences=400,
    synthetic_pairs=60,
    batch_size=8,
    max_length=16,
    **{f"encoder.{key}": value for key, value in ENCODER.items()},
    **STEPS,
    **{
      f"rounds.{name}.{key}": value
      for name in ("pretrained", "distilled")
      for key, value in STEPS.items()
    },
    **{"rounds.base.num_train_steps": STEPS["num_train_steps"]},
    **{"rounds.pretrained.warmup_steps": 20},
    **VARIANTS[variant],
    **fields,
  )
  return [
    *("dcse_jax.main", "--config=configs/quickstart.py", f"--workdir={workdir}"),
    *(f"--config.{key}={value}" for key, value in fields.items()),
  ]


MODELS = ("pretrained/0", "base/1", "base/2", "distilled/3")


def assert_same_run(ours, theirs):
  """Asserts that two workdirs hold the same models, bit by bit, scores and metrics."""
  for name in (*(f"{model}/model" for model in MODELS), "export"):
    a, b = (
      safetensors.numpy.load_file(path / name / "model.safetensors")
      for path in (ours, theirs)
    )
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=f"{name} {key}")
  for model in MODELS:
    a, b = (
      models.read_metrics(path / model / "metrics.jsonl") for path in (ours, theirs)
    )
    assert a == b
  a, b = ((path / "results.json").read_text() for path in (ours, theirs))
  assert a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns uninterrupted runs, by variant."""

  @functools.cache
  def run(variant):
    workdir = tmp_path_factory.mktemp("whole")
    result = processes.run(*command(workdir, variant))
    assert result.returncode == 0, result.stderr
    return workdir

  return run


def wait_for(process, condition):
  """Waits until it holds or the process has ended; returns whether it holds."""
  while not condition():
    if process.has_ended():
      return False
    time.sleep(0.002)
  return True


# --- Kill -------------------------------------------------------------------------


def kill_often(workdir, variant, times, rng, env):
  """Starts the command and kills it until it finishes; returns how often.

  Python's hash seed changes each time: nothing may depend on it.
  """
  for kills in range(times):
    env = env | {"PYTHONHASHSEED": str(1 + kills % 2)}
    with processes.start(*command(workdir, variant), env=env) as process:
      # Half of them while a checkpoint is written, the others at any moment.
      if rng.random() < 0.5:
        skip = rng.randrange(3)
        saves = lambda: len(list(workdir.glob("*/*/checkpoints/*tmp*")))
        for _ in range(skip):
          wait_for(process, lambda: saves() > 0)
          wait_for(process, lambda: saves() == 0)
        wait_for(process, lambda: saves() > 0)
      else:
        deadline = time.monotonic() + rng.uniform(0, 6)
        wait_for(process, lambda: time.monotonic() > deadline)
      process.send_signal(signal.SIGKILL)
      if process.wait() == 0:
        return kills
  return times


def check_kills(whole, tmp_path, variant, times):
  rng, left, n = random.Random(0), times, 0
  expected = whole(variant)
  # They have their own compiled programs: JAX too can be killed as it writes.
  name = "JAX_COMPILATION_CACHE_DIR"
  env = {name: str(shutil.copytree(os.environ[name], tmp_path / "compiled"))}
  while left > 0:
    workdir = tmp_path / str(n)
    # It is never killed so often that no run would end by itself.
    left -= max(kill_often(workdir, variant, min(left, 25), rng, env), 1)
    n += 1
    result = processes.run(*command(workdir, variant), env=env)
    assert result.returncode == 0, result.stderr
    assert_same_run(workdir, expected)


def test_a_run_that_was_killed_ends_bitwise_as_one_that_was_not(whole, tmp_path):
  check_kills(whole, tmp_path, CACHED, times=1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_fifty_times_ends_bitwise_as_one_that_was_not(
  whole, tmp_path, variant
):
  check_kills(whole, tmp_path, variant, times=50)


# --- Signals ----------------------------------------------------------------------


def test_a_signalled_run_saves_leaves_and_goes_on_bitwise(whole, tmp_path):
  stopped = 0
  for number, model, line in (
    (signal.SIGTERM, "base-1", "base-1  30/100"),
    (signal.SIGINT, "distilled", "distilled  50/100"),
  ):
    with processes.start(*command(tmp_path)) as process:
      assert wait_for(process, lambda: line in process.stdout())
      process.send_signal(number)
      assert process.wait() == signals.EXIT_STATUS == 75
    if stopped:
      assert f"base-1: going on from step {stopped}" in process.stdout()
    last = process.stderr().splitlines()[-1]
    assert last == "interrupted: run the same command again to go on"
    folder = tmp_path / model.replace("-", "/") / "checkpoints"
    if model == "base-1":
      # Evaluations save every 20 steps, the signal at whatever step it arrives.
      stopped = max(int(p.name) for p in folder.iterdir())
      assert stopped >= 30
  result = processes.run(*command(tmp_path))
  assert result.returncode == 0, result.stderr
  assert "distilled: going on from step" in result.stdout
  assert_same_run(tmp_path, whole(CACHED))


def test_a_second_signal_leaves_at_once():
  code = (
    "import time; from dcse_jax.runtime import signals\n"
    "with signals.handled(), signals.deferred():\n"
    "  print('ready', flush=True)\n"
    "  time.sleep(600)\n"
    "  time.sleep(600)\n"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=recipes.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    first = process.stderr.readline()
    assert first.startswith("SIGTERM: saving, then leaving; once more leaves at once")
    process.send_signal(signal.SIGINT)
    assert process.wait() == 75


# --- Two runs on one workdir --------------------------------------------------------


def test_a_second_run_on_one_workdir_is_refused_while_the_first_lasts(tmp_path):
  config = recipes.tiny(recipes.load_config("quickstart"))
  with locked(tmp_path):
    with pytest.raises(UserError, match="is in use by process .* name another"):
      recipe_lib.run(config, str(tmp_path))


def test_a_dead_process_leaves_no_lock(tmp_path):
  code = (
    "import pathlib, sys, time; from dcse_jax.runtime.locks import locked\n"
    "with locked(pathlib.Path(sys.argv[1])):\n"
    "  print('held', flush=True)\n"
    "  time.sleep(600)\n"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)],
    cwd=recipes.ROOT,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid}"), locked(tmp_path):
      pass
    process.kill()
    process.wait()
  assert (tmp_path / ".lock").exists()
  with locked(tmp_path):
    pass


# --- Damage -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
  """A run that was signalled when some checkpoints were there."""
  workdir = tmp_path_factory.mktemp("interrupted")
  with processes.start(*command(workdir)) as process:
    wait_for(process, lambda: "base-1  70/100" in process.stdout())
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, process.stderr()
  return workdir


def flip(path, offset, bit=0):
  content = bytearray(path.read_bytes())
  content[offset] ^= 1 << bit
  path.write_bytes(content)


@contextlib.contextmanager
def damaged(path, damage):
  """Damages a file during a block."""
  content = path.read_bytes()
  damage(path)
  try:
    yield
  finally:
    path.write_bytes(content)


def check_damage(folder, times):
  """Flips bytes of the newest checkpoint, and truncates and deletes each file."""
  rng = random.Random(1)
  intact = checkpoint.Checkpoints(folder)
  assert len(intact.steps) >= 2 and not intact.damage
  newest, before = intact.steps[-1], intact.steps[-2]
  paths = [p for p in (folder / str(newest)).rglob("*") if p.is_file()]
  # All offsets in all files together are equally likely.
  where = [(path, i) for path in paths for i in range(path.stat().st_size)]
  faults = [
    (path, functools.partial(flip, offset=offset, bit=rng.randrange(8)))
    for path, offset in rng.sample(where, times)
  ]
  for path in paths:
    faults.append((path, pathlib.Path.unlink))
    size = path.stat().st_size
    if size:
      faults.append((path, functools.partial(os.truncate, length=rng.randrange(size))))
  for path, fault in faults:
    with damaged(path, fault):
      seen = checkpoint.Checkpoints(folder)
      name = str(path.relative_to(folder / str(newest)))
      assert name in seen.damage[newest], (name, fault, seen.damage)
      assert seen.steps[-1] == before


def test_any_damage_to_a_checkpoint_is_found_and_named(interrupted):
  check_damage(interrupted / "base/1/checkpoints", times=100)


@pytest.mark.slow
def test_any_of_a_thousand_damages_to_a_checkpoint_is_found_and_named(interrupted):
  check_damage(interrupted / "base/1/checkpoints", times=1000)


def test_a_run_goes_on_from_the_newest_intact_checkpoint(interrupted, whole, tmp_path):
  workdir = shutil.copytree(interrupted, tmp_path / "run")
  folder = workdir / "base/1/checkpoints"
  before, newest = checkpoint.Checkpoints(folder).steps[-2:]
  data = max((folder / str(newest)).rglob("*"), key=lambda p: p.stat().st_size)
  flip(data, data.stat().st_size // 2)
  result = processes.run(*command(workdir))
  assert result.returncode == 0, result.stderr
  assert f"base-1: checkpoint {newest} is damaged (" in result.stdout
  assert f"is not as it was written); going on from step {before}" in result.stdout
  assert_same_run(workdir, whole(CACHED))


def test_without_an_intact_checkpoint_a_run_says_so(interrupted, tmp_path):
  workdir = shutil.copytree(interrupted, tmp_path / "run")
  folder = workdir / "base/1/checkpoints"
  for step in checkpoint.Checkpoints(folder).steps:
    flip(next((folder / str(step)).glob("state/d/*")), 0)
  for _ in range(2):
    result = processes.run(*command(workdir))
    assert_refused(
      result.returncode,
      result.stderr,
      "is damaged (state/d/",
      f"remove {folder.parent} to",
    )


@pytest.fixture
def token_cache(tmp_path):
  """Opens, or makes, a token cache whose content can be read off."""

  def build():
    return tokens_lib.build_token_cache(
      tmp_path / "tokens",
      [[str(i) for i in range(10, 60)]],
      tokenize=lambda sentences: [[2, int(s), 3] for s in sentences],
      tokenizer_state="",
      max_length=3,
      pad_token_id=0,
      vocab_size=100,
    )

  return build


def faults_of(path, rng, flips):
  """Yields changes that may happen to a file."""
  size = path.stat().st_size
  yield pathlib.Path.unlink
  yield functools.partial(os.truncate, length=rng.randrange(size))
  for _ in range(flips):
    yield functools.partial(flip, offset=rng.randrange(size), bit=rng.randrange(8))


def test_a_damaged_token_cache_is_made_anew(token_cache, tmp_path, caplog):
  rng, rows = random.Random(0), np.arange(50)
  expected = [[[2, i, 3]] for i in range(10, 60)]
  token_cache()
  (folder,) = (tmp_path / "tokens").glob("tokens-*")
  for path in sorted(folder.iterdir()):
    for fault in list(faults_of(path, rng, flips=10)):
      caplog.clear()
      fault(path)
      assert token_cache().gather(rows)["input_ids"].tolist() == expected
      (said,) = caplog.messages
      assert path.name in said and "tokenising the text anew" in said


def test_damaged_blocks_of_a_teacher_cache_are_made_anew(
  token_cache, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(teacher_cache, "_BLOCK_ROWS", 20)
  model, tokens, rows = models.tiny_model(num_layers=1), token_cache(), []
  encode = teacher_cache.encode_tokens
  monkeypatch.setattr(
    teacher_cache,
    "encode_tokens",
    lambda params, config, token_ids, **kwargs: (
      rows.append(len(token_ids)) or encode(params, config, token_ids, **kwargs)
    ),
  )

  def build():
    return np.array(
      teacher_cache.build_teacher_cache(
        tmp_path, model, tokens, name="t", dtype="float16"
      )
    )

  expected = build()
  (folder,) = tmp_path.glob("teacher-*")
  file, rng = folder / "embeddings.bin", random.Random(0)
  # A byte of the second of three blocks; then either file lost or cut short.
  flip_second = functools.partial(flip, offset=25 * 16 * 2)
  faults = [(file, flip_second), (folder / "done-20.json", pathlib.Path.unlink)]
  faults += [(p, f) for p in list(folder.iterdir()) for f in faults_of(p, rng, 3)]
  for path, fault in faults:
    rows.clear()
    caplog.clear()
    fault(path)
    np.testing.assert_array_equal(build(), expected)
    assert "is damaged in" in caplog.text and rows
    if fault is flip_second or path.name == "done-20.json":
      assert rows == [20]


def test_a_damaged_tokenizer_cache_is_made_anew(tmp_path):
  config = recipes.tiny(recipes.load_config("quickstart"))
  config.synthetic_sentences, config.synthetic_pairs = 200, 60
  place = workdir_lib.Workdir(str(tmp_path))
  make = lambda: recipe_lib.read(config, place).inputs.start.tokenizer.get_vocab()
  expected = make()
  (folder,) = (tmp_path / "cache").glob("tokenizer-*")
  flip(folder / "tokenizer.json", 2000)
  assert make() == expected


# --- Disk -------------------------------------------------------------------------


def give_up_privileges():
  """Makes root obey permissions; does nothing to anyone else."""
  if os.geteuid() == 0:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


def limit_files(size):
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def assert_refused(returncode, stderr, *words):
  """One line on stderr, and status 2."""
  assert returncode == 2, stderr
  assert stderr.count("\n") == 1 and stderr.startswith("error: "), stderr
  assert all(word in stderr for word in words), stderr


def check_file_sizes(whole, tmp_path, sizes):
  """Runs with a limit on the size of files; then the same command without it."""
  for size in sizes:
    workdir = tmp_path / str(size)
    result = processes.run(
      *command(workdir), preexec=functools.partial(limit_files, size)
    )
    assert_refused(result.returncode, result.stderr, "cannot write", "File too large")
    result = processes.run(*command(workdir))
    assert result.returncode == 0, result.stderr
    assert_same_run(workdir, whole(CACHED))


@pytest.mark.slow
def test_a_file_that_cannot_be_written_ends_a_run_that_then_goes_on(whole, tmp_path):
  check_file_sizes(whole, tmp_path, [6_000])


@pytest.mark.slow
def test_files_of_any_size_that_cannot_be_written_end_a_run(whole, tmp_path):
  check_file_sizes(whole, tmp_path, [500, 1_000, 3_000, 20_000, 40_000])


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [0.1, 0.3, 0.6, 1, 1.5, 2])
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
  whole, tmp_path, megabytes
):
  size = f"size={int(megabytes * 1e6)}"
  mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(tmp_path)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("only root may mount a small disk")
  try:
    workdir = tmp_path / "run"
    result = processes.run(*command(workdir))
    assert_refused(result.returncode, result.stderr, "No space left on device")
    room = ["mount", "-o", "remount,size=100m", str(tmp_path)]
    subprocess.run(room, check=True)
    result = processes.run(*command(workdir))
    assert result.returncode == 0, result.stderr
    assert_same_run(workdir, whole(CACHED))
  finally:
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_folder_without_permission_ends_a_run(interrupted, tmp_path):
  (tmp_path / "closed").mkdir(mode=0o555)
  result = processes.run(
    *command(tmp_path / "closed" / "run"), preexec=give_up_privileges
  )
  assert_refused(
    result.returncode, result.stderr, "cannot make the folder", "Permission denied"
  )
  workdir = shutil.copytree(interrupted, tmp_path / "run")
  (workdir / "base/1/checkpoints").chmod(0o555)
  result = processes.run(*command(workdir), preexec=give_up_privileges)
  assert_refused(
    result.returncode,
    result.stderr,
    "cannot write",
    "base/1/checkpoints",
    "Permission denied",
  )
  saved = checkpoint.Checkpoints(workdir / "base/1/checkpoints")
  assert len(saved.steps) >= 2 and not saved.damage


@pytest.mark.slow
def test_a_folder_that_vanishes_ends_a_run(tmp_path):
  with processes.start(*command(tmp_path / "run")) as process:
    assert wait_for(process, lambda: "base-1  30/100" in process.stdout())
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").write_text("something else")
    process.wait()
  assert_refused(process.returncode, process.stderr(), "cannot write")
  # What was saved before is whole.
  saved = checkpoint.Checkpoints(tmp_path / "moved/pretrained/0/checkpoints")
  assert len(saved.steps) >= 2 and not saved.damage


# --- Two thousand steps -----------------------------------------------------------


@pytest.mark.slow
def test_a_long_run_neither_grows_nor_compiles_again_nor_leaves_anything(tmp_path):
  result = processes.run("tests.long_run", str(tmp_path))
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout.splitlines()[-1])
  # After 500, 1000, 1500 and 2000 steps.
  assert len(set(found["programs"])) == 1, found
  assert len(set(found["device_mb"])) == 1, found
  # The allocator rounds; a leak of one batch or state a step would be tens of MB.
  assert found["mb"][-1] - found["mb"][1] < 5, found
  # The first run leaves what lives as long as the process; later ones add nothing.
  first, _, third = found["after"]
  assert third == first, found

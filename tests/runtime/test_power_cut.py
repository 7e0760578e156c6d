"""What a power cut may take, and how a run continues after it."""

import logging
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy

from dcse_jax.recipe import monitor
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import signals
from dcse_jax.train import checkpoint
from tests import models
from tests import processes
from tests import recipes

STEPS = dict(num_train_steps=8, eval_every=2, log_every=1)


def make_config(path):
  config = recipes.from_files(path, recipe=("base",))
  config.rounds.base.update(STEPS, seeds=(1,))
  return config


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
  """A run that ended as its last evaluation began, and what it would have been.

  Also the inodes of the files and folders that it waited for.
  """
  path = tmp_path_factory.mktemp("cut")
  (path / "text.txt").write_text("\n".join(models.SENTENCES[:60]) + "\n")
  for name in ("STSB-dev", "X-test"):
    models.write_sts(path / "sts", name)
  models.write_tiny_folder(path / "model", num_layers=1)
  synced = set()

  def fsync(descriptor, original=os.fsync):
    synced.add(os.fstat(descriptor).st_ino)
    original(descriptor)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, "fsync", fsync)
    recipe_lib.run(make_config(path), str(path / "whole"))
  calls, metrics = [], monitor.Scorer.metrics

  def interrupted(*args):
    calls.append(1)
    if len(calls) == 4:
      raise signals.Interrupted
    return metrics(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(monitor.Scorer, "metrics", interrupted)
    with pytest.raises(signals.Interrupted):
      recipe_lib.run(make_config(path), str(path / "cut"))
  return path, synced


def test_a_run_waits_for_all_that_it_relies_on_to_be_on_the_disk(cut):
  path, synced = cut
  # Files that are made anew, and files that only people read.
  not_needed = ("compiled", "tensorboard")
  found = [
    p
    for p in (path / "whole").rglob("*")
    if not set(not_needed) & set(p.relative_to(path).parts)
  ]
  missed = [p for p in found if p.is_file() and p.stat().st_ino not in synced]
  assert len(found) > 50 and not missed
  holds_files = {p.parent for p in found if p.is_file()}
  assert not [p for p in holds_files if p.stat().st_ino not in synced]


def empty(path):
  os.truncate(path, 0)


def lose_newest(folder):
  """Empties the newest files, as a file system may leave names without contents."""
  for path in (folder / "6").rglob("*"):
    if path.is_file():
      empty(path)


def lose_last_file(folder):
  """Removes what Orbax writes after the digests, before its own were added."""
  names = [n for n in digests_lib.listed(folder / "6") if n != "_CHECKPOINT_METADATA"]
  digests_lib.write(folder / "6", names)
  empty(folder / "6" / "_CHECKPOINT_METADATA")


def lose_names(folder):
  shutil.rmtree(folder / "6" / "state")


def lose_lines(folder):
  path = folder.parent / "metrics.jsonl"
  lines = path.read_text().splitlines(True)
  # The steps 1 and 2, and the first evaluation.
  path.write_text("".join(lines[3:]))


@pytest.mark.parametrize(
  "lose, step, said",
  [
    (lose_newest, 4, "checkpoint 6 is damaged (SHA256SUMS is not as it was written)"),
    (lose_names, 4, "checkpoint 6 is damaged (state/"),
    (lose_last_file, 6, ""),  # It holds times.
    (lose_lines, 6, "metrics.jsonl: 3 of 9 lines before step 6 are lost"),
  ],
)
def test_after_a_power_cut_a_run_goes_on_from_the_newest_whole_checkpoint(
  cut, tmp_path, lose, step, said, caplog
):
  path, _ = cut
  workdir = shutil.copytree(path / "cut", tmp_path / "run")
  folder = workdir / "base/1/checkpoints"
  assert checkpoint.Checkpoints(folder).steps[-2:] == [4, 6]
  lose(folder)
  caplog.set_level(logging.INFO, "dcse_jax")
  recipe_lib.run(make_config(path), str(workdir))
  assert said in caplog.text
  assert f"base: going on from step {step}" in caplog.text
  name = "base/1/model/model.safetensors"
  ours = safetensors.numpy.load_file(workdir / name)
  for key, value in safetensors.numpy.load_file(path / "whole" / name).items():
    np.testing.assert_array_equal(ours[key], value)
  metrics = [
    models.read_metrics(each / "base/1/metrics.jsonl")
    for each in (workdir, path / "whole")
  ]
  lost = 3 if lose is lose_lines else 0
  assert metrics[0] == metrics[1][lost:]


@pytest.mark.slow
def test_damaged_compiled_programs_are_said_and_compiled_anew(tmp_path):
  fields = [
    "--config.synthetic_sentences=200",
    "--config.synthetic_pairs=60",
    "--config.recipe=('base',)",
    "--config.batch_size=8",
    "--config.max_length=16",
    *(f"--config.encoder.{key}={value}" for key, value in recipes.TINY.items()),
    "--config.rounds.base.seeds=(1,)",
    "--config.rounds.base.start=",
    "--config.rounds.base.num_train_steps=4",
    "--config.eval_every=2",
  ]
  workdir = tmp_path / "run"
  command = ("--config=configs/quickstart.py", f"--workdir={workdir}", *fields)
  run = lambda: processes.run(
    "dcse_jax.main", *command, env={"JAX_COMPILATION_CACHE_DIR": ""}
  )
  first = run()
  assert first.returncode == 0, first.stderr
  expected = (workdir / "results.json").read_text()
  programs = sorted((workdir / "cache" / "compiled").glob("*-cache"))
  assert len(programs) >= 3
  for number, program in enumerate(programs):
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    # Some have a bit flipped, some are cut short, some are empty.
    program.write_bytes((content, content[: len(content) // 2], b"")[number % 3])
  shutil.rmtree(workdir / "base")
  again = run()
  assert again.returncode == 0, again.stderr
  said = f"{len(programs)} damaged programs removed: compiling anew"
  assert said in again.stdout and not again.stderr
  assert (workdir / "results.json").read_text() == expected
  assert "damaged programs" not in run().stdout

"""The same command gives the same bits, whatever the hash seed of its process.

Python orders a set by hashes that differ from process to process. Whatever a program,
a file or a digest is made from must not depend on that order.
"""

import concurrent.futures
import json
import signal
import time

import pytest

from dcse_jax import losses
from dcse_jax.model.pooling import POOLINGS
from tests import models
from tests import processes
from tests import recipes

EVERYTHING = " + ".join(sorted(losses.TERMS))
# What a command exported differed among these before sets were put in order.
SEEDS = (0, 1, 3)


def programs(objectives, poolings, hash_seeds):
  """Returns what the steps of these objectives are lowered to, for each hash seed."""

  def lower(hash_seed):
    result = processes.run(
      "tests.lowered",
      ",".join(objectives),
      ",".join(poolings),
      env={"PYTHONHASHSEED": str(hash_seed)},
      fresh=True,
      timeout=1200,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return list(pool.map(lower, hash_seeds))


def test_a_step_of_all_terms_is_the_same_program_under_any_hash_seed():
  first, *others = programs([EVERYTHING], ["cls"], SEEDS)
  assert len(first) == 1
  assert all(other == first for other in others)


@pytest.mark.slow
def test_a_step_of_every_term_and_pooling_is_the_same_program_under_six_hash_seeds():
  first, *others = programs([*sorted(losses.TERMS), EVERYTHING], POOLINGS, range(6))
  assert len(first) == (len(losses.TERMS) + 1) * len(POOLINGS)
  assert all(other == first for other in others)


# --- A run --------------------------------------------------------------------------


def command(folder, workdir):
  """Returns a run on triplets that pools by [CLS], with four projected arrays."""
  settings = {
    **{f"encoder.{key}": value for key, value in recipes.TINY.items()},
    "model": "",
    "text": folder / "triplets.csv",
    "columns": ("a", "b", "c"),
    "sts": folder / "sts",
    "test": (),
    "pooling": "cls",
    "objective": "info_nce + 0.5 * undropped_negatives",
    "batch_size": 8,
    "max_length": 16,
    "num_train_steps": 60,
    "eval_every": 10,
    "log_every": 10,
    "rounds.simcse.seeds": (1,),
  }
  return [
    *("dcse_jax.main", "--config=configs/simcse.py", f"--workdir={folder / workdir}"),
    *(f"--config.{key}={value}" for key, value in settings.items()),
  ]


def test_a_run_on_triplets_killed_and_gone_on_with_under_another_hash_seed_is_the_same(
  tmp_path,
):
  rows = zip(*(models.SENTENCES[start : start + 90] for start in (0, 90, 180)))
  lines = ["a,b,c", *(",".join(f'"{cell}"' for cell in row) for row in rows)]
  (tmp_path / "triplets.csv").write_text("\n".join(lines) + "\n")
  models.write_sts(tmp_path / "sts", "STSB-dev")

  whole = processes.run(*command(tmp_path, "whole"), env={"PYTHONHASHSEED": "0"})
  assert whole.returncode == 0, whole.stderr
  with processes.start(
    *command(tmp_path, "cut"), env={"PYTHONHASHSEED": "1"}
  ) as process:
    while "simcse  30/60" not in process.stdout():
      assert not process.has_ended(), process.stderr()
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
  resumed = processes.run(*command(tmp_path, "cut"), env={"PYTHONHASHSEED": "3"})
  assert resumed.returncode == 0, resumed.stderr
  assert "going on from step" in resumed.stdout
  files = lambda run: {
    str(path.relative_to(tmp_path / run)): path.read_bytes()
    for path in sorted((tmp_path / run / "export").rglob("*"))
    if path.is_file()
  }
  assert files("cut") == files("whole")
  assert "export/model.safetensors" in files("cut")
  metrics = lambda run: models.read_metrics(tmp_path / run / "simcse/1/metrics.jsonl")
  assert metrics("cut") == metrics("whole")

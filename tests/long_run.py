"""Two thousand tiny steps: `python -m tests.long_run WORKDIR` says what they leave.

Prints JSON: `programs` compiled and `mb` resident after 500, 1000, 1500 and 2000
steps, and after each of three runs how many `threads`, open `files` and live `arrays`
there are.
"""

import gc
import json
import os
import pathlib
import sys
import threading

import jax

from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.train import metrics
from tests import recipes

EVERY = 500


def _config(steps):
  config = recipes.load_config("quickstart")
  config.encoder = dict(recipes.TINY, hidden_size=8, num_heads=1)
  config.synthetic_sentences, config.synthetic_pairs = 400, 60
  config.batch_size, config.max_length = 8, 8
  config.recipe = ("base",)
  config.rounds.base.update(start="", seeds=(1,), num_train_steps=steps)
  config.log_every, config.eval_every = 50, 100
  return config


def _resident_mb():
  gc.collect()
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(workdir):
  programs = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: programs.append(1) if "backend_compile" in name else None
  )
  found = {"programs": [], "mb": [], "device_mb": [], "after": []}
  original = metrics.Metrics.write

  def write(self, step, values, note=""):
    original(self, step, values, note)
    if self._num_steps == 2000 and step % EVERY == 0 and "train/loss" in values:
      found["programs"].append(len(programs))
      found["mb"].append(_resident_mb())
      found["device_mb"].append(sum(x.nbytes for x in jax.live_arrays()) / 1e6)

  metrics.Metrics.write = write
  for name, steps in (("first", 120), ("second", 2000), ("third", 120)):
    recipe_lib.run(_config(steps), f"{workdir}/{name}")
    gc.collect()
    found["after"].append(
      {
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "arrays": len(jax.live_arrays()),
      }
    )
  print(json.dumps(found))


if __name__ == "__main__":
  main(sys.argv[1])

"""What a step of each objective costs, and what a short training with it gains.

`python -m benchmarks.objectives --model DIR --text FILE --sts DIR --workdir DIR` trains
one model with each objective, from the same encoder, on the same text, equally long,
and scores it on STS-B dev at the end; before that it times one step of each, in turns, on
padded batches with teachers online. DIR is a BERT folder with its language-model head,
such as the round `pretrained` of configs/quickstart.py leaves in `pretrained/0/model`;
without that head DiffCSE's row is left out.

A strong encoder tells a sentence's two dropout masks from all other sentences at once, and
learns nothing from it: `--crop 0.1 0.3 --temperature 0.02` gives it spans of sentences to
tell apart.
"""

import argparse
import json
import math
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.ahead import abstract_step
from dcse_jax.hub import folder
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import memory
from dcse_jax.runtime import mesh as mesh_lib

# The teacher of objectives that have one is the first row's model, SimCSE's.
_TEACHER = dict(teachers=("simcse",))
_FEW_CLUSTERS = {"incremental_false_negatives": dict(num_clusters=(16, 64, 256))}
ROUNDS = {
  "simcse": dict(objective="info_nce"),
  "simcse_mlm": dict(objective="info_nce + 0.1 * masked_language_model"),
  "distillcse": dict(
    objective="info_nce + distillation",
    distillation=dict(group_probability=0.1),
    **_TEACHER,
  ),
  "embedding": dict(objective="embedding_distillation", **_TEACHER),
  "spread": dict(objective="embedding_distillation + 0.1 * spread", **_TEACHER),
  "focal": dict(objective="focal_info_nce"),
  "sscl": dict(objective="sscl"),
  "adap_acse": dict(objective="adap_acse", **_TEACHER),
  "relaxed": dict(objective="info_nce + relaxed_contrastive"),
  "ifnd": dict(objective="incremental_false_negatives", **_FEW_CLUSTERS),
  "core_tuning": dict(objective="core_tuning"),
  "pnr": dict(objective="pnr", **_TEACHER),
  "twins": dict(objective="fraternal_twins"),
  "cards": dict(objective="retrieved_negatives"),
  "diffcse": dict(objective="info_nce + 0.005 * replaced_token_detection"),
  "debcse": dict(objective="debcse", **_TEACHER),
  "sparse": dict(objective="info_nce", sparsity=0.1),
  "rank_net": dict(objective="info_nce + rank_consistency + list_net", **_TEACHER),
  "rank_mle": dict(objective="info_nce + rank_consistency + list_mle", **_TEACHER),
  "undropped": dict(objective="undropped_negatives"),
  "dimensions": dict(objective="info_nce + dimension_contrast"),
  "alignment": dict(objective="alignment_uniformity"),
}


def make_config(options) -> config_lib.ConfigDict:
  """Makes a recipe with a round for each objective."""
  config = config_lib.default()
  config.model, config.text, config.sts = options.model, options.text, options.sts
  config.num_layers, config.pooling = options.num_layers, options.pooling
  config.crop = tuple(options.crop)
  for name in losses.TERMS:
    if config[name].get("temperature") == config.info_nce.temperature:
      config[name].temperature = options.temperature
  config.dev, config.test = ("STSB-dev",), ("STSB-test",)
  config.num_train_steps = config.eval_every = options.steps
  config.log_every = max(1, options.steps // 10)
  config.learning_rate = options.learning_rate
  for name, fields in ROUNDS.items():
    config.rounds[name] = config_lib.round_config(tuple(options.seeds), **fields)
  model = folder.load(options.model)
  config.sscl.layers = ((options.num_layers or model.config.num_layers) - 1,)
  # What replaces words in DiffCSE is the head that the model comes with.
  has_head = model.language_model is not None
  chosen = [name for name in ROUNDS if name in options.objectives]
  config.recipe = tuple(name for name in chosen if has_head or name != "diffcse")
  return config


def train(config, options) -> dict[str, list[float]]:
  """Trains what is not trained yet; returns STS-B dev at the last step, by round."""
  recipe_lib.run(config, options.workdir)
  scores = {}
  for name in config.recipe:
    paths = [
      pathlib.Path(options.workdir, name, str(seed), "result.json")
      for seed in options.seeds
    ]
    scores[name] = [json.loads(path.read_text())["dev"] for path in paths]
  return scores


def _fill(shape, rng: np.random.Generator, vocab_size: int):
  """Fills shapes with random numbers that a step can take."""
  if jnp.issubdtype(shape.dtype, jnp.floating):
    values = 0.02 * rng.standard_normal(shape.shape, np.float32)
  elif shape.dtype == bool:
    values = np.ones(shape.shape, bool)
  elif len(shape.shape) > 1:
    values = rng.integers(5, vocab_size, shape.shape)
  else:
    values = np.zeros(shape.shape)
  return jax.device_put(np.asarray(values, shape.dtype), shape.sharding)


class _Stepper:
  """Steps of one round, on numbers that mean nothing."""

  def __init__(self, config, name: str):
    step = abstract_step.make_abstract_step(config, name, mesh_lib.make_mesh())
    rng, vocab_size = np.random.default_rng(0), step.start.config.vocab_size
    state, *self._rest = jax.tree.map(
      lambda shape: _fill(shape, rng, vocab_size), step.arguments
    )
    zeros = jax.tree.map(jnp.zeros_like, state.opt_state)
    self._state = type(state)(**{**vars(state), "opt_state": zeros})
    self._step_fn, self.seconds = step.step_fn, []

  def run(self, keep: bool) -> None:
    begin = time.perf_counter()
    self._state, values = self._step_fn(self._state, *self._rest, None)
    jax.block_until_ready(values)
    if keep:
      self.seconds.append(time.perf_counter() - begin)


def measure_cost(config, options) -> dict[str, tuple[float, float, float]]:
  """Measures each round's step relative to SimCSE's: quartiles and median."""
  steppers = {}
  for name in config.recipe:
    steppers[name] = _Stepper(config, name)
    steppers[name].run(keep=False)
  for i in range(options.rounds + 1):
    order = list(steppers.values())[:: 1 if i % 2 else -1]
    for stepper in order:
      stepper.run(keep=i > 0)
  base = steppers["simcse"].seconds
  return {
    name: tuple(
      statistics.quantiles([s / b for s, b in zip(stepper.seconds, base)], n=4)
    )
    for name, stepper in steppers.items()
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ("model", "text", "sts", "workdir"):
    parser.add_argument(f"--{name}", required=True)
  parser.add_argument(
    "--objectives", nargs="+", default=tuple(ROUNDS), choices=ROUNDS, metavar="NAME"
  )
  parser.add_argument("--num_layers", type=int, default=0)
  parser.add_argument("--pooling", default="cls")
  parser.add_argument("--crop", type=float, nargs="*", default=())
  parser.add_argument("--temperature", type=float, default=0.05)
  parser.add_argument("--steps", type=int, default=100)
  parser.add_argument("--learning_rate", type=float, default=3e-5)
  parser.add_argument("--seeds", type=int, nargs="+", default=[1])
  parser.add_argument(
    "--rounds", type=int, default=7, help="of timing; 0 times nothing"
  )
  options = parser.parse_args()
  memory.keep_freed_memory()
  config = make_config(options)
  costs = measure_cost(config, options) if options.rounds else {}
  print("| objective | step | quartiles | STS-B dev | by seed |\n" + 5 * "| --- " + "|")
  for name, values in train(config, options).items():
    low, middle, high = costs.get(name, (math.nan,) * 3)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    print(
      f"| `{ROUNDS[name]['objective']}` ({name}) | {middle:.2f} | {low:.2f} to {high:.2f} "
      f"| {statistics.mean(values):.2f}{spread} | {', '.join(f'{v:.2f}' for v in values)} |",
      flush=True,
    )
  missing = set(losses.TERMS) - {
    each.term.name
    for r in ROUNDS
    for each in config_lib.terms(config_lib.of_round(config, r))
  }
  print(f"terms without a row: {', '.join(sorted(missing)) or 'none'}")


if __name__ == "__main__":
  main()

"""Digests what steps are lowered to: `python -m tests.lowered OBJECTIVES POOLINGS`.

Both are separated by commas. Prints JSON: for each objective and pooling a digest of
the program's text and of the order of the arrays that it takes.
"""

import hashlib
import itertools
import json
import sys

import jax

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.ahead import abstract_step
from dcse_jax.recipe import validate
from dcse_jax.runtime import mesh as mesh_lib
from tests import recipes


def _config(objective, pooling):
  config = config_lib.default()
  config.encoder = recipes.TINY | dict(num_layers=2)
  config.pooling, config.columns = pooling, ("a", "b", "c")
  config.batch_size, config.max_length = 8, 8
  config.sscl.layers = (1,)
  config.recipe = ("base", "student")
  config.rounds.base = config_lib.round_config((1, 2))
  config.rounds.student = config_lib.round_config((3,), objective=objective)
  asked = losses.inputs_of(losses.parse(objective))
  config.rounds.student.teachers = ("base",) if "teacher" in asked else ()
  validate.check(config)
  return config


def main(objectives, poolings):
  mesh = mesh_lib.make_mesh()
  digests = {}
  for objective, pooling in itertools.product(
    objectives.split(","), poolings.split(",")
  ):
    step = abstract_step.make_abstract_step(
      _config(objective, pooling), "student", mesh
    )
    lowered = step.step_fn.lower(*step.arguments, None)
    about = lowered.as_text() + str(jax.tree.structure(step.arguments))
    digest = hashlib.sha256(about.encode()).hexdigest()
    digests[f"{objective}, {pooling}"] = digest
  print(json.dumps(digests))


if __name__ == "__main__":
  main(*sys.argv[1:])

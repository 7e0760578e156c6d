"""A small model that gives what a large one gives: distillation of embeddings.

The student's embedding of a sentence is its teachers' (`embedding_distillation`), where
widths differ after a linear map to theirs that is trained along and exported as a dense
layer (LEAF, arXiv:2509.12539); --config.keep_head=False drops the map. A sentence is
encoded once a step, and teachers embed the text once.

Teachers are whatever there is: models by folder or hub id, and embeddings from files,
such as those that dcse_jax.embed_with writes by any model of sentence-transformers:

python -m dcse_jax.embed_with --model ID_OR_DIR --text my.txt --output teacher.npy
python -m dcse_jax.main --config configs/distil.py \\
    --config.model=DIR_OR_ID \\
    --config.rounds.student.teachers="('teacher.npy',)" \\
    --config.text=my.txt --config.sts=STS_FOLDER --workdir runs/distil

The student starts from the first three layers of a model (--config.num_layers), or from
a smaller model as it is (--config.num_layers=0). The variant "new" has a new encoder of
shape config.encoder, with the teacher's tokenizer (--config.tokenizer=DIR_OR_ID), at a
rate and a length that it needs. Without any option teacher and model are MiniLM.

Learning rate 1e-3 at batch 64, twenty times that of contrastive training, and no dropout,
since a teacher's embedding is not noise that could be learnt by heart. Three layers of
MiniLM, taught by the whole on Wikipedia, had on STS-B dev after 600 steps 80.0, 82.2, 83.2
and 82.7 at 2e-4, 5e-4, 1e-3 and 2e-3 with dropout, and 83.6 and 83.1 at 1e-3 and 2e-3
without. 3,000 steps, the default, take such a model to 84.8 (with dropout); more was not
measured (docs/results.md).
"""

from dcse_jax import config as config_lib
from dcse_jax.eval import sts_sets

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def get_config(variant=""):
  # Steps, learning rate, warm-up.
  variants = {"": (3_000, 1e-3, 0), "new": (100_000, 1e-3, 2_000)}
  steps, rate, warmup = config_lib.choose(variant, variants)
  config = config_lib.default()
  if variant == "new":
    config.tokenizer = _MINILM
  else:
    config.model, config.num_layers = _MINILM, 3
  config.pooling = "mean"
  config.keep_head = True
  config.objective = "embedding_distillation"
  config.dropout = 0.0
  config.teacher_cache = "float16"
  config.num_train_steps = steps
  config.learning_rate = rate
  config.warmup_steps = warmup
  config.eval_every = steps // 20
  config.test = sts_sets.SEVEN_TEST_SETS
  config.recipe = ("student",)
  config.rounds.student = config_lib.round_config(seeds=(1,), teachers=(_MINILM,))
  return config

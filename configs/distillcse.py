"""DistillCSE: self-training with distillation, Group-P and averaged teachers.

Xu, Shao, Chen and Liu, DistillCSE, EMNLP Findings 2023 (arXiv:2310.13499), Tables
1 and 2: four SimCSE models; then students, from the plain encoder again, that
distil the average of their similarities, shuffled within groups of probability 0.1;
then a student of the second round, with the first round's as teachers. The paper
leaves open how many students teach the second round; here it is all four.
Published averages of seven STS sets, round 1 and 2: BERT-base 79.09 and 79.42,
BERT-large 80.68 and 81.13, RoBERTa-base 78.26 and -, RoBERTa-large 80.95 and 81.15.

The variant is a model, and ",script" after it takes the temperatures of the authors'
published script in place of the paper's 0.02 and 0.01, and stops after 5,000 steps of
the same schedule, as that does, in place of one epoch of a million sentences.

python -m dcse_jax.main --config configs/distillcse.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/distillcse

From teachers that exist already, any encoder, on any text:

python -m dcse_jax.main --config configs/distillcse.py \\
    --config.recipe="('student',)" --config.model=DIR_OR_ID \\
    --config.rounds.student.teachers="('DIR_OR_ID', 'DIR_OR_ID')" \\
    --config.rounds.student.seeds="(42,)" \\
    --config.text=my.txt --config.sts=STS_FOLDER --workdir runs/student
"""

from dcse_jax import config as config_lib
from dcse_jax.eval import sts_sets

# Variant: hub id, learning rate. The batch is 64 for all.
_VARIANTS = {
  "bert-base": ("bert-base-uncased", 3e-5),
  "bert-large": ("bert-large-uncased", 1e-5),
  "roberta-base": ("roberta-base", 1e-5),
  "roberta-large": ("roberta-large", 1e-5),
}


def get_config(variant="bert-base"):
  config = config_lib.default()
  model, _, source = variant.partition(",")
  config.model, config.learning_rate = config_lib.choose(model, _VARIANTS)
  config.num_train_steps = 15_625
  student, teacher = config_lib.choose(
    source, {"": (0.02, 0.01), "script": (0.025, 0.0125)}
  )
  if source:
    config.num_train_steps, config.schedule_steps = 5_000, 15_625
  config.distillation.student_temperature = student
  config.distillation.teacher_temperature = teacher
  config.distillation.group_probability = 0.1
  config.test = sts_sets.SEVEN_TEST_SETS
  seeds = (42, 43, 44, 45)
  config.recipe = ("base", "student", "second")
  config.rounds.base = config_lib.round_config(seeds)
  objective = "info_nce + distillation"
  config.rounds.student = config_lib.round_config(
    seeds, teachers=("base",), objective=objective
  )
  config.rounds.second = config_lib.round_config(
    seeds=(42,), teachers=("student",), objective=objective
  )
  return config

"""DebCSE: pairs weigh by inverse propensities that a SimCSE model helps to find.

Miao, Du and Zhang, DebCSE, CIKM 2023 (arXiv:2309.07396). Its settings were not at hand:
all are SimCSE's. The paper samples pairs from candidates that it retrieves, and reports
an average of 80.33 for BERT-base; here the pairs are those of a batch. With
--config.rounds.student.teachers="()" the student's own cosines tell the meaning.

python -m dcse_jax.main --config configs/debcse.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/debcse
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.debcse.least_propensity = 0.1
  config.recipe = ("base", "student")
  config.rounds.base = config_lib.round_config(seeds=(42,))
  config.rounds.student = config_lib.round_config(
    seeds=(42,), teachers=("base",), objective="debcse"
  )
  return config

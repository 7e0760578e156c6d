"""DiffCSE: an embedding must tell which words of an edited sentence were replaced.

Chuang et al., DiffCSE, NAACL 2022 (arXiv:2204.10298), Table 1 and appendix A: weight
0.005, 30 % of words chosen, learning rate 7e-6 for BERT-base and 1e-5 for RoBERTa-base,
batch 64, two epochs; sentences are edited as the authors' code does it
(--config.replaced_token_detection.edits=masked is the cheaper way). What stays
different: the generator is the model that training starts from, with its language-model
head, in place of a distilled one; and the projection is SimCSE's, without batch
normalisation. Published averages of seven STS sets: BERT-base 78.49, RoBERTa-base
77.80.

python -m dcse_jax.main --config configs/diffcse.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/diffcse
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  rates = {"bert-base": 7e-6, "roberta-base": 1e-5}
  learning_rate = config_lib.choose(variant, rates)
  config = config_lib.simcse(variant)
  config.batch_size, config.learning_rate = 64, learning_rate
  config.num_train_steps = 2 * 1_000_000 // config.batch_size
  config.objective = "info_nce + 0.005 * replaced_token_detection"
  config.replaced_token_detection.edits = "published"
  config.recipe = ("diffcse",)
  config.rounds.diffcse = config_lib.round_config(seeds=(42,))
  return config

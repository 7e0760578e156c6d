"""CARDS: case-switched positives and negatives retrieved from the text.

Wang et al., CARDS, SIGIR 2022 (arXiv:2206.02457): RoBERTa, whose tokenizer knows
case; SimCSE's batch and learning rate. The shares of switched words and the number of
neighbours of the published tables are not public: chosen are 0.15 and 8.

python -m dcse_jax.main --config configs/cards.py:roberta-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/cards
"""

from dcse_jax import config as config_lib


def get_config(variant="roberta-base"):
  config = config_lib.simcse(variant)
  config.objective = "retrieved_negatives"
  config.retrieved_negatives = dict(temperature=0.05, num_neighbours=8)
  config.switch_case = 0.15
  config.recipe = ("cards",)
  config.rounds.cards = config_lib.round_config(seeds=(42,))
  return config

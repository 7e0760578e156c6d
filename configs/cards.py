"""CARDS: case-switched positives and negatives retrieved from the text.

Wang et al., CARDS, SIGIR 2022 (arXiv:2206.02457): RoBERTa, whose tokenizer knows case,
with the settings that the authors publish with their code: base, learning rate 4e-5,
0.05 of the words switched, one of 64 neighbours; large, 7.5e-6, 0.1 and 8; batches of
512 (4 x 128). The search embeds by the mean over tokens. BERT's settings are not
published: they are SimCSE's, with RoBERTa-base's shares. Published averages of seven
STS sets: RoBERTa-base 78.83, RoBERTa-large 80.84.

python -m dcse_jax.main --config configs/cards.py:roberta-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/cards
"""

from dcse_jax import config as config_lib


def get_config(variant="roberta-base"):
  config = config_lib.simcse(variant)
  config.objective = "retrieved_negatives"
  config.retrieved_negatives = dict(
    temperature=0.05,
    num_neighbours=8 if variant.endswith("large") else 64,
    search_pooling="mean",
  )
  config.switch_case = 0.1 if variant.endswith("large") else 0.05
  rates = {"roberta-base": 4e-5, "roberta-large": 7.5e-6}
  config.learning_rate = rates.get(variant, config.learning_rate)
  config.recipe = ("cards",)
  config.rounds.cards = config_lib.round_config(seeds=(42,))
  return config

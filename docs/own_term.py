"""A config with a loss of its own: InfoNCE whose positives must win by a margin.

It follows Yang et al., 2019 (arXiv:1902.08564): the additive margin softmax. The margin is
taken from the cosine of an anchor with its own positive, so that a pair counts as solved
only if it is that much closer than every other.

python -m dcse_jax.main --config docs/own_term.py --config.text=my.txt \\
    --config.margin_info_nce.margin=0.2 --workdir runs/own_term

Registering the function is all that there is to do: its settings are fields of the config
under its name, and it can be part of any sum. What it may ask for is listed in
dcse_jax/objective/inputs; `python -m dcse_jax.compile` takes the same config.
"""

import jax
import optax

from dcse_jax import config as config_lib
from dcse_jax.losses.similarity import cosine_similarity
from dcse_jax.losses.similarity import own_columns
from dcse_jax.losses.terms import Range
from dcse_jax.losses.terms import term


# It comes before get_config, whose fields include the settings of every term.
@term(margin=Range(0, 1))
def margin_info_nce(
  anchors, all_positives, labels=None, *, temperature=0.05, margin=0.1
) -> jax.Array:
  """InfoNCE with an additive margin (arXiv:1902.08564).

  Args:
    anchors: embeddings of the first view, [b, D].
    all_positives: embeddings of the second view, [B, D].
    labels: which of the B rows is each anchor's own, [b]; by default the first b.
    temperature: divides the cosines.
    margin: is taken from the cosine of an anchor with its own positive.

  Returns:
    The loss of each anchor, [b], in nats.
  """
  cosines = cosine_similarity(anchors, all_positives)
  labels, is_own = own_columns(cosines, labels)
  logits = (cosines - margin * is_own) / temperature
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def get_config(variant="bert-base"):
  config = config_lib.simcse(variant)
  config.objective = "margin_info_nce"
  config.recipe = ("own",)
  config.rounds.own = config_lib.round_config(seeds=(42,))
  return config

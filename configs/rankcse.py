"""RankCSE: SimCSE whose student learns its teachers' ranking of each batch.

Liu et al., RankCSE, ACL 2023 (arXiv:2305.16726): InfoNCE, ranking consistency and
ranking distillation from two teachers, weighed 0.33 and 0.67, by ListMLE; ",list_net"
after the model distils by ListNet. Batch 128, learning rate 3e-5, BERT-base's teachers
and the weight of ListMLE come from a public reproduction. Its ListMLE sums over the 128
ranks of a list that the sentence itself heads, which is InfoNCE and 127 times the mean
over the others. Where the settings were not at hand (the other models), teachers are
the SimCSE models of both sizes, and the learning rate is SimCSE's.

python -m dcse_jax.main --config configs/rankcse.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/rankcse
"""

from dcse_jax import config as config_lib

_BERT = (
  "voidism/diffcse-bert-base-uncased-sts",
  "princeton-nlp/unsup-simcse-bert-large-uncased",
)
_ROBERTA = (
  "princeton-nlp/unsup-simcse-roberta-base",
  "princeton-nlp/unsup-simcse-roberta-large",
)


def get_config(variant="bert-base"):
  model, _, ranking = variant.partition(",")
  config = config_lib.simcse(model)
  config.batch_size = 128
  config.num_train_steps = 1_000_000 // config.batch_size
  objectives = {
    "": f"2 * info_nce + rank_consistency + {config.batch_size - 1} * list_mle",
    "list_net": "info_nce + rank_consistency + list_net",
  }
  config.recipe = ("rank",)
  config.rounds.rank = config_lib.round_config(
    seeds=(42,),
    teachers=_ROBERTA if model.startswith("roberta") else _BERT,
    teacher_weights=(0.33, 0.67),
    objective=config_lib.choose(ranking, objectives),
  )
  return config

"""SimCSE: a sentence and itself under another dropout mask; or NLI's triplets.

Gao, Yao and Chen, SimCSE, EMNLP 2021 (arXiv:2104.08821), Table 5 and appendix A:
batch and learning rate by model, temperature 0.05, length 32, one epoch of a
million Wikipedia sentences, STS-B dev every 125 steps. Published averages of
seven STS sets: BERT-base 76.25, RoBERTa-base 76.57. A model may be followed by

  ,mlm         a tenth of the loss of masked words is added
  ,supervised  275,601 triplets of premise, entailed and contradicting hypothesis, the
               last as hard negatives: batch 512, three epochs, 5e-5 (large: 1e-5). The
               projection stays in the model, as in the authors' script; BERT-base
               81.57, RoBERTa-base 82.52

Words of both views are masked, as in the authors' code.

python -m dcse_jax.main --config configs/simcse.py:bert-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/simcse
python -m dcse_jax.main --config configs/simcse.py:bert-base,supervised \\
    --config.text=nli_for_simcse.csv --config.sts=STS_FOLDER --workdir runs/supervised
"""

from dcse_jax import config as config_lib


def get_config(variant="bert-base"):
  model, _, extra = variant.partition(",")
  config = config_lib.simcse(model)
  objectives = {
    "": "info_nce",
    "mlm": "info_nce + 0.1 * masked_language_model",
    "supervised": "info_nce",
  }
  config.objective = config_lib.choose(extra, objectives)
  config.masked_language_model.masked_views = 2
  if extra == "supervised":
    config.columns = ("sent0", "sent1", "hard_neg")
    config.batch_size = 512
    config.num_train_steps = 3 * 275_601 // 512
    config.learning_rate = 1e-5 if model.endswith("large") else 5e-5
    config.keep_head = True
  config.recipe = ("simcse",)
  config.rounds.simcse = config_lib.round_config(seeds=(42,))
  return config

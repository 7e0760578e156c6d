"""Focal-InfoNCE: SimCSE whose easy negatives weigh less.

Hou and Li, Improving Contrastive Learning of Sentence Embeddings with
Focal-InfoNCE, EMNLP Findings 2023 (arXiv:2310.06918), Table 1: temperature 0.05,
margin 0.3; RoBERTa-base with batch 512 and learning rate 1e-5. Where the paper's
settings are not public (BERT, the large models), SimCSE's are taken. Published
averages: BERT-base 77.32, BERT-large 78.72, RoBERTa-base 77.58, RoBERTa-large
78.74.

python -m dcse_jax.main --config configs/focal.py:roberta-base \\
    --config.text=wiki1m.txt --config.sts=STS_FOLDER --workdir runs/focal
"""

from dcse_jax import config as config_lib


def get_config(variant="roberta-base"):
  config = config_lib.simcse(variant)
  config.objective = "focal_info_nce"
  config.focal_info_nce = dict(temperature=0.05, margin=0.3)
  config.recipe = ("focal",)
  config.rounds.focal = config_lib.round_config(seeds=(42,))
  return config

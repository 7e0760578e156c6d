"""Everything from your own text: words are counted, and an encoder goes on from there.

It is for a language or domain without a model. Words are counted first, as by
dcse_jax.words: who stands near whom, and how each is spelled. The tokens of a new BERT,
whose WordPiece tokenizer is trained on the text, start with these vectors
(config.token_vectors), so that it embeds nearly as they do before it learns. Then come

  student   which learns the counted embeddings of sentences, and soon is better: it has
            vectors for the pieces of words that are too rare to be counted
  second    DistillCSE's round on top (Xu et al., 2023, arXiv:2310.13499): the students
            are teachers, their similarities averaged and shuffled within groups

The variant "ladder" has the paper's other rounds, too (its Table 2), each from the best
student: plain (one teacher), group_p (shuffled) and averaged (three teachers).

python -m dcse_jax.main --config configs/scratch.py \\
    --config.text=my.txt --config.sts=STS_FOLDER --workdir runs/scratch

Without STS sets leave --config.sts out: the last parameters count. Few steps are right for
the student, whose embeddings of other text grow worse when it knows its own by heart: on
STS-B dev one of 300,000 Wikipedia sentences had 76.1 at the start, 78.0 and 78.2 after 100
and 200 steps, and 76.8 and 75.8 after 300 and 400; the counted words had 77.0.
"""

from dcse_jax import config as config_lib
from dcse_jax.eval import sts_sets


def get_config(variant=""):
  ladder = ("plain", "group_p", "averaged")
  between = config_lib.choose(variant, {"": (), "ladder": ladder})
  config = config_lib.default()
  config.test = sts_sets.SEVEN_TEST_SETS
  config.counted.words = config_lib.counted(width=512)  # As wide as the encoder.
  config.token_vectors = "words"
  config.encoder = dict(
    family="bert",
    vocab_size=16_000,
    hidden_size=512,
    num_layers=1,
    num_heads=8,
    intermediate_size=1024,
    initializer_range=0.01,
  )
  config.pooling = "mean"
  config.batch_size = 128
  config.log_every = 20
  config.eval_every = 25
  config.distillation.student_temperature = 0.02
  config.distillation.teacher_temperature = 0.01

  rounds = config.rounds
  rounds.student = config_lib.round_config(
    (1, 2, 3),
    teachers=("words",),
    objective="embedding_distillation",
    num_train_steps=200,
    learning_rate=5e-4,
    warmup_steps=50,
    dropout=0.0,
  )
  later = dict(seeds=(1, 2, 3), start="student", learning_rate=1e-4)
  later["num_train_steps"] = 100
  later["objective"] = "info_nce + distillation"
  one, all_ = ("student/1",), ("student",)
  group, none = (dict(distillation=dict(group_probability=p)) for p in (0.1, 0.0))
  rounds.plain = config_lib.round_config(teachers=one, **none, **later)
  rounds.group_p = config_lib.round_config(teachers=one, **group, **later)
  rounds.averaged = config_lib.round_config(teachers=all_, **none, **later)
  rounds.second = config_lib.round_config(teachers=all_, **group, **later)
  config.recipe = ("student", *between, "second")
  return config

"""Every field of a config, what it means, and its default.

A file of `configs/` begins with `default()` and sets what its paper sets. A
field that a run may leave out has a value that says so: "", 0 or ().
"""

from collections.abc import Mapping, Sequence
import inspect
import json
from typing import Any

import ml_collections
from ml_collections import FieldReference

from dcse_jax import losses
from dcse_jax.counting import static
from dcse_jax.eval import sts_sets
from dcse_jax.losses.terms import Weighted
from dcse_jax.runtime.errors import UserError

ConfigDict = ml_collections.ConfigDict


def choose(variant: str, variants: Mapping[str, Any]) -> Any:
  """Returns the value of a config file's variant.

  Raises:
    UserError: there is no such variant; the error names those there are.
  """
  if variant not in variants:
    raise UserError(
      f"unknown variant {variant!r} of the config: use one of "
      + ", ".join(name or "none" for name in variants)
    )
  return variants[variant]


def default() -> ConfigDict:
  """Makes a config with every field at its default, SimCSE's where it has one."""
  config = ConfigDict()

  # The encoder that training starts from: a folder or hub id, or ID@REVISION with
  # a branch, tag or commit, as teachers are named too. Empty: a new one of shape
  # `encoder`, with the tokenizer of the model that `tokenizer` names, such as a
  # teacher, or where that is empty with a WordPiece tokenizer trained on `text`.
  config.model = ""
  config.tokenizer = ""
  config.encoder = ConfigDict(
    dict(
      family="bert",  # Or another of `model.encoder.NEW`: "modernbert", ...
      vocab_size=8000,
      hidden_size=256,
      num_layers=4,
      num_heads=4,
      intermediate_size=1024,
      initializer_range=0.02,
    )
  )
  # Static models to be teachers by their names here, made by counting the words of `text`:
  # settings of `counting.static.count_words`, as in
  # config.counted.near = config_lib.counted(spelling_size=0).
  config.counted = ConfigDict()
  # The one of them whose vectors the tokens of a new BERT start with, so that its
  # embeddings are the counted ones' before it learns; as wide as the encoder.
  config.token_vectors = ""

  # How states become an embedding, if the model's folder does not say so
  # itself. "cls" trains through a projection that evaluation drops.
  config.pooling = "cls"
  # Keeps that projection, and the map to teachers of another width, in what is
  # evaluated and exported, as dense layers.
  config.keep_head = False
  config.num_layers = 0  # How many of the first layers are kept; 0 keeps all.

  # The rate of all of the encoder's dropouts in training, in [0, 1); -1 keeps the model's
  # own rates.
  config.dropout = -1.0

  # Text: .txt, .csv, .tsv or .jsonl, also .gz; .parquet or .arrow; a folder that
  # `datasets` saved; hf:NAME:SPLIT:COLUMN or tfds:NAME:SPLIT:FEATURE. A pattern such as
  # "data/*.txt", or a tuple of names: all of them, end to end. "b.parquet*0.3" is three
  # rows in ten of that file, the same in every run.
  # A table's columns: one, sentences; two, anchor and positive; more, hard negatives, of
  # which a row may have fewer. One column of them may hold lists.
  config.text = FieldReference("", field_type=object)  # A string, or a tuple of them.
  config.columns = ()
  # Texts before the sentences of each column, such as ("query: ", "passage: "), or names of
  # the model's own prompts; the last serves for further columns. The exported model has
  # them for queries and documents. () puts the model's default prompt before all.
  config.prompts = ()
  # The columns that say how well an anchor and its candidates match: one for the positive
  # and one for each hard negative, or lists.
  config.score_columns = ()
  # "sentences" makes a row of each sentence of a document, which a row of the text is, by
  # English rules; "sentences:de" by those of German. Lines of a paragraph are joined.
  config.split = ""
  # These make up sentences and scored pairs, in place of `text` and `sts`.
  config.synthetic_sentences = 0
  config.synthetic_pairs = 0
  config.max_length = 32  # Tokens of a training sentence.
  # For text of anchors and positives: hard negatives are mined for them by the model in
  # training, at the start and again after as many steps; 0 mines none. They are taken
  # from all positives, and from a corpus, a text, with its column if it is a table.
  config.mine_every = 0
  config.mine_num_negatives = 1
  # A negative's cosine is below the positive's by this share of its size, or more.
  config.mine_relative_margin = 0.05
  config.mine_corpus = ""
  config.mine_corpus_column = ""
  # For text of one column and a cased model: the positive is the sentence with the case
  # of the first letter of this share of its words switched. 0 switches none.
  config.switch_case = 0.0
  # Likewise for text of one column: anchor and positive are two spans of the sentence, each
  # with a share of its words between these two, such as (0.4, 0.8). Where an encoder tells
  # a sentence's two dropout masks from all other sentences at once, it still has to learn
  # what spans of one sentence have in common. () takes whole sentences.
  config.crop = ()

  # A folder of STS sets, NAME.tsv. The mean over `dev` chooses the best parameters;
  # `test` is scored once with these. Both name sets of the folder, transfer:DIR for
  # the mean over transfer tasks (of `dev` without their test sets), retrieval:DIR for
  # nDCG@10 of a collection (of `dev` its dev queries), or masked_words:FILE for the
  # share of masked words guessed. Names of sets count for nothing without the folder;
  # where nothing is left the last parameters are kept.
  config.sts = ""
  config.dev = ("STSB-dev",)
  config.test = ()

  # A weighted sum of terms, such as "info_nce + 0.1 * masked_language_model". The
  # settings of each term are config.TERM.SETTING; `dcse_jax/losses` documents them.
  config.objective = "info_nce"
  for term in losses.TERMS.values():
    config[term.name] = ConfigDict(dict(term.settings))

  # Widths, as in (768, 256, 64): terms compare embeddings cut to each, so that a user
  # may cut them, too. The loss is the sum over widths, with a weight each; 1 if there
  # are none. () compares whole embeddings alone.
  config.matryoshka = ()
  config.matryoshka_weights = ()

  # Embeds the text with every teacher once, into files of this type, instead of
  # running the teachers at every step: "float16" takes two bytes a sentence and
  # dimension. It pays if a sentence is seen more than once, or by several students.
  config.teacher_cache = ""

  # Optimisation: AdamW, with clipping by global norm.
  config.batch_size = 64
  # For texts of widely spread length: the rows of this many batches are sorted by length
  # together, so that those of a batch are alike and attention computes little padding;
  # the batches come in random order. 8 is enough; 0 lets any lengths meet. Batches of the
  # longest texts then hold more tokens than any mixed one, and need the memory.
  config.bucket_batches = 0
  # A batch is encoded in this many parts, one after the other: with the memory of one,
  # a third more work, and the gradient of the whole.
  config.microbatches = 1
  # A batch's rows are compared with the whole batch in this many blocks, one after the
  # other: memory for similarities falls from B * B to B * B / row_blocks. It pays from
  # some thousands of sentences.
  config.row_blocks = 1
  config.num_train_steps = 15_625
  config.learning_rate = 3e-5
  config.schedule = "linear"
  # Steps after which the learning rate would be 0; 0 stands for num_train_steps. If
  # there are more, training ends before the rate is 0.
  config.schedule_steps = 0
  config.warmup_steps = 0
  config.weight_decay = 0.0
  config.clip_norm = 1.0
  # This share of the elements of the layers' matrices, those that do least for
  # alignment and uniformity, is zero from the start and stays so.
  config.sparsity = 0.0
  config.dtype = "float32"  # For matrix products; everything else is float32.

  # A step whose loss or gradient is not finite changes nothing, and its batch is
  # written to ROUND/SEED/skipped.jsonl; with more of them a model's run stops.
  config.max_skipped_steps = 0

  # Trains a round's models as one program, each as it would be alone: pays where
  # one model leaves the device half idle.
  config.parallel_seeds = False

  # How the devices of all hosts are arranged. Batches are divided over both axes;
  # parameters, optimizer and teachers only over "fsdp". -1 takes the remaining devices.
  config.mesh = ConfigDict(dict(data=-1, fsdp=1))

  # The first step to trace for xprof, and the first not to, as in (10, 20), for each
  # model, or for those that train together, into ROUND/SEED/profile. None if empty.
  config.profile_steps = ()

  config.seed = 0  # For the whole recipe; every model's own is mixed in.
  config.log_every = 25
  # Where metrics go besides ROUND/SEED/metrics.jsonl: any of "tensorboard", "wandb" and
  # "trackio". The last two need dcse_jax[wandb] and [trackio], and heed these libraries'
  # own variables, such as WANDB_PROJECT, WANDB_MODE=offline and TRACKIO_DIR.
  config.logger = ("tensorboard",)
  config.eval_every = 125  # Evaluates and saves a checkpoint.
  # Ends a model's training after this many evaluations without a better score on `dev`;
  # 0 never does.
  config.patience = 0

  # The recipe: names of `rounds` in the order of training; the last is the
  # result. Each round trains one model a seed, from `model` again, and may set
  # for itself any field above but those of the whole recipe (`recipe.validate`).
  config.recipe = ()
  config.rounds = ConfigDict()
  return config


def simcse(variant: str) -> ConfigDict:
  """Makes `default` with a variant's encoder, for one epoch of a million sentences.

  Args:
    variant: "bert-base", "bert-large", "roberta-base" or "roberta-large"; batch
      size and learning rate are those that Gao et al., SimCSE, 2021, found for it
      (arXiv:2104.08821).
  """
  config = default()
  config.model, config.batch_size, config.learning_rate = choose(
    variant,
    {
      "bert-base": ("bert-base-uncased", 64, 3e-5),
      "bert-large": ("bert-large-uncased", 64, 1e-5),
      "roberta-base": ("roberta-base", 512, 1e-5),
      "roberta-large": ("roberta-large", 512, 3e-5),
    },
  )
  config.num_train_steps = 1_000_000 // config.batch_size
  config.test = sts_sets.SEVEN_TEST_SETS
  return config


def counted(**settings: Any) -> ConfigDict:
  """Makes the settings of a model that is counted, with all that a command may change.

  Args:
    **settings: those of `counting.static.count_words` that differ from its defaults.
  """
  known = inspect.signature(static.count_words).parameters.values()
  defaults = {
    each.name: each.default for each in known if each.kind == each.KEYWORD_ONLY
  }
  return ConfigDict({**defaults, **settings})


def round_config(
  seeds: Sequence[int],
  *,
  start: str = "",
  teachers: Sequence[str] = (),
  teacher_weights: Sequence[float] = (),
  **fields: Any,
) -> ConfigDict:
  """Makes one round of a recipe.

  Args:
    seeds: one model is trained for each.
    start: the earlier round whose best model it starts from; "" starts from the
      config's `model`.
    teachers: whose similarities are averaged: the name of an earlier round
      stands for all its models, ROUND/SEED for one of them, any other for a
      folder or hub id.
    teacher_weights: one for each name in `teachers`, shared among its models;
      all models weigh the same if empty.
    **fields: fields of the config that differ in this round.
  """
  return ConfigDict(
    dict(
      seeds=tuple(seeds),
      start=start,
      teachers=tuple(teachers),
      teacher_weights=tuple(teacher_weights),
      **fields,
    )
  )


def of_round(config: ConfigDict, name: str) -> ConfigDict:
  """Returns a round's config: the recipe's fields, overridden by its own."""
  merged = config.copy_and_resolve_references()
  with merged.unlocked():
    del merged.rounds
    if "text" in config.rounds[name]:
      del merged.text  # One may be a name, and the other several.
    merged.update(config.rounds[name])
  return merged


def mined_columns(config: ConfigDict) -> int:
  """Returns how many columns of hard negatives a round mines, 0 for none."""
  return config.mine_num_negatives if config.mine_every else 0


def terms(config: ConfigDict) -> tuple[Weighted, ...]:
  """Parses the objective of a round, with the settings of its terms.

  Raises:
    UserError: it is not a sum of known terms, each once.
  """
  try:
    return losses.parse(config.objective, config)
  except ValueError as error:
    raise UserError(f"objective={config.objective!r}: {error}") from error


def used(config: ConfigDict) -> dict[str, Any]:
  """Returns a round's fields, JSON; TERM.SETTING only for terms of its objective."""
  fields = _with_family(json.loads(config.to_json_best_effort()))
  settings = {name: fields.pop(name) for name in losses.TERMS}
  for each in terms(config):
    name = each.term.name
    fields |= {f"{name}.{key}": value for key, value in settings[name].items()}
  return fields


def _with_family(fields: dict[str, Any]) -> dict[str, Any]:
  """Moves the family beside the encoder: there was only one once."""
  encoder = dict(fields["encoder"])
  family = encoder.pop("family", "bert")
  return {**fields, "encoder": encoder, "encoder.family": family}


def defaults() -> dict[str, Any]:
  """Returns every field at its default, JSON, with the names that `used` gives."""
  fields = _with_family(json.loads(default().to_json_best_effort()))
  for name in losses.TERMS:
    settings = fields.pop(name)
    fields |= {f"{name}.{key}": value for key, value in settings.items()}
  return fields


def members(rounds: Mapping[str, ConfigDict], name: str) -> list[tuple[str, int]]:
  """Lists the models of a recipe that the name of a teacher stands for.

  Args:
    rounds: their configs, by name.
    name: a round's name, or ROUND/SEED.

  Returns:
    Pairs of round and seed; none for the name of an outside teacher.

  Raises:
    UserError: the round has no such seed.
  """
  name, _, seed = name.partition("/")
  if name not in rounds:
    return []
  seeds = tuple(rounds[name].seeds)
  if not seed:
    return [(name, each) for each in seeds]
  if seed not in map(str, seeds):
    raise UserError(f"teacher {name}/{seed}: round {name} has the seeds {seeds}")
  return [(name, int(seed))]

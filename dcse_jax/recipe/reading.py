"""Reads and checks everything that a run needs, before any training is compiled."""

from collections.abc import Mapping
import logging
import pathlib

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.data import text as text_lib
from dcse_jax.eval import registry
from dcse_jax.hub import folder
from dcse_jax.model import model as model_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.family import has_dropout
from dcse_jax.objective.inputs import Start
from dcse_jax.recipe import compose
from dcse_jax.recipe import counted
from dcse_jax.recipe import mining
from dcse_jax.recipe import start as start_lib
from dcse_jax.recipe import texts
from dcse_jax.recipe.inputs import Inputs
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers.embeddings import Embeddings
from dcse_jax.teachers.embeddings import is_embeddings
from dcse_jax.teachers.embeddings import open_embeddings

_log = logging.getLogger(__name__)

Rounds = Mapping[str, config_lib.ConfigDict]


def read(
  config: config_lib.ConfigDict, rounds: Rounds, workdir: pathlib.Path
) -> Inputs:
  """Reads all that a recipe needs, and checks that its parts fit together.

  Args:
    config: the recipe's; made-up text and sets are then named in it.
    rounds: the config of each round to run, in order; likewise.
    workdir: gets the token caches, and made-up text if no file is named.

  Raises:
    UserError: something is missing, cannot be read, or does not fit the rest.
  """
  if config.synthetic_sentences:
    texts.make_synthetic(config, rounds.values(), workdir / "data")
  if config.sts and not config.dev:
    raise UserError("config.dev is empty: name the set that chooses the best")
  dev = registry.read_named(config.dev, config.sts, dev=True)
  test = registry.read_named(config.test, config.sts, dev=False)
  if not dev:
    _log.info("no STS sets: the last parameters of each model are kept")
  for named in (*dev, *test):
    _check_evaluator(named, rounds)
  # Texts come before the encoder, which takes longest to load.
  asked = dict.fromkeys(map(texts.source_of, rounds.values()))
  # Tokenizers and counted words are made of whole sentences.
  whole = texts.source_of(config)._replace(crop=())
  if not config.model or config.counted:
    asked[whole] = None
  # A finished recipe reads its text, too, and leaves the folder of caches as it is.
  read_texts = {source: texts.read(source, workdir) for source in asked}
  if config.model:
    start = start_lib.load(config)
  else:
    columns = read_texts[whole].columns
    start = start_lib.make(config, columns, workdir / "cache")
  counted_text = read_texts.get(whole)
  outside: dict[str, model_lib.Model] = {}
  if name := config.token_vectors:
    outside[name] = _load_teacher(name, config, counted_text, workdir)
    start = counted.begin(start, name, outside[name])
  columns = max(len(text.columns) for text in read_texts.values())
  if len(config.prompts) > columns:
    raise UserError(
      f"config.prompts={tuple(config.prompts)}: the text has {columns} columns, and there "
      "is a prompt for each at most"
    )
  start = start_lib.with_prompts(start, config.prompts, config.model or "a new encoder")
  embeddings: dict[str, Embeddings] = {}
  inputs = Inputs(config, workdir, start, dev, test, outside, embeddings, read_texts)
  for name, round_config in rounds.items():
    _check_round(name, round_config, rounds, inputs)
    for teacher in round_config.teachers:
      if config_lib.members(rounds, teacher):
        continue
      if is_embeddings(teacher):
        if teacher not in embeddings:
          embeddings[teacher] = open_embeddings(teacher, workdir / "cache")
        _check_width(teacher, embeddings[teacher].width, round_config, inputs)
        why = "is a file of embeddings of first columns"
        _check_one_column(teacher, why, round_config, inputs)
        inputs.example_rows(teacher, round_config)
        continue
      if teacher not in outside:
        outside[teacher] = _load_teacher(teacher, config, counted_text, workdir)
      _check_teacher(teacher, round_config, inputs)
  return inputs


def _load_teacher(
  name: str,
  config: config_lib.ConfigDict,
  text: text_lib.Text | None,
  workdir: pathlib.Path,
) -> model_lib.Model:
  """Loads a teacher that no round trains, or counts it from the recipe's text."""
  if name in config.counted:
    settings = config.counted[name].to_dict()
    return counted.make(name, settings, text.columns, workdir / "cache")
  model = folder.load(name, default_pooling=config.pooling)
  _log.info("teacher %s: pooling %r", name, model.pooling)
  if all(prompt in model.prompts for prompt in config.prompts):
    model = start_lib.with_prompts(model, config.prompts, name)
  return model


def _check_evaluator(named: registry.Named, rounds: Rounds) -> None:
  # A trained part has the same name as the field of `Model`.
  if "language_model" not in named.evaluator.required:
    return
  score = next(iter(named.columns))
  lacking = [name for name in rounds if not _trains_language_model(rounds[name])]
  if len(lacking) == len(rounds):
    raise UserError(
      f"{score} is measured by a language-model head, which no round trains: add "
      "masked_language_model to an objective, or name another"
    )
  for name in lacking:
    _log.info("round %s has no %s", name, score)


def _trains_language_model(round_config: config_lib.ConfigDict) -> bool:
  return "masked_logits" in losses.inputs_of(config_lib.terms(round_config))


def _check_round(
  name: str, round_config: config_lib.ConfigDict, rounds: Rounds, inputs: Inputs
) -> None:
  model = inputs.config.model or "a new encoder"
  if round_config.max_length > inputs.start.config.max_tokens:
    raise UserError(
      f"max_length={round_config.max_length}, but {model} takes "
      f"{inputs.start.config.max_tokens} tokens at most"
    )
  if fault := pooling_lib.fault(inputs.start.config, inputs.start.pooling):
    raise UserError(f"round {name}: {model}: {fault}")
  tokens = inputs.tokens(round_config)
  mining.check(name, round_config, tokens, inputs.corpus(round_config))
  has_language_model = inputs.start.language_model is not None
  if round_config.start:
    has_language_model = _trains_language_model(rounds[round_config.start])
  start = Start(
    name=round_config.start or model,
    pooled_size=inputs.start.pooled_size,
    has_mask_token=inputs.start.tokenizer.mask_token_id is not None,
    has_language_model=has_language_model,
    columns=len(tokens.tokens) + config_lib.mined_columns(round_config),
    has_scores=tokens.scores is not None,
  )
  objective = compose.make_objective(round_config, inputs.start)
  if problem := objective.validate(start):
    raise UserError(f"round {name}: {problem}")
  if start.has_scores and not objective.asks_for(("scores",)):
    raise UserError(
      f"round {name}: no term of objective={objective.text!r} takes scores: use one that "
      "does, such as score_distillation, or leave score_columns out"
    )
  has_pairs = start.columns > 1 or not objective.asks_for(("positives",))
  if not has_pairs and not has_dropout(objective.config):
    _log.warning(
      "round %s: %s has no dropout, so that both views of a sentence are the same: "
      "name pairs, or set config.dropout, such as 0.1",
      name,
      model,
    )
  every_column = start.columns > 1 and objective.asks_for(("teacher_positives",))
  if every_column and round_config.teacher_cache:
    raise UserError(
      f"round {name}: teacher_cache={round_config.teacher_cache!r} keeps embeddings of "
      "anchors, and a term wants those of every column: leave it out"
    )
  rows = tokens.max_batch_size
  if rows < round_config.batch_size:
    raise UserError(
      f"{round_config.text} holds {rows} distinct rows that can meet in a batch, fewer "
      f"than batch_size={round_config.batch_size}: use more text or smaller batches"
    )


def _check_width(
  name: str, width: int, round_config: config_lib.ConfigDict, inputs: Inputs
) -> None:
  asked = losses.inputs_of(config_lib.terms(round_config))
  ours = inputs.start.pooled_size
  if "predictions" in asked and width != ours:
    raise UserError(
      f"teacher {name} is {width} wide and the student {ours}: predictions are of "
      "embeddings as wide as the student's; use another"
    )


def _check_one_column(
  name: str, why: str, round_config: config_lib.ConfigDict, inputs: Inputs
) -> None:
  """Refuses a teacher of first columns only where a term compares others, too."""
  asked = losses.inputs_of(config_lib.terms(round_config))
  if "teacher_positives" in asked and len(inputs.tokens(round_config).tokens) > 1:
    raise UserError(
      f"teacher {name} {why}, and a term wants it to embed every column: name another, "
      "or a text of one column"
    )


def _check_teacher(
  name: str, round_config: config_lib.ConfigDict, inputs: Inputs
) -> None:
  teacher = inputs.outside[name]
  if fault := pooling_lib.fault(teacher.config, teacher.pooling):
    raise UserError(f"teacher {name}: {fault}")
  _check_width(name, teacher.embedding_size, round_config, inputs)
  if not inputs.reads_alike(teacher):
    why = "has another tokenizer or prompt than the student"
    _check_one_column(name, why, round_config, inputs)
    _log.info("teacher %s: another tokenizer or prompt, with ids of its own", name)
    inputs.teacher_tokens(name, round_config)
  elif teacher.config.max_tokens < round_config.max_length:
    raise UserError(
      f"teacher {name} takes {teacher.config.max_tokens} tokens at most: "
      "lower config.max_length"
    )

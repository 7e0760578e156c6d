"""All that a run reads, read and checked before any training is compiled."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import logging
import pathlib

import jax

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.data import synthetic
from dcse_jax.data import text as text_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.data.switch_case import switch_case
from dcse_jax.eval import registry
from dcse_jax.hub import folder
from dcse_jax.hub import wordpiece
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.family import has_dropout
from dcse_jax.objective.inputs import Start
from dcse_jax.recipe import compose
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import files
from dcse_jax.runtime import processes
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)


def _once(method):
  """functools.cache of a method, but for as long as its object lives."""

  @functools.wraps(method)
  def call(self, *arguments):
    known = self.__dict__.setdefault("_known", {})
    key = (method.__name__, *arguments)
    if key not in known:
      known[key] = method(self, *arguments)
    return known[key]

  return call


def new_shape(
  config: config_lib.ConfigDict, *, vocab_size: int, pad_token_id: int
) -> encoder_lib.EncoderConfig:
  """Returns the shape of a recipe's new encoder, for a tokenizer's vocabulary."""
  fields = {"family": "bert", **config.encoder, "vocab_size": vocab_size}
  make = encoder_lib.NEW[fields.pop("family")]
  return make(max_tokens=config.max_length, pad_token_id=pad_token_id, **fields)


class Inputs:
  """Text, evaluators, the encoder to start from and outside teachers of a recipe.

  Args:
    config: of the recipe.
    rounds: the config of each round to run, in order.
    workdir: gets the token caches and whatever is made for want of a file.

  Attributes:
    start: the encoder that rounds start from.
    dev: the evaluators that choose the best parameters; none where the config names
      neither a folder of sets nor anything else.
    test: those that score the best parameters once.

  Raises:
    UserError: anything missing, unreadable, or unfit for what else there is.
  """

  def __init__(
    self,
    config: config_lib.ConfigDict,
    rounds: Mapping[str, config_lib.ConfigDict],
    workdir: pathlib.Path,
  ):
    self._config, self._rounds, self._workdir = config, rounds, workdir
    if config.synthetic_sentences:
      self._write_synthetic(rounds)
    self._read_evaluators()
    # Before the encoder, which takes longest to load.
    for round_config in rounds.values():
      self._text(round_config.text, tuple(round_config.columns))
    self.start = self._load_start() if config.model else self._new_model()
    for name, round_config in rounds.items():
      self._check_round(name, round_config)
      for teacher in round_config.teachers:
        if not config_lib.members(rounds, teacher):
          self._check_teacher(teacher, round_config)

  def _write_synthetic(self, rounds) -> None:
    """Makes up the text and the sets, and names them in every config."""
    config, data = self._config, self._workdir / "data"

    def make():
      sentences = synthetic.sentences(config.synthetic_sentences, seed=config.seed)
      files.write_text(data / "corpus.txt", "\n".join(sentences) + "\n")
      pairs = synthetic.graded_pairs(config.synthetic_pairs, seed=config.seed)
      half = len(pairs) // 2
      for name, part in (("dev", pairs[:half]), ("test", pairs[half:])):
        lines = (f"{score}\t{a}\t{b}\n" for score, a, b in part)
        files.write_text(data / "sts" / f"{name}.tsv", "".join(lines))

    processes.first_makes(data, make)
    config.sts = str(data / "sts")
    for each in (config, *rounds.values()):
      each.text = str(data / "corpus.txt")

  def _read_evaluators(self) -> None:
    config = self._config
    if config.sts and not config.dev:
      raise UserError("config.dev is empty: name the set that chooses the best")
    self.dev = registry.read_named(config.dev, config.sts, dev=True)
    self.test = registry.read_named(config.test, config.sts, dev=False)
    if not self.dev:
      _log.info("no STS sets: the last parameters of each model are kept")
    for each in (*self.dev, *self.test):
      # A part of what is trained is called as it is in a model.
      if "language_model" in each.evaluator.required:
        lacking = [r for r in self._rounds if not self._has_language_model(r)]
        if len(lacking) == len(self._rounds):
          raise UserError(
            f"{next(iter(each.columns))} is measured by a language-model head, which no "
            "round trains: add masked_language_model to an objective, or name another"
          )
        for name in lacking:
          _log.info("round %s has no %s", name, next(iter(each.columns)))

  @_once
  def _text(self, source: str, columns: tuple[str, ...]) -> text_lib.Text:
    if not source:
      raise UserError("give --config.text=FILE, the text to train on")
    path = source
    if not source.startswith("tfds:"):
      path = str(files.user_path(source))
    text = text_lib.read_text(path, columns)
    about = f"{source}: {len(text.columns[0])} rows"
    if text.empty_rows:
      about += f", {text.empty_rows} empty left out"
    if text.cut_rows:
      about += f", {text.cut_rows} cut at {text_lib.MAX_CHARACTERS} characters"
    _log.info("%s", about)
    return text

  def _load_start(self) -> model_lib.Model:
    config = self._config
    model = folder.load(
      config.model,
      default_pooling=config.pooling,
      num_layers=config.num_layers or None,
    )
    if model.head or model.truncate_dim:
      _log.info("%s: its head and truncate_dim are left out of training", config.model)
      model = dataclasses.replace(model, head=None, truncate_dim=None)
    if model.prompt:
      _log.info("%s: every sentence follows its prompt, %r", config.model, model.prompt)
    if model.pooling != config.pooling:
      _log.info("%s: pooling %r, its own", config.model, model.pooling)
    return model

  def _new_model(self) -> model_lib.Model:
    """A random encoder with a tokenizer trained on the text."""
    config = self._config
    text = self._text(config.text, tuple(config.columns))
    vocab_size = config.encoder.vocab_size
    key = tokens_lib.content_key(text.columns, "wordpiece", vocab_size)
    path = self._workdir / "cache" / f"tokenizer-{key}"

    def make():
      if path.exists() and not digests_lib.find_damage(path):
        return
      trained = wordpiece.train_wordpiece(
        [sentence for column in text.columns for sentence in column],
        vocab_size=vocab_size,
      )
      with files.whole(path) as beside:
        with files.foreign_errors():
          trained.save_pretrained(beside)
        digests_lib.write(beside)

    processes.first_makes(path.parent, make)
    tokenizer = folder.load_tokenizer(path)
    shape = new_shape(
      config, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    params = encoder_lib.init_params(shape, jax.random.key(config.seed))
    return model_lib.Model(
      config=shape,
      params=jax.device_get(params),
      tokenizer=tokenizer,
      pooling=config.pooling,
      normalize=False,
      max_length=config.max_length,
    )

  def _check_round(self, name: str, round_config) -> None:
    model = self._config.model or "a new encoder"
    if round_config.max_length > self.start.config.max_tokens:
      raise UserError(
        f"max_length={round_config.max_length}, but {model} takes "
        f"{self.start.config.max_tokens} tokens at most"
      )
    if fault := pooling_lib.fault(self.start.config, self.start.pooling):
      raise UserError(f"round {name}: {model}: {fault}")
    tokens = self.tokens(round_config)
    start = Start(
      name=round_config.start or model,
      pooled_size=self.start.pooled_size,
      has_mask_token=self.start.tokenizer.mask_token_id is not None,
      has_language_model=self._has_language_model(round_config.start),
      columns=len(tokens.tokens),
    )
    objective = compose.make_objective(round_config, self.start)
    if problem := objective.validate(start):
      raise UserError(f"round {name}: {problem}")
    if objective.has_views and start.columns == 1 and not has_dropout(objective.config):
      _log.warning(
        "round %s: %s has no dropout, so that both views of a sentence are the same: "
        "name pairs, or set the dropouts in a copy of its config.json",
        name,
        model,
      )
    rows = tokens.max_batch_size
    if rows < round_config.batch_size:
      raise UserError(
        f"{round_config.text} holds {rows} distinct rows that can meet in a "
        f"batch, fewer than batch_size={round_config.batch_size}: use more "
        "text or smaller batches"
      )

  def _has_language_model(self, start: str) -> bool:
    """Whether a round's start, another round or "", has such a head."""
    if not start:
      return self.start.language_model is not None
    return "masked_logits" in losses.inputs_of(config_lib.terms(self._rounds[start]))

  @_once
  def outside(self, name: str) -> model_lib.Model:
    """A teacher that no round trains: a folder or hub id."""
    model = folder.load(name, default_pooling=self._config.pooling)
    _log.info("teacher %s: pooling %r", name, model.pooling)
    return model

  def _check_teacher(self, name: str, round_config) -> None:
    teacher = self.outside(name)
    if fault := pooling_lib.fault(teacher.config, teacher.pooling):
      raise UserError(f"teacher {name}: {fault}")
    if teacher.head or teacher.truncate_dim:
      raise UserError(
        f"teacher {name} has a dense layer or truncate_dim after its pooling, which a "
        "teacher may not: remove it from a copy of the folder"
      )
    asked = losses.inputs_of(config_lib.terms(round_config))
    width = self.start.pooled_size
    if "predictions" in asked and teacher.pooled_size != width:
      raise UserError(
        f"teacher {name} is {teacher.pooled_size} wide and the student {width}: "
        "predictions are of embeddings as wide as the student's; use another"
      )
    if self._reads_what_the_student_does(teacher):
      if teacher.config.max_tokens < round_config.max_length:
        raise UserError(
          f"teacher {name} takes {teacher.config.max_tokens} tokens at most: "
          "lower config.max_length"
        )
    else:
      _log.info("teacher %s: another tokenizer or prompt, with ids of its own", name)
      self.teacher_tokens(teacher, round_config)

  def _reads_what_the_student_does(self, teacher: model_lib.Model) -> bool:
    ours, theirs = self.start, teacher
    if ours.tokenizer.get_vocab() != theirs.tokenizer.get_vocab():
      return False
    return model_lib.text_state(ours) == model_lib.text_state(theirs)

  def teacher_tokens(
    self, teacher: model_lib.Model, round_config: config_lib.ConfigDict
  ) -> tokens_lib.TokenCache:
    """What a teacher reads: the round's tokens, or the same rows by its tokenizer.

    A tokenizer of its own may make more tokens of a sentence; these are cut at
    the round's max_length, or at what the teacher takes if that is less.
    """
    tokens = self.tokens(round_config)
    if self._reads_what_the_student_does(teacher):
      return tokens
    max_length = min(round_config.max_length, teacher.config.max_tokens)
    return self._tokenize(
      (self.sentences(round_config, range(len(tokens))),),
      teacher,
      max_length,
      keep_repeats=True,
    )

  def sentences(
    self, round_config: config_lib.ConfigDict, rows: Sequence[int]
  ) -> list[str]:
    """The first column's sentences by example id."""
    column = self._text(round_config.text, tuple(round_config.columns)).columns[0]
    source_rows = self.tokens(round_config).source_rows
    return [column[source_rows[row]] for row in rows]

  def tokens(self, round_config: config_lib.ConfigDict) -> tokens_lib.TokenCache:
    """The tokenised text of a round."""
    return self._tokens(
      round_config.text,
      tuple(round_config.columns),
      round_config.max_length,
      round_config.switch_case,
    )

  @_once
  def _tokens(self, source, columns, max_length, switched):
    text = self._text(source, columns).columns
    if switched:
      text = self._with_switched(text, switched)
    cache = self._tokenize(text, self.start, max_length)
    if cache.dropped:
      _log.info(
        "%s: %d rows left out whose tokens repeat an earlier row's",
        source,
        cache.dropped,
      )
    if cache.contradicting:
      _log.info(
        "%s: %d rows left out whose hard negative is their own anchor or positive",
        source,
        cache.contradicting,
      )
    if not len(cache):
      raise UserError(
        f"{source}: the hard negative of every row is its own anchor or positive: name "
        "other columns"
      )
    if twins := cache.num_twins:
      _log.info(
        "%s: %d rows share a sentence with another; never in one batch",
        source,
        twins,
      )
    return cache

  def _with_switched(self, columns, share: float):
    """A second column for the first, with the case of some words switched."""
    if len(columns) > 1:
      raise UserError(
        f"switch_case={share:g} makes the positives of a single column, and the text "
        f"has {len(columns)}: set switch_case=0, or name one column"
      )
    upper, lower = self.start.tokenizer(["Case CASE", "case case"])["input_ids"]
    if upper == lower:
      raise UserError(
        f"switch_case={share:g}: the tokenizer of {self._config.model or 'the run'} is "
        "uncased and would undo it; use a cased model such as roberta-base"
      )
    seed = self._config.seed
    return (*columns, switch_case(columns[0], share, seed=seed))

  def _tokenize(self, columns, model, max_length, keep_repeats=False):
    return tokens_lib.build_token_cache(
      self._workdir / "cache",
      columns,
      tokenize=functools.partial(model.tokenize, max_length=max_length),
      tokenizer_state=model_lib.text_state(model),
      max_length=max_length,
      pad_token_id=model.config.pad_token_id,
      vocab_size=model.config.vocab_size,
      keep_repeats=keep_repeats,
      show_progress=len(columns[0]) > 100_000,
    )

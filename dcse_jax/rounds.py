"""The self-training recipe: rounds of training, each on the models of earlier ones.

Everything that a run reads is read and checked before anything is compiled. A
finished model leaves `WORKDIR/ROUND/SEED/result.json`, written last; the same
command run again goes on where it was.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax import encoder as encoder_lib
from dcse_jax import folder
from dcse_jax import losses
from dcse_jax import optimizer
from dcse_jax import sharding
from dcse_jax import sts
from dcse_jax import synthetic
from dcse_jax import teachers as teachers_lib
from dcse_jax import tokenizer as tokenizer_lib
from dcse_jax import train as train_lib
from dcse_jax import train_step
from dcse_jax.data import batches as batches_lib
from dcse_jax.data import text as text_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.encode import encode_tokens
from dcse_jax.errors import UserError
from dcse_jax.files import write_json

_log = logging.getLogger(__name__)

# Sentences whose token ids decide whether a teacher reads what the student does.
_PROBE = 200


def run(config: config_lib.ConfigDict, workdir: str) -> list[dict[str, Any]]:
  """Runs the recipe, or what is left of it.

  Args:
    config: as `config.default` describes.
    workdir: holds all that the run writes.

  Returns:
    A row a model in order of training: name, round, seed, dev, test; the last
    two mean Spearman in percent, None without such sets.

  Raises:
    UserError: bad input, found before any compilation.
  """
  config_lib.check(config)
  return Recipe(config, pathlib.Path(workdir)).run()


class Recipe:
  """One config in one workdir, with its inputs read and checked."""

  def __init__(self, config: config_lib.ConfigDict, workdir: pathlib.Path):
    self.config, self.workdir = config, workdir
    self.mesh = sharding.make_mesh()
    self._claim_workdir()
    if config.synthetic_sentences:
      self._write_synthetic()
    self.rounds = {
        name: config_lib.of_round(config, name) for name in config.rounds
    }
    self.sets = self._read_sets()
    # What the rounds will need, so that whatever is wrong with it shows now.
    for round_config in self.rounds.values():
      text = self._text(round_config.text, tuple(round_config.columns))
      if len(text.columns[0]) < round_config.batch_size:
        raise UserError(
            f"{round_config.text} holds {len(text.columns[0])} rows, fewer than "
            f"batch_size={round_config.batch_size}: use more text or smaller "
            "batches"
        )
    self.start = self._load_start()
    for name, round_config in self.rounds.items():
      for teacher in round_config.teachers:
        if teacher not in self._earlier(name):
          self._check_teacher(self._outside(teacher), teacher, round_config)

  # --- Inputs ---------------------------------------------------------------

  def _claim_workdir(self) -> None:
    """Refuses a workdir that another config made."""
    path = self.workdir / "config.json"
    ours = json.loads(self.config.to_json_best_effort())
    if path.exists():
      theirs = json.loads(path.read_text())
      names = sorted(
          name
          for name in ours.keys() | theirs.keys()
          if ours.get(name) != theirs.get(name)
      )
      if names:
        raise UserError(
            f"{self.workdir} belongs to a run with another config (differing: "
            f"{', '.join(names)}): name another --workdir or restore the values"
        )
    write_json(path, ours)

  def _write_synthetic(self) -> None:
    config, data = self.config, self.workdir / "data"
    data.joinpath("sts").mkdir(parents=True, exist_ok=True)
    sentences = synthetic.sentences(
        config.synthetic_sentences, seed=config.seed
    )
    data.joinpath("corpus.txt").write_text("\n".join(sentences) + "\n")
    pairs = synthetic.graded_pairs(config.synthetic_pairs, seed=config.seed)
    half = len(pairs) // 2
    for name, part in (("dev", pairs[:half]), ("test", pairs[half:])):
      data.joinpath("sts", f"{name}.tsv").write_text(
          "".join(f"{score}\t{a}\t{b}\n" for score, a, b in part)
      )
    config.text, config.sts = str(data / "corpus.txt"), str(data / "sts")

  def _read_sets(self) -> dict[str, sts.StsSet]:
    config = self.config
    if not config.sts:
      _log.info("no STS sets: the last parameters of each model are kept")
      return {}
    if not config.dev:
      raise UserError("config.dev is empty: name the set that chooses the best")
    return sts.read_sts(config.sts, (*config.dev, *config.test))

  @functools.cache
  def _text(self, source: str, columns: tuple[str, ...]) -> text_lib.Text:
    if not source:
      raise UserError("give --config.text=FILE, the text to train on")
    text = text_lib.read_text(source, columns)
    empty = f", {text.empty_rows} empty left out" if text.empty_rows else ""
    _log.info("%s: %d rows%s", source, len(text.columns[0]), empty)
    return text

  def _load_start(self) -> folder.Model:
    config = self.config
    if config.model:
      model = folder.load(
          config.model,
          default_pooling=config.pooling,
          num_layers=config.num_layers or None,
          revision=config.revision or None,
      )
      if model.pooling != config.pooling:
        _log.info("%s: pooling %r, its own", config.model, model.pooling)
      if config.max_length > model.config.max_tokens:
        raise UserError(
            f"max_length={config.max_length}, but {config.model} takes "
            f"{model.config.max_tokens} tokens at most"
        )
      return model
    return self._new_model()

  def _new_model(self) -> folder.Model:
    """A random encoder with a tokenizer trained on the text."""
    config = self.config
    path = self.workdir / "tokenizer"
    if not path.exists():
      text = self._text(config.text, tuple(config.columns))
      trained = tokenizer_lib.train_wordpiece(
          [sentence for column in text.columns for sentence in column],
          vocab_size=config.encoder.vocab_size,
      )
      beside = path.with_name(".tokenizer.tmp")
      trained.save_pretrained(beside)
      beside.rename(path)
    tokenizer = folder.load_tokenizer(path)
    shape = encoder_lib.EncoderConfig(
        model_type="bert",
        max_positions=max(512, config.max_length),
        type_vocab_size=2,
        pad_token_id=tokenizer.pad_token_id,
        **{**config.encoder, "vocab_size": len(tokenizer)},
    )
    if shape.hidden_size % shape.num_heads:
      raise UserError(
          f"encoder.hidden_size={shape.hidden_size} does not divide among "
          f"encoder.num_heads={shape.num_heads}"
      )
    params = encoder_lib.init_params(shape, jax.random.key(config.seed))
    return folder.Model(
        config=shape,
        params=jax.device_get(params),
        tokenizer=tokenizer,
        pooling=config.pooling,
        normalize=False,
        max_length=config.max_length,
    )

  @functools.cache
  def _outside(self, name: str) -> folder.Model:
    return folder.load(name)

  def _check_teacher(self, teacher, name, round_config) -> None:
    """A teacher reads the student's token ids: they must mean the same to it."""
    if teacher.config.max_tokens < round_config.max_length:
      raise UserError(
          f"teacher {name} takes {teacher.config.max_tokens} tokens at most: "
          "lower config.max_length"
      )
    text = self._text(round_config.text, tuple(round_config.columns))
    probe = text.columns[0][:_PROBE]
    ours, theirs = (
        folder.tokenize(tokenizer, probe, round_config.max_length)
        for tokenizer in (self.start.tokenizer, teacher.tokenizer)
    )
    same_vocab = teacher.tokenizer.get_vocab() == self.start.tokenizer.get_vocab()
    if not same_vocab or ours != theirs:
      raise UserError(
          f"teacher {name} has another vocabulary than the student, whose token "
          "ids it is fed: name a teacher with the student's tokenizer"
      )

  def _earlier(self, name: str) -> list[str]:
    names = list(self.rounds)
    return names[: names.index(name)]

  # --- Training -------------------------------------------------------------

  def run(self) -> list[dict[str, Any]]:
    """Trains what is not trained yet; writes results.json and export/."""
    for name, round_config in self.rounds.items():
      todo = [s for s in round_config.seeds if not self._result(name, s)]
      if todo:
        self._run_round(name, round_config, todo)
    rows = [
        self._result(name, seed)
        for name, round_config in self.rounds.items()
        for seed in round_config.seeds
    ]
    self._export(list(self.rounds)[-1])
    columns = ("name", "round", "seed", "dev", "test")
    models = [{key: row[key] for key in columns} for row in rows]
    write_json(self.workdir / "results.json", {"models": models})
    print(_format_results(rows, self.config.test))
    print(f"best model of the last round: {self.workdir / 'export'}")
    return models

  def _folder(self, name: str, seed: int) -> pathlib.Path:
    return self.workdir / name / str(seed)

  def _result(self, name: str, seed: int) -> dict[str, Any] | None:
    path = self._folder(name, seed) / "result.json"
    return json.loads(path.read_text()) if path.exists() else None

  def _best(self, name: str) -> pathlib.Path:
    """The folder of a finished round's best model on dev."""
    seeds = self.rounds[name].seeds
    results = [self._result(name, seed) for seed in seeds]
    scores = [result["dev"] or 0.0 for result in results]
    return self._folder(name, seeds[int(np.argmax(scores))])

  def _run_round(self, name, config, seeds: Sequence[int]) -> None:
    start = self.start
    if config.start:
      start = folder.load(
          str(self._best(config.start) / "model"), default_pooling=config.pooling
      )
    cache = self._tokens(config)
    loss_fn, teacher_params = self._objective(config, start)
    schedule = optimizer.make_schedule(
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        num_steps=config.num_train_steps,
    )
    trainer = train_lib.make_trainer(
        loss_fn,
        optimizer.make_optimizer(
            schedule,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        ),
        schedule,
        mesh=self.mesh,
        teacher_params=teacher_params,
        batch_size=config.batch_size,
        num_steps=config.num_train_steps,
        log_every=config.log_every,
        eval_every=config.eval_every,
    )
    dev = {key: self.sets[key] for key in config.dev} if self.sets else {}
    score_dev = _make_scorer(start, dev)

    def evaluate(params):
      scores = score_dev(params["encoder"])
      named = {f"eval/{key.lower()}_spearman": v for key, v in scores.items()}
      return {**named, "score": float(np.mean(list(scores.values())))}

    for seed in seeds:
      rng = jax.random.fold_in(jax.random.key(config.seed), seed)
      init_rng, train_rng = jax.random.split(rng)
      if config.objective == "masked_language_model":
        params = train_step.init_language_model_params(
            start.params, start.config, init_rng
        )
      else:
        params = train_step.init_sentence_params(
            start.params, start.config, start.pooling, init_rng
        )
      best = train_lib.train(
          trainer,
          params,
          batches_lib.make_batches(
              cache,
              batch_size=config.batch_size,
              seed=_data_seed(config.seed, seed),
              host=jax.process_index(),
              num_hosts=jax.process_count(),
          ),
          rng=train_rng,
          evaluate=evaluate if dev else None,
          folder=self._folder(name, seed),
          name=_model_name(name, seed, config.seeds),
      )
      self._finish(name, seed, config, start, best["encoder"])

  def _finish(self, name, seed, config, start, params) -> None:
    """Writes a model's folder and, last, its result."""
    scores = _make_scorer(start, self.sets)(params)
    result = dict(
        name=_model_name(name, seed, config.seeds),
        round=name,
        seed=seed,
        dev=_mean(scores, config.dev),
        test=_mean(scores, config.test),
        sets=scores,
    )
    path = self._folder(name, seed)
    model = dataclasses.replace(start, params=jax.device_get(params))
    folder.save(model, path / "model")
    write_json(path / "result.json", result)

  def _tokens(self, config) -> tokens_lib.TokenCache:
    text = self._text(config.text, tuple(config.columns))
    tokenizer = self.start.tokenizer
    cache = tokens_lib.build_token_cache(
        self.workdir / "cache",
        text.columns,
        tokenize=functools.partial(
            folder.tokenize, tokenizer, max_length=config.max_length
        ),
        tokenizer_state=tokenizer.backend_tokenizer.to_str(),
        max_length=config.max_length,
        pad_token_id=self.start.config.pad_token_id,
        vocab_size=self.start.config.vocab_size,
        show_progress=len(text.columns[0]) > 100_000,
    )
    if cache.dropped:
      _log.info("%d repeated rows left out: false negatives", cache.dropped)
    twins = batches_lib.count_twins(cache)
    if twins:
      _log.info(
          "%d rows share a sentence with another: never in one batch", twins
      )
    if len(cache) < config.batch_size:
      raise UserError(
          f"{config.text} holds {len(cache)} distinct rows, fewer than "
          f"batch_size={config.batch_size}: use more text or smaller batches"
      )
    return cache

  def _objective(self, config, start) -> tuple[Callable, Any]:
    dtype = np.dtype(config.dtype)
    if config.objective == "masked_language_model":
      tokenizer = start.tokenizer
      if tokenizer.mask_token_id is None:
        raise UserError("the tokenizer has no mask token: it cannot pretrain")
      loss_fn = functools.partial(
          train_step.language_model_loss,
          config=start.config,
          dtype=dtype,
          mask_token_id=tokenizer.mask_token_id,
          special_token_ids=tuple(tokenizer.all_special_ids),
      )
      return loss_fn, ()
    contrast = functools.partial(
        losses.info_nce,
        temperature=config.temperature,
        negative_weight=config.negative_weight,
    )
    if config.contrastive == "focal_info_nce":
      contrast = functools.partial(
          losses.focal_info_nce,
          temperature=config.temperature,
          margin=config.margin,
      )
    stacks, teacher_params = (), ()
    if config.teachers:
      stacks, teacher_params = teachers_lib.stack_teachers(
          *self._teachers(config)
      )
    loss_fn = functools.partial(
        train_step.sentence_loss,
        config=start.config,
        pooling=start.pooling,
        dtype=dtype,
        contrast=contrast,
        stacks=stacks,
        shuffle=_shuffle_rule(config),
        distill_weight=config.distill_weight,
        student_temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        divergence=config.divergence,
    )
    return loss_fn, teacher_params

  def _teachers(self, config) -> tuple[list[folder.Model], list[float]]:
    """Every teacher of a round and its weight."""
    models, weights = [], []
    shares = config.teacher_weights or [None] * len(config.teachers)
    for name, share in zip(config.teachers, shares):
      if name in self.rounds:
        members = [
            folder.load(str(self._folder(name, seed) / "model"))
            for seed in self.rounds[name].seeds
        ]
      else:
        members = [self._outside(name)]
      models += members
      weights += [1.0 if share is None else share / len(members)] * len(members)
    return models, weights

  def _export(self, name: str) -> None:
    best, export = self._best(name), self.workdir / "export"
    beside = self.workdir / ".export.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(best / "model", beside)
    shutil.rmtree(export, ignore_errors=True)
    beside.rename(export)


def _data_seed(recipe_seed: int, seed: int) -> int:
  state = np.random.SeedSequence([recipe_seed, seed]).generate_state(1)
  return int(state[0])


def _model_name(name: str, seed: int, seeds: Sequence[int]) -> str:
  return name if len(seeds) == 1 else f"{name}-{seed}"


def _mean(scores: dict[str, float], names: Sequence[str]) -> float | None:
  present = [scores[name] for name in names if name in scores]
  return float(np.mean(present)) if present else None


def _shuffle_rule(config) -> dict[str, float] | None:
  if config.group_probability:
    others = config.batch_size - 1
    if config.teachers and others * config.group_probability < 2:
      _log.warning(
          "group_probability=%g of batch_size=%d: groups hold fewer than two "
          "sentences, so next to nothing is shuffled",
          config.group_probability,
          config.batch_size,
      )
    return {"probability": config.group_probability}
  if config.group_size:
    return {"size": config.group_size}
  if config.group_top:
    return {"top": config.group_top}
  return None


def _make_scorer(
    model: folder.Model, sets: dict[str, sts.StsSet]
) -> Callable[[Any], dict[str, float]]:
  """Encoder parameters to Spearman by set; tokenises once."""
  tokens: list[list[int]] = []

  def score(params):
    if not sets:
      return {}

    def embed(sentences):
      if not tokens:
        tokens.extend(
            folder.tokenize(model.tokenizer, sentences, model.max_length)
        )
      return encode_tokens(
          params, model.config, tokens, pooling=model.pooling
      )

    scores = sts.score_sts(embed, sets)
    return {name: scores[name] for name in sets}

  return score


def _format_results(rows: Sequence[dict], tests: Sequence[str]) -> str:
  """The closing table: dev, each test set if there are several, their mean."""
  tests = tests if len(tests) > 1 else ()
  header = ["model", "dev", *tests, "test"]
  body = [
      [row["name"], row["dev"], *(row["sets"].get(t) for t in tests), row["test"]]
      for row in rows
  ]
  cells = [header] + [
      [line[0], *("-" if v is None else f"{v:.2f}" for v in line[1:])]
      for line in body
  ]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = ["Spearman x 100"]
  for line in cells:
    first = line[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
    lines.append("  ".join((first, *rest)))
  return "\n".join(lines)

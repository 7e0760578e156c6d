"""One round of a recipe: its models, each trained, measured and written."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import logging
import pathlib
from typing import Any

from etils import epath
import grain
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.data import batches as batches_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.eval import diagnostics
from dcse_jax.hub import folder as folder_lib
from dcse_jax.losses.terms import Weighted
from dcse_jax.model import heads
from dcse_jax.model import model as model_lib
from dcse_jax.model import packing
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.inference import encode_tokens
from dcse_jax.objective import corpus as corpus_lib
from dcse_jax.objective.inputs import Size
from dcse_jax.recipe import compose
from dcse_jax.recipe import inputs as inputs_lib
from dcse_jax.recipe import monitor
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime import workdir as workdir_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import read_json
from dcse_jax.runtime.files import write_json
from dcse_jax.teachers import teaching as teaching_lib
from dcse_jax.train import flops
from dcse_jax.train import loop
from dcse_jax.train import optimizer
from dcse_jax.train import pruning
from dcse_jax.train.batches import JoinedBatches

_log = logging.getLogger(__name__)

# How many batches weights are judged by before a sparse training.
_PRUNING_BATCHES = 32


def model_name(name: str, seed: int, seeds: Sequence[int]) -> str:
  """What people call a model: its round, with the seed where there are several."""
  return name if len(seeds) == 1 else f"{name}-{seed}"


def check_batch(config: config_lib.ConfigDict, name: str, mesh: Mesh) -> None:
  """Refuses a round's batch that the mesh does not divide.

  Raises:
    UserError: saying which sizes would do.
  """
  for field in ("microbatches", "row_blocks"):
    parts = mesh.size * config[field]
    if config.batch_size % parts:
      raise UserError(
        f"batch_size={config.batch_size} of round {name} does not divide among "
        f"{mesh.size} devices and {field}={config[field]}: use a multiple of {parts}"
      )


def make_optimizer(
  config: config_lib.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """A round's optimizer and its learning rate by step."""
  schedule = optimizer.make_schedule(
    learning_rate=config.learning_rate,
    schedule=config.schedule,
    warmup_steps=config.warmup_steps,
    num_steps=config.schedule_steps or config.num_train_steps,
  )
  tx = optimizer.make_optimizer(
    schedule, weight_decay=config.weight_decay, clip_norm=config.clip_norm
  )
  if config.sparsity:
    tx = optax.chain(tx, pruning.keep_zeros())
  return tx, schedule


@dataclasses.dataclass(frozen=True)
class Round:
  """A round with all that its models start and learn from: see `prepare`.

  Attributes:
    name: of the round.
    config: of the round.
    workdir: of the run; gets a folder named as the round, with one for each seed.
    inputs: text and sets of the recipe.
    start: the encoder that each model starts from.
    mesh: the devices.
    tokens: the round's text.
    scorer: scores a finished model on all sets.
    dev: scores a model in training on the sets that choose the best.
    probes: what to look at each model with, by the seeds to train.
    held_out: measures of a student in training by seed; may be none.
    teaching: the teachers as the step takes them.
    loss_fn: of the step.
  """

  name: str
  config: config_lib.ConfigDict
  workdir: workdir_lib.Workdir
  inputs: inputs_lib.Inputs
  start: model_lib.Model
  mesh: Mesh
  tokens: tokens_lib.TokenCache
  scorer: monitor.Scorer
  dev: monitor.Scorer
  probes: Mapping[int, monitor.Probe] = dataclasses.field(default_factory=dict)
  held_out: Mapping[int, monitor.HeldOut] = dataclasses.field(default_factory=dict)
  teaching: teaching_lib.Teaching = teaching_lib.Teaching()
  loss_fn: Any = None

  @property
  def folder(self) -> pathlib.Path:
    """The round's folder in the workdir."""
    return self.workdir.folder / self.name

  @functools.cached_property
  def terms(self) -> dict[str, Weighted]:
    """The objective's terms by name."""
    return {each.term.name: each for each in config_lib.terms(self.config)}

  def train(self) -> None:
    """Trains the models, or goes on with them.

    A finished model leaves model/, diagnostics.json and, last, result.json.
    """
    config = self.config
    self._tell_negatives()
    # All of a model but its parameters, for readers of checkpoints.
    template = dataclasses.replace(self.start, params=None, language_model=None)
    if processes.is_first():
      folder_lib.save(template, self.folder / "start", overwrite=True)
    seeds = list(self.probes)
    groups = [[seed] for seed in seeds]
    if config.parallel_seeds:
      # What was begun goes on first: a seed that is new cannot catch up.
      is_begun = lambda seed: processes.agree(self._checkpoints(seed).exists())
      begun = [seed for seed in seeds if is_begun(seed)]
      groups = [begun, [seed for seed in seeds if seed not in begun]]
    trainers: dict[int, Any] = {}  # One compiled step serves groups of one size.
    for group in filter(None, groups):
      signals.check()
      size = len(group)
      if size not in trainers:
        trainers[size] = self._make_trainer(size)
      best = loop.train(
        trainers[size],
        [self._make_run(seed) for seed in group],
        config=config_lib.used(config),
        before_save=self.workdir.push,
      )
      for seed, params in zip(group, best):
        self._finish(seed, jax.device_get(params))

  def _prune(self, seed: int) -> model_lib.Model:
    """The start without the weights that do least on a seed's first batches."""
    batches = itertools.islice(self._batches(seed), _PRUNING_BATCHES)
    # A new projection is random, and would say which weights it likes.
    loss_fn = dataclasses.replace(
      self.loss_fn,
      terms=losses.parse("alignment_uniformity"),
      stacks=(),
      pooling=pooling_lib.unprojected(self.start.pooling),
    )
    rng = jax.random.key(self.config.seed)
    params = self.start.params
    scores = pruning.contributions(loss_fn, params, batches, rng)
    pruned = pruning.prune(params, scores, self.config.sparsity)
    if processes.are_several():  # Others may round otherwise.
      pruned = multihost_utils.broadcast_one_to_all(pruned)
    return dataclasses.replace(self.start, params=pruned)

  def _tell_negatives(self) -> None:
    config, columns = self.config, len(self.tokens.tokens)
    if "anchors" not in losses.inputs_of(self.terms.values()):
      return
    # The other positives, and every hard negative.
    negatives = config.batch_size - 1 + (config.batch_size if columns == 3 else 0)
    _log.info(
      "round %s: batches of %d over %d devices (data %d, fsdp %d); an anchor sees %d "
      "negatives",
      self.name,
      config.batch_size,
      self.mesh.size,
      *self.mesh.shape.values(),
      negatives,
    )

  def _make_trainer(self, num_models: int):
    config = self.config
    tx, schedule = make_optimizer(config)
    frozen = self.loss_fn.frozen_params(self.start.params, self.start.language_model)
    frozen = {"teachers": self.teaching.params, **frozen}
    return loop.Trainer(
      step_fn=loop.make_step(
        self.loss_fn,
        tx,
        schedule,
        mesh=self.mesh,
        num_models=num_models,
        num_steps=config.num_train_steps,
      ),
      tx=tx,
      mesh=self.mesh,
      frozen=mesh_lib.put_params(frozen, self.mesh),
      num_models=num_models,
      packings=packing.make_packings(
        self.tokens.num_tokens(np.arange(len(self.tokens))),
        batch_size=config.batch_size,
        padded=len(self.tokens.tokens) * config.max_length,
        num_steps=config.num_train_steps,
        groups=self.mesh.size * config.microbatches,
      ),
      batch_size=config.batch_size,
      num_steps=config.num_train_steps,
      log_every=config.log_every,
      eval_every=config.eval_every,
      max_skipped_steps=config.max_skipped_steps,
      work=self._work(num_models),
      profile_steps=config.profile_steps,
    )

  def _work(self, num_models: int) -> flops.Work:
    """Estimates the average cost of a step."""
    config, columns = self.config, len(self.tokens.tokens)
    lengths = np.concatenate([np.diff(offsets) for offsets in self.tokens.offsets])
    return flops.Work(
      tokens=config.batch_size * columns * lengths.mean(),
      flops=num_models
      * self.loss_fn.flops(
        Size(
          batch=config.batch_size,
          columns=columns,
          length=lengths.mean(),
          squared_length=np.square(lengths, dtype=float).mean(),
          max_length=config.max_length,
        )
      ),
      dtype=config.dtype,
    )

  def _make_run(self, seed: int) -> loop.Run:
    rng = jax.random.fold_in(jax.random.key(self.config.seed), seed)
    init_rng, train_rng = jax.random.split(rng)
    corpus = corpus_lib.Corpus(
      self.folder / str(seed),
      self.tokens,
      self._embed_corpus,
      self.loss_fn.corpus_settings,
      functools.partial(self.workdir.share, self.folder / str(seed)),
      seed=seed,
    )
    batches = self._batches(
      seed,
      others=self.teaching.sources,
      groups=self.mesh.size * self.config.microbatches,
      host=jax.process_index(),
      num_hosts=jax.process_count(),
    )
    return loop.Run(
      name=model_name(self.name, seed, self.config.seeds),
      folder=self.folder / str(seed),
      checkpoints=self._checkpoints(seed),
      params=self.loss_fn.init_params(
        self.start.params, init_rng, self.start.language_model
      ),
      carry=self.loss_fn.init_carry(),
      batches=JoinedBatches(
        batches,
        lambda batch, step, params: corpus.join(
          batch, step, lambda: params()["encoder"]
        ),
      ),
      rng=train_rng,
      evaluate=functools.partial(self._evaluate, seed),
      sentences=functools.partial(self.inputs.sentences, self.config),
    )

  def _checkpoints(self, seed: int) -> epath.Path:
    return self.workdir.checkpoints(self.folder / str(seed))

  def _embed_corpus(self, params: Any, pooling: str | None = None) -> np.ndarray:
    return encode_tokens(
      jax.device_put(params),
      self.start.config,
      self.tokens.sentences(0, len(self.tokens)),
      pooling=pooling or self.start.pooling,
      dtype=jnp.dtype(self.config.dtype),
      mesh=mesh_lib.make_mesh(jax.local_devices()),
    )

  def _batches(self, seed: int, **kwargs: Any) -> grain.DatasetIterator:
    state = np.random.SeedSequence([self.config.seed, seed]).generate_state(1)
    return batches_lib.make_batches(
      self.tokens,
      batch_size=self.config.batch_size,
      seed=int(state[0]),
      **kwargs,
    )

  def _evaluate(self, seed: int, params: Any) -> dict[str, float]:
    metrics = self.dev.metrics(params)
    if seed in self.held_out:
      metrics = self.held_out[seed].metrics(params) | metrics
    return metrics

  def _make_probe(self, inputs: inputs_lib.Inputs, seed: int) -> monitor.Probe:
    """The first sentences that a seed trains on, and dev sentences."""
    config = self.config
    batches = self._batches(seed)
    size = monitor.probe_size(len(self.tokens), config.batch_size)
    rows = [next(batches)["example_id"] for _ in range(size // config.batch_size)]
    held_out = monitor.dev_sentences(inputs.dev)
    return monitor.Probe(
      train=inputs.sentences(config, np.concatenate(rows)),
      held_out=held_out[: monitor.probe_size(len(held_out), config.batch_size)],
      batch_size=config.batch_size,
      max_length=config.max_length,
    )

  def _measure_teachers(self, teachers) -> dict[int, monitor.HeldOut]:
    """Writes how the teachers differ; returns what measures each seed by them."""
    names = [teacher.name for teacher in teachers]
    weights = [teacher.weight for teacher in teachers]
    embed = lambda probe, split: [probe.embed(t.model, split) for t in teachers]
    # A round has one such file, of its first seed, whichever seeds are left to train.
    first, on_train = self.config.seeds[0], {}
    path = self.folder / "teachers.json"
    is_known = path.exists() and read_json(path).get("teachers") == names
    if len(teachers) > 1 and not processes.agree(is_known):
      probe = self.probes.get(first) or self._make_probe(self.inputs, first)
      on_train[first] = embed(probe, "train")
      spread = diagnostics.teacher_spread(on_train[first])
      if processes.is_first():
        write_json(path, {"teachers": names, **spread})
    terms = self.terms.values()
    measured = [each for each in terms if each.term.held_out]
    warned = [each for each in terms if each.term.warnings]
    if not measured and not warned:
      return {}
    measures, held_out = {}, None
    for seed, probe in self.probes.items():
      signals.check()
      embedded = {"train": on_train.pop(seed, None) or embed(probe, "train")}
      if probe.held_out:  # The same for every seed.
        held_out = held_out or embed(probe, "held_out")
        embedded["held_out"] = held_out
      joint = {
        split: np.stack([losses.join_teachers(x, weights) for x in zip(*embeddings)])
        for split, embeddings in embedded.items()
      }
      if not measures:
        self._warn(warned, joint["train"])
      measures[seed] = monitor.HeldOut(self.start, probe, measured, joint)
    return measures

  def _warn(self, terms: Sequence[Weighted], teacher: np.ndarray) -> None:
    for each in terms:
      for warning in each.term.warnings({"teacher": teacher}, each.settings):
        _log.warning("round %s: %s", self.name, warning)

  def _teach(self, teachers) -> teaching_lib.Teaching:
    config = self.config
    if config.teacher_cache:
      return teaching_lib.cached(
        teachers,
        self.workdir.cache,
        dtype=config.teacher_cache,
        compute_dtype=config.dtype,
      )
    return teaching_lib.online(teachers, self.tokens, config.dtype)

  def _finish(self, seed: int, params: Any) -> None:
    scores = self.scorer.scores(params)
    num_dev = len(self.inputs.dev)
    dev, test = (
      {name: score for each in part for name, score in each.items()}
      for part in (scores[:num_dev], scores[num_dev:])
    )
    result = dict(
      round=self.name,
      seed=seed,
      dev=_mean(dev, self.config.dev),
      test=_mean(test, self.config.test),
      sets=dev | test,
    )
    path = self.folder / str(seed)
    model = dataclasses.replace(
      self.start,
      params=params["encoder"],
      language_model=params.get("language_model"),
      head=heads.trained_head(params) if self.config.keep_head else None,
    )
    if processes.is_first():
      write_json(path / "diagnostics.json", self.probes[seed].histograms(model))
      folder_lib.save(model, path / "model", overwrite=True)
      # Last: it says that the model is finished.
      write_json(path / "result.json", result)
    self.workdir.share(path / "model")  # Later rounds load it.


def prepare(
  name: str,
  config: config_lib.ConfigDict,
  *,
  workdir: workdir_lib.Workdir,
  seeds: Sequence[int],
  inputs: inputs_lib.Inputs,
  start: model_lib.Model,
  teachers: Sequence[teaching_lib.Teacher],
  mesh: Mesh,
) -> Round:
  """Tokenises, embeds, measures and prunes all that a round's training needs.

  Args:
    name: of the round.
    config: of the round.
    workdir: of the run.
    seeds: of the models to train.
    inputs: text and sets of the recipe.
    start: the encoder that each model starts from.
    teachers: whose similarities it distils; may be none.
    mesh: the devices.
  """
  score = functools.partial(monitor.Scorer, start, keep_head=config.keep_head)
  made = Round(
    name,
    config,
    workdir=workdir,
    inputs=inputs,
    start=start,
    mesh=mesh,
    tokens=inputs.tokens(config),
    scorer=score([*inputs.dev, *inputs.test]),
    dev=score(inputs.dev),
  )
  probes = {seed: made._make_probe(inputs, seed) for seed in seeds}
  made = dataclasses.replace(made, probes=probes)
  if teachers:
    held_out = made._measure_teachers(teachers)
    teaching = made._teach(teachers)
    made = dataclasses.replace(made, held_out=held_out, teaching=teaching)
  loss_fn = compose.make_objective(
    config, start, made.teaching.stacks, groups=mesh.size
  )
  made = dataclasses.replace(made, loss_fn=loss_fn)
  if config.sparsity:
    # The same for every seed, whichever is trained by this command.
    made = dataclasses.replace(made, start=made._prune(config.seeds[0]))
  return made


def _mean(scores: dict[str, float], names: Sequence[str]) -> float | None:
  present = [scores[name] for name in names if name in scores]
  return float(np.mean(present)) if present else None

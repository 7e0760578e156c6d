"""One round of a recipe: its models, each trained, measured and written."""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import logging
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
from dcse_jax.eval import diagnostics
from dcse_jax.hub import folder as folder_lib
from dcse_jax.model import heads
from dcse_jax.model import model as model_lib
from dcse_jax.model import packing
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.inference import encode_tokens
from dcse_jax.objective import corpus as corpus_lib
from dcse_jax.objective import objective
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

_log = logging.getLogger(__name__)

# Weights are judged by so many batches before a sparse training.
_PRUNING_BATCHES = 32
# Settings of the term that its loss without dropout and shuffling has, too.
_DISTILLATION = ("student_temperature", "teacher_temperature", "divergence")


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


class Round:
  """A round with all that its models start and learn from.

  Args:
    name: of the round.
    config: of the round.
    workdir: of the run; gets a folder named as the round, with one for each seed.
    seeds: of the models to train.
    inputs: text and sets of the recipe.
    start: the encoder that each model starts from.
    teachers: whose similarities it distils; may be none.
    mesh: the devices.
  """

  def __init__(
    self,
    name: str,
    config: config_lib.ConfigDict,
    *,
    workdir: workdir_lib.Workdir,
    seeds: Sequence[int],
    inputs: inputs_lib.Inputs,
    start: model_lib.Model,
    teachers: Sequence[teaching_lib.Teacher],
    mesh: Mesh,
  ):
    self._name, self._config = name, config
    self._workdir, self._folder = workdir, workdir.folder / name
    self._start, self._mesh, self._inputs = start, mesh, inputs
    self._terms = {each.term.name: each for each in config_lib.terms(config)}
    self._tokens = inputs.tokens(config)
    score = functools.partial(monitor.Scorer, start, projected=config.keep_head)
    self._scorer = score(inputs.sets)
    names = [name for name in config.dev if name in inputs.sets]
    self._dev = score({name: inputs.sets[name] for name in names})
    self._probes = {seed: self._make_probe(inputs, seed) for seed in seeds}
    self._teaching = teaching_lib.Teaching()
    self._distillation: dict[int, monitor.Distillation] = {}
    if teachers:
      self._distillation = self._measure_teachers(teachers)
      self._teaching = self._prepare(teachers)
    self._loss_fn = objective.make_objective(
      config, start, self._teaching.stacks, groups=mesh.size
    )
    if config.sparsity:
      # The same for every seed, whichever is trained by this command.
      self._start = self._prune(config.seeds[0])

  def train(self) -> None:
    """Trains the models, or goes on with them.

    A finished model leaves model/, diagnostics.json and, last, result.json.
    """
    config = self._config
    self._tell_negatives()
    # All of a model but its parameters, for readers of checkpoints.
    template = dataclasses.replace(self._start, params=None, language_model=None)
    if processes.is_first():
      folder_lib.save(template, self._folder / "start", overwrite=True)
    seeds = list(self._probes)
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
        before_save=self._workdir.push,
      )
      for seed, params in zip(group, best):
        self._finish(seed, jax.device_get(params))

  def _prune(self, seed: int) -> model_lib.Model:
    """The start without the weights that do least on a seed's first batches."""
    batches = itertools.islice(self._batches(seed), _PRUNING_BATCHES)
    # A new projection is random, and would say which weights it likes.
    loss_fn = dataclasses.replace(
      self._loss_fn,
      terms=losses.parse("alignment_uniformity"),
      stacks=(),
      pooling=pooling_lib.unprojected(self._start.pooling),
    )
    rng = jax.random.key(self._config.seed)
    params = self._start.params
    scores = pruning.contributions(loss_fn, params, batches, rng)
    pruned = pruning.prune(params, scores, self._config.sparsity)
    if processes.are_several():  # Others may round otherwise.
      pruned = multihost_utils.broadcast_one_to_all(pruned)
    return dataclasses.replace(self._start, params=pruned)

  def _tell_negatives(self) -> None:
    config, columns = self._config, len(self._tokens.tokens)
    if "anchors" not in losses.taken(self._terms.values()):
      return
    # The other positives, and every hard negative.
    negatives = config.batch_size - 1 + (config.batch_size if columns == 3 else 0)
    _log.info(
      "round %s: batches of %d over %d devices (data %d, fsdp %d); an anchor sees %d "
      "negatives",
      self._name,
      config.batch_size,
      self._mesh.size,
      *self._mesh.shape.values(),
      negatives,
    )

  def _make_trainer(self, num_models: int):
    config = self._config
    tx, schedule = make_optimizer(config)
    return loop.make_trainer(
      self._loss_fn,
      tx,
      schedule,
      mesh=self._mesh,
      teacher_params=(
        *self._teaching.params,
        *self._loss_fn.frozen_params(self._start.params, self._start.language_model),
      ),
      num_models=num_models,
      packings=packing.make_packings(
        self._tokens.num_tokens(np.arange(len(self._tokens))),
        batch_size=config.batch_size,
        padded=len(self._tokens.tokens) * config.max_length,
        num_steps=config.num_train_steps,
        groups=self._mesh.size * config.microbatches,
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
    """Of a step, in the mean over batches."""
    config, columns = self._config, len(self._tokens.tokens)
    lengths = np.concatenate([np.diff(offsets) for offsets in self._tokens.offsets])
    return flops.Work(
      tokens=config.batch_size * columns * lengths.mean(),
      flops=num_models
      * flops.step_flops(
        config,
        self._start,
        self._teaching.stacks,
        columns=columns,
        length=lengths.mean(),
        squared_length=np.square(lengths, dtype=float).mean(),
      ),
      dtype=config.dtype,
    )

  def _make_run(self, seed: int) -> loop.Run:
    rng = jax.random.fold_in(jax.random.key(self._config.seed), seed)
    init_rng, train_rng = jax.random.split(rng)
    return loop.Run(
      name=model_name(self._name, seed, self._config.seeds),
      folder=self._folder / str(seed),
      checkpoints=self._checkpoints(seed),
      params=self._loss_fn.init_params(
        self._start.params, init_rng, self._start.language_model
      ),
      memory=self._loss_fn.init_memory(),
      batches=self._batches(
        seed,
        others=self._teaching.sources,
        groups=self._mesh.size * self._config.microbatches,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
      ),
      corpus=corpus_lib.Corpus(
        self._folder / str(seed),
        self._tokens,
        self._embed_corpus,
        self._loss_fn.corpus_settings,
        functools.partial(self._workdir.share, self._folder / str(seed)),
        seed=seed,
      ),
      rng=train_rng,
      evaluate=functools.partial(self._evaluate, seed),
      sentences=functools.partial(self._inputs.sentences, self._config),
    )

  def _checkpoints(self, seed: int) -> epath.Path:
    return self._workdir.checkpoints(self._folder / str(seed))

  def _embed_corpus(self, params: Any, pooling: str | None = None) -> np.ndarray:
    return encode_tokens(
      jax.device_put(params),
      self._start.config,
      self._tokens.sentences(0, len(self._tokens)),
      pooling=pooling or self._start.pooling,
      dtype=jnp.dtype(self._config.dtype),
      mesh=mesh_lib.make_mesh(jax.local_devices()),
    )

  def _batches(self, seed: int, **kwargs: Any) -> grain.DatasetIterator:
    state = np.random.SeedSequence([self._config.seed, seed]).generate_state(1)
    return batches_lib.make_batches(
      self._tokens,
      batch_size=self._config.batch_size,
      seed=int(state[0]),
      **kwargs,
    )

  def _evaluate(self, seed: int, params: Any) -> dict[str, float]:
    metrics = self._dev.metrics(params)
    if seed in self._distillation:
      metrics = self._distillation[seed].metrics(params) | metrics
    return metrics

  def _make_probe(self, inputs: inputs_lib.Inputs, seed: int) -> monitor.Probe:
    """The first sentences that a seed trains on, and dev sentences."""
    config = self._config
    batches = self._batches(seed)
    size = monitor.probe_size(len(self._tokens), config.batch_size)
    rows = [next(batches)["example_id"] for _ in range(size // config.batch_size)]
    held_out = monitor.dev_sentences(inputs.sets, config.dev)
    return monitor.Probe(
      train=inputs.sentences(config, np.concatenate(rows)),
      held_out=held_out[: monitor.probe_size(len(held_out), config.batch_size)],
      batch_size=config.batch_size,
      max_length=config.max_length,
    )

  def _measure_teachers(self, teachers) -> dict[int, monitor.Distillation]:
    """Writes how the teachers differ; returns what measures each seed by them."""
    names = [teacher.name for teacher in teachers]
    weights = [teacher.weight for teacher in teachers]
    embed = lambda probe, split: [probe.embed(t.model, split) for t in teachers]
    # A round has one such file, of its first seed, whichever seeds are left to train.
    first, on_train = self._config.seeds[0], {}
    path = self._folder / "teachers.json"
    is_known = path.exists() and read_json(path).get("teachers") == names
    if len(teachers) > 1 and not processes.agree(is_known):
      probe = self._probes.get(first) or self._make_probe(self._inputs, first)
      on_train[first] = embed(probe, "train")
      spread = diagnostics.teacher_spread(on_train[first])
      if processes.is_first():
        write_json(path, {"teachers": names, **spread})
    if "distillation" not in self._terms:
      return {}
    settings = self._terms["distillation"].settings
    measures, held_out = {}, None
    for seed, probe in self._probes.items():
      signals.check()
      embedded = {"train": on_train.pop(seed, None) or embed(probe, "train")}
      if probe.held_out:  # The same for every seed.
        held_out = held_out or embed(probe, "held_out")
        embedded["held_out"] = held_out
      targets = {
        split: diagnostics.average_similarities(embeddings, weights)
        for split, embeddings in embedded.items()
      }
      if not measures:
        self._warn_if_one_hot(targets["train"])
      measures[seed] = monitor.Distillation(
        self._start,
        probe,
        targets,
        **{name: settings[name] for name in _DISTILLATION},
      )
    return measures

  def _warn_if_one_hot(self, targets: np.ndarray) -> None:
    temperature = self._terms["distillation"].settings["teacher_temperature"]
    share = diagnostics.share_one_hot(targets, temperature)
    if share > 0.5:
      _log.warning(
        "round %s: at distillation.teacher_temperature=%g one sentence has all the "
        "probability in %.0f %% of rows, and the others teach nothing: raise it",
        self._name,
        temperature,
        100 * share,
      )

  def _warn_if_groups_are_small(self) -> None:
    config = self._config
    probability = 0.0
    if "distillation" in self._terms:
      probability = self._terms["distillation"].settings["group_probability"]
    if 0 < (config.batch_size - 1) * probability < 2:
      _log.warning(
        "round %s: distillation.group_probability=%g of batch_size=%d: groups hold "
        "fewer than two sentences, so next to nothing is shuffled",
        self._name,
        probability,
        config.batch_size,
      )

  def _prepare(self, teachers) -> teaching_lib.Teaching:
    config = self._config
    self._warn_if_groups_are_small()
    if config.teacher_cache:
      return teaching_lib.cached(
        teachers,
        self._workdir.cache,
        dtype=config.teacher_cache,
        compute_dtype=config.dtype,
      )
    return teaching_lib.online(teachers, self._tokens, config.dtype)

  def _finish(self, seed: int, params: Any) -> None:
    scores = self._scorer.spearman(params)
    result = dict(
      round=self._name,
      seed=seed,
      dev=_mean(scores, self._config.dev),
      test=_mean(scores, self._config.test),
      sets=scores,
    )
    path = self._folder / str(seed)
    model = dataclasses.replace(
      self._start,
      params=params["encoder"],
      language_model=params.get("language_model"),
      head=heads.projection_head(params) if self._config.keep_head else None,
    )
    if processes.is_first():
      write_json(path / "diagnostics.json", self._probes[seed].histograms(model))
      folder_lib.save(model, path / "model", overwrite=True)
      # Last: it says that the model is finished.
      write_json(path / "result.json", result)
    self._workdir.share(path / "model")  # Later rounds load it.


def _mean(scores: dict[str, float], names: Sequence[str]) -> float | None:
  present = [scores[name] for name in names if name in scores]
  return float(np.mean(present)) if present else None

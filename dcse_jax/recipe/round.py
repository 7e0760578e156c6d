"""One round of a recipe: its models, each trained, measured and written."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import logging
import pathlib
from typing import Any

from etils import epath
import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from dcse_jax import config as config_lib
from dcse_jax.data import batches as batches_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.hub import folder as folder_lib
from dcse_jax.model import heads
from dcse_jax.model import model as model_lib
from dcse_jax.model.inference import encode_tokens
from dcse_jax.objective import corpus as corpus_lib
from dcse_jax.objective.mined import Miner
from dcse_jax.objective.objective import Objective
from dcse_jax.recipe import inputs as inputs_lib
from dcse_jax.recipe import mining
from dcse_jax.recipe import monitor
from dcse_jax.recipe import probes as probes_lib
from dcse_jax.recipe import time_left
from dcse_jax.recipe import trainer as trainer_lib
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import processes
from dcse_jax.runtime import signals
from dcse_jax.runtime import workdir as workdir_lib
from dcse_jax.runtime.files import write_json
from dcse_jax.teachers import teaching as teaching_lib
from dcse_jax.train import loop
from dcse_jax.train import runs as runs_lib
from dcse_jax.train.batches import JoinedBatches

_log = logging.getLogger(__name__)


def model_name(name: str, seed: int, seeds: Sequence[int]) -> str:
  """Returns what people call a model: its round, with the seed if there are several."""
  return name if len(seeds) == 1 else f"{name}-{seed}"


@dataclasses.dataclass(frozen=True)
class Round:
  """A round with all that its models start and learn from: see `preparing.prepare`.

  Attributes:
    name: the round's.
    config: the round's.
    workdir: the run's; gets a folder with the round's name, with one for each seed.
    inputs: text and sets of the recipe.
    start: the encoder that each model starts from.
    mesh: the devices.
    tokens: the round's text.
    scorer: scores a finished model on all sets.
    dev: scores a model in training on the sets that choose the best.
    probes: the probe of each seed that is to be trained.
    held_out: measures of a student in training, by seed; there may be none.
    teaching: the teachers as the step takes them.
    loss_fn: the step's objective.
    miner: finds hard negatives while it trains, or None.
    later_steps: how many of this round's steps the later rounds are worth.
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
  probes: Mapping[int, probes_lib.Probe]
  held_out: Mapping[int, probes_lib.HeldOut]
  teaching: teaching_lib.Teaching
  loss_fn: Objective
  miner: Miner | None
  later_steps: float

  @property
  def folder(self) -> pathlib.Path:
    """The round's folder in the workdir."""
    return self.workdir.folder / self.name

  def train(self) -> None:
    """Trains the models, or resumes them.

    A finished model leaves model/, diagnostics.json and, last, result.json.
    """
    config = self.config
    self._tell_negatives()
    # Readers of checkpoints need all of a model but its parameters.
    template = dataclasses.replace(self.start, params=None, language_model=None)
    if processes.is_first():
      folder_lib.save(template, self.folder / "start", overwrite=True)
    seeds = list(self.probes)
    groups = [[seed] for seed in seeds]
    if config.parallel_seeds:
      # Seeds that were begun continue first: a new one could not catch up.
      is_begun = lambda seed: processes.agree(self._checkpoints(seed).exists())
      begun = [seed for seed in seeds if is_begun(seed)]
      groups = [begun, [seed for seed in seeds if seed not in begun]]
    trainers: dict[int, Any] = {}  # One compiled step serves groups of one size.
    groups = list(filter(None, groups))
    for i, group in enumerate(groups):
      signals.check()
      later = (len(groups) - i - 1) * config.num_train_steps
      size = len(group)
      if size not in trainers:
        trainers[size] = self._make_trainer(size)
      best = loop.train(
        trainers[size],
        [self._make_run(seed) for seed in group],
        config=config_lib.used(config),
        before_save=self.workdir.push,
        time_left=time_left.TimeLeft(self.name, later, self.later_steps).tell,
      )
      for seed, params in zip(group, best):
        self._finish(seed, jax.device_get(params))

  def _tell_negatives(self) -> None:
    config = self.config
    columns = len(self.tokens.tokens) + config_lib.mined_columns(config)
    if "anchors" not in self.loss_fn.inputs:
      return
    # They are the other positives, and every hard negative.
    negatives = config.batch_size - 1 + config.batch_size * max(0, columns - 2)
    _log.info(
      "round %s: batches of %d over %d devices (data %d, fsdp %d); an anchor sees %d "
      "negatives",
      self.name,
      config.batch_size,
      self.mesh.size,
      *self.mesh.shape.values(),
      negatives,
    )

  def _make_trainer(self, num_models: int) -> runs_lib.Trainer:
    frozen = self.loss_fn.frozen_params(self.start.params, self.start.language_model)
    return trainer_lib.make_trainer(
      self.config,
      self.loss_fn,
      self.tokens,
      frozen={"teachers": self.teaching.params, **frozen},
      mesh=self.mesh,
      num_models=num_models,
      miner=self.miner,
    )

  def _make_run(self, seed: int) -> runs_lib.Run:
    rng = jax.random.fold_in(jax.random.key(self.config.seed), seed)
    init_rng, train_rng = jax.random.split(rng)
    groups = self.mesh.size * self.config.microbatches
    corpus = corpus_lib.Corpus(
      self.folder / str(seed),
      self.tokens,
      self._embed,
      self.loss_fn.corpus_settings,
      functools.partial(self.workdir.share, self.folder / str(seed)),
      seed=seed,
      miner=self.miner,
      groups=groups,
      params_at=functools.partial(self._encoder_at, seed),
    )
    batches = make_batches(
      self.config,
      self.tokens,
      seed,
      others=self.teaching.sources,
      groups=groups,
      bucket_batches=self.config.bucket_batches,
      host=jax.process_index(),
      num_hosts=jax.process_count(),
      with_ids=self.miner is not None,
    )
    return runs_lib.Run(
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

  def _encoder_at(self, seed: int, step: int) -> Any:
    """Returns a model's encoder after some steps; None if nothing holds it."""
    checkpoints = self._checkpoints(seed)
    return mining.encoder_at(checkpoints, step) if step else self.start.params

  def _embed(
    self, params: Any, sentences: Sequence[np.ndarray], pooling: str | None = None
  ) -> np.ndarray:
    return encode_tokens(
      jax.device_put(params),
      self.start.config,
      sentences,
      pooling=pooling or self.start.pooling,
      left_out=sum(self.tokens.left_out[:1]),
      dtype=jnp.dtype(self.config.dtype),
      mesh=mesh_lib.make_mesh(jax.local_devices()),
    )

  def _evaluate(self, seed: int, params: Any) -> dict[str, float]:
    metrics = self.dev.metrics(params)
    if seed in self.held_out:
      metrics = self.held_out[seed].metrics(params) | metrics
    return metrics

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
      # This comes last: it says that the model is finished.
      write_json(path / "result.json", result)
    self.workdir.share(path / "model")  # Later rounds load it.


def make_batches(
  config: config_lib.ConfigDict,
  tokens: tokens_lib.TokenCache,
  seed: int,
  **kwargs: Any,
) -> grain.DatasetIterator:
  """Returns a seed's batches; see `batches.make_batches` for the other arguments."""
  state = np.random.SeedSequence([config.seed, seed]).generate_state(1)
  return batches_lib.make_batches(
    tokens, batch_size=config.batch_size, seed=int(state[0]), **kwargs
  )


def _mean(scores: dict[str, float], names: Sequence[str]) -> float | None:
  present = [scores[name] for name in names if name in scores]
  return float(np.mean(present)) if present else None

"""The step and the loop: against PyTorch, over devices, and interrupted."""

import dataclasses
import functools
import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from dcse_jax import losses
from dcse_jax.data import batches as batches_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.packing import Packing
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime import signals
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.train import flops
from dcse_jax.train import loop
from dcse_jax.train import optimizer
from dcse_jax.train import runs as runs_lib
from dcse_jax.train import step as step_lib
from dcse_jax.train.batches import JoinedBatches
from tests import models

TEACHERS = [
  models.tiny_model(seed, num_layers=layers)
  for seed, layers in ((5, 1), (6, 2), (7, 1))
]
STUDENT = models.tiny_model(1, pooling="cls")


def make_trainer(
  loss_fn,
  *,
  devices=1,
  mesh=None,
  teacher_params=None,
  num_models=1,
  packings=(),
  steps=6,
  batch=8,
  max_skipped_steps=0,
):
  schedule = optimizer.make_schedule(
    learning_rate=1e-3, schedule="linear", warmup_steps=2, num_steps=steps
  )
  tx = optimizer.make_optimizer(schedule, weight_decay=0.01, clip_norm=1.0)
  mesh = mesh or mesh_lib.make_mesh(jax.devices()[:devices])
  return runs_lib.Trainer(
    step_fn=runs_lib.make_step(
      loss_fn, tx, schedule, mesh=mesh, num_models=num_models, num_steps=steps
    ),
    tx=tx,
    mesh=mesh,
    frozen=mesh_lib.put_params(teacher_params or {}, mesh),
    num_models=num_models,
    packings=packings,
    batch_size=batch,
    num_steps=steps,
    log_every=2,
    eval_every=2,
    max_skipped_steps=max_skipped_steps,
    loggers=("tensorboard",),
    work=flops.Work(tokens=80, flops=1e9, dtype="float32"),
  )


@functools.cache
def distilling():
  """Makes a loss with three teachers in two stacks, and Group-P."""
  stacks, params = stacks_lib.stack_teachers(TEACHERS, [1, 1, 1])
  loss_fn = Objective(
    losses.parse(
      "info_nce + distillation", {"distillation": {"group_probability": 0.5}}
    ),
    config=STUDENT.config,
    pooling="cls",
    stacks=stacks,
  )
  return loss_fn, {"teachers": params}


def student_params(seed=0):
  return distilling()[0].init_params(STUDENT.params, jax.random.key(seed))


def run_steps(num_steps=3, **kwargs):
  """Trains some steps; returns the trainer, the state and each step's metrics."""
  loss_fn, teacher_params = distilling()
  trainer = make_trainer(loss_fn, teacher_params=teacher_params, **kwargs)
  state = step_lib.init_state(student_params(), trainer.tx, jax.random.key(2))
  state = mesh_lib.put_params(jax.device_get(state), trainer.mesh)
  metrics = []
  for i in range(num_steps):
    whole = models.random_batch(i)
    mine = jax.tree.map(
      lambda x: np.split(x, jax.process_count())[jax.process_index()], whole
    )
    batch = mesh_lib.put_batch(mine, mesh_lib.over_batch(trainer.mesh))
    state, values = trainer.step_fn(state, batch, trainer.frozen)
    metrics.append(jax.device_get(values))
  return trainer, state, metrics


def test_eight_devices_train_as_one_does():
  _, one, ours = run_steps(devices=1)
  _, eight, theirs = run_steps(devices=8)
  for a, b in zip(ours, theirs):
    for name in a:
      np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
  one, eight = jax.device_get((one.params, eight.params))
  for params in (one, eight):
    # A key bias adds the same to all scores of a row: its gradient is 0 but for
    # rounding, which Adam blows up to full steps.
    del params["encoder"]["layers"]["key"]["bias"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    one,
    eight,
  )


def without_dropout(model):
  config = dataclasses.replace(model.config, dropout=0.0, attention_dropout=0.0)
  return dataclasses.replace(model, config=config)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_loss_is_contrast_of_columns_plus_weighted_distillation(columns):
  student = without_dropout(models.tiny_model(1))
  stacks, teacher_params = stacks_lib.stack_teachers(TEACHERS[:1], [1])
  batch = models.random_batch(3, columns=columns)
  loss_fn = Objective(
    losses.parse("info_nce + 0.7 * distillation"),
    config=student.config,
    pooling="mean",
    stacks=stacks,
  )
  # One program, since compiling every operation by itself takes longer.
  loss, parts = jax.jit(models.called(loss_fn))(
    {"encoder": student.params}, batch, jax.random.key(0), {"teachers": teacher_params}
  )

  def embed(model, column):
    return jax.jit(encoder_lib.encode, static_argnames=("config", "pooling"))(
      model.params,
      model.config,
      batch["input_ids"][:, column],
      batch["attention_mask"][:, column],
      pooling="mean",
    )

  views = [embed(student, c) for c in range(columns)]
  # One column is its own positive; a third is the hard negative.
  contrastive = losses.info_nce(
    views[0],
    views[min(1, columns - 1)],
    temperature=0.05,
    all_negatives=views[2] if columns == 3 else None,
  ).mean()
  teacher = embed(TEACHERS[0], 0)
  distillation = losses.similarity_divergence(
    losses.cosine_similarity(views[0], views[0]),
    losses.cosine_similarity(teacher, teacher),
    student_temperature=0.025,
    teacher_temperature=0.0125,
  ).mean()
  np.testing.assert_allclose(parts["info_nce"], contrastive, rtol=1e-4)
  np.testing.assert_allclose(parts["distillation"], distillation, rtol=1e-4)
  np.testing.assert_allclose(loss, contrastive + 0.7 * distillation, rtol=1e-4)


def test_bfloat16_keeps_parameters_and_loss_in_float32():
  loss_fn, teacher_params = distilling()
  # Where similarities are close, shuffling moves others.
  exact = dataclasses.replace(loss_fn, terms=losses.parse("info_nce + distillation"))
  loss_fn = dataclasses.replace(exact, dtype=jnp.bfloat16)
  arguments = (models.random_batch(0), jax.random.key(0), teacher_params)
  (rough, _), grads = jax.jit(jax.value_and_grad(models.called(loss_fn), has_aux=True))(
    student_params(), *arguments
  )
  fine, _ = jax.jit(models.called(exact))(student_params(), *arguments)
  assert rough.dtype == jnp.float32
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
  np.testing.assert_allclose(rough, fine, rtol=0.05)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_adamw_with_clipping_follows_pytorch(schedule):
  steps, warmup, peak = 12, 3, 0.01
  rng = np.random.default_rng(0)
  start = rng.normal(size=(3, 2)).astype(np.float32)
  gradients = rng.normal(size=(steps, 3, 2)).astype(np.float32)

  def rate(step):
    if step < warmup:
      return peak * step / warmup
    done = (step - warmup) / (steps - warmup)
    if schedule == "linear":
      return peak * (1 - done)
    return peak * 0.5 * (1 + np.cos(np.pi * done))

  weight = torch.nn.Parameter(torch.tensor(start))
  theirs = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.1)
  ours = optimizer.make_schedule(
    learning_rate=peak, schedule=schedule, warmup_steps=warmup, num_steps=steps
  )
  tx = optimizer.make_optimizer(ours, weight_decay=0.1, clip_norm=1.0)
  params = {"kernel": jnp.asarray(start)}
  state = tx.init(params)
  for step, gradient in enumerate(gradients):
    assert float(ours(step)) == pytest.approx(rate(step), abs=1e-9)
    theirs.param_groups[0]["lr"] = rate(step)
    weight.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    theirs.step()
    updates, state = tx.update({"kernel": jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(
    params["kernel"], weight.detach().numpy(), rtol=1e-5, atol=1e-6
  )


def test_biases_and_layer_norms_do_not_decay():
  tx = optimizer.make_optimizer(lambda _: 0.1, weight_decay=0.5, clip_norm=1.0)
  params = {name: jnp.ones(2) for name in ("kernel", "embedding", "bias", "scale")}
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  # Without a gradient AdamW only decays: -learning_rate * weight_decay.
  for name, expected in dict(kernel=-0.05, embedding=-0.05, bias=0, scale=0).items():
    np.testing.assert_allclose(updates[name], expected, atol=1e-7)


def language_model(monkeypatch, batch, rng):
  """Runs the loss and catches what the encoder was shown."""
  shown = {}
  model = models.tiny_model()
  original = encoder_lib.states_at
  # The table has rows that are no tokens.
  assert model.config.vocab_size == 200

  def spy(params, config, input_ids, *args, **kwargs):
    shown["input_ids"] = input_ids
    return original(params, config, input_ids, *args, **kwargs)

  monkeypatch.setattr(encoder_lib, "states_at", spy)
  loss_fn = models.language_model_loss(model)
  loss_fn = dataclasses.replace(loss_fn, tokenizer_size=190)
  params = loss_fn.init_params(model.params, jax.random.key(0))

  # One program, since compiling every operation by itself takes longer.
  @jax.jit
  def run(params, batch, rng):
    loss, parts = models.called(loss_fn)(params, batch, rng)
    return shown["input_ids"], loss, parts

  shown_ids, loss, parts = run(params, batch, rng)
  return np.asarray(shown_ids), loss, parts


def test_pretraining_masks_15_percent_of_words_and_no_special_token(monkeypatch):
  batch = models.random_batch(0, batch=400, length=20)
  batch["attention_mask"][:] = True
  batch["input_ids"][:] = 50
  batch["input_ids"][:, :, 0] = 2
  shown, loss, _ = language_model(monkeypatch, batch, jax.random.key(1))
  assert (shown[:, 0] == 2).all()
  # 15 % of 19 words is 3 of them, on 400 rows; 80 % of these 1,200 show the
  # mask (sd 14), 10 % a random word (sd 10), which is 50 once in 185.
  masked = (shown == 4).sum()
  changed = (shown != batch["input_ids"][:, 0]).sum()
  assert abs(masked - 960) < 5 * 14
  assert abs(changed - 1080) < 5 * 14
  # Words are the tokenizer's 190 tokens but [PAD], [UNK], [CLS], [SEP] and [MASK]; some
  # 120 are drawn, of which as many are new as in 120 draws from 185.
  words = np.unique(shown[:, 1:])
  words = words[(words != 4) & (words != 50)]
  assert words.min() >= 5 and words.max() < 190
  assert abs(len(words) - 185 * (1 - (184 / 185) ** 120)) < 20
  # An untrained head knows nothing: about the log of the vocabulary.
  assert float(loss) == pytest.approx(np.log(200), rel=0.3)


# --- The loop ---------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
  tokenizer = STUDENT.tokenizer
  return tokens_lib.build_token_cache(
    tmp_path / "cache",
    # They have 3 to 10 words.
    [[" ".join(s.split()[: 3 + i % 8]) for i, s in enumerate(models.SENTENCES)]],
    tokenize=lambda s: tokenizer(list(s), truncation=True, max_length=12)["input_ids"],
    tokenizer_state="",
    max_length=12,
    pad_token_id=0,
    vocab_size=200,
  )


class Interrupted(Exception):
  pass


def make_batches(cache, seed=3):
  return batches_lib.make_batches(
    cache, batch_size=8, seed=seed, groups=8, bucket_batches=2
  )


def as_it_is(batch, step, params):
  return batch


def make_run(
  cache, folder, *, seed=3, params=None, evaluate=lambda params: {}, join=as_it_is
):
  return runs_lib.Run(
    name="test",
    folder=folder,
    checkpoints=epath.Path(folder / "checkpoints"),
    params=params or student_params(seed),
    carry={},
    batches=JoinedBatches(make_batches(cache, seed), join),
    rng=jax.random.key(seed),
    evaluate=evaluate,
    sentences=lambda rows: [models.SENTENCES[row] for row in rows],
  )


def run_loop(cache, folder, *, scores, stop_at=None, patience=0):
  """Trains six steps; evaluation k gives scores[k] and may interrupt."""
  seen = []

  def evaluate(params):
    seen.append(jax.device_get(params))
    step = 2 * len(seen) + done
    if step == stop_at:
      raise Interrupted
    return {"score": scores[step // 2 - 1], "eval/x": 1.0}

  done = 0
  path = folder / "checkpoints"
  if path.exists():
    done = max(int(p.name) for p in path.iterdir() if p.name.isdigit())
  (best,) = loop.train(
    dataclasses.replace(loop_trainer(), patience=patience),
    [make_run(cache, folder, evaluate=evaluate)],
    config={"learning_rate": 1e-3},
  )
  return jax.device_get(best), seen


@functools.cache
def loop_trainer(num_models=1):
  loss_fn, teacher_params = distilling()
  return make_trainer(
    loss_fn,
    devices=8,
    teacher_params=teacher_params,
    num_models=num_models,
    # A sentence a device: some batches are packed, those with longer ones are not.
    packings=(Packing(10, groups=8, length=10),),
  )


def assert_bitwise(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_best_parameters_are_returned_not_the_last(cache, tmp_path):
  best, seen = run_loop(cache, tmp_path / "a", scores=[1.0, 3.0, 2.0])
  assert_bitwise(best, seen[1])


def test_of_equal_scores_the_later_is_the_best(cache, tmp_path):
  best, seen = run_loop(cache, tmp_path / "a", scores=[3.0, 3.0, 1.0])
  assert_bitwise(best, seen[1])


def test_patience_ends_a_run_and_it_stays_ended(cache, tmp_path):
  # The score of step 6 would be the best, and nobody waits for it.
  best, seen = run_loop(cache, tmp_path / "a", scores=[3.0, 1.0, 9.0], patience=1)
  assert len(seen) == 2
  assert_bitwise(best, seen[0])
  again, seen = run_loop(cache, tmp_path / "a", scores=[3.0, 1.0, 9.0], patience=1)
  assert not seen
  assert_bitwise(again, best)
  # With more of it the run goes on from where it ended.
  best, seen = run_loop(cache, tmp_path / "a", scores=[3.0, 1.0, 9.0], patience=2)
  assert_bitwise(best, seen[0])


@pytest.mark.parametrize("scores", [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
def test_an_interrupted_run_ends_bitwise_as_the_uninterrupted(cache, tmp_path, scores):
  whole, seen = run_loop(cache, tmp_path / "whole", scores=scores)
  for stop_at in (6, 4):
    folder = tmp_path / f"cut-{stop_at}"
    with pytest.raises(Interrupted):
      run_loop(cache, folder, scores=scores, stop_at=stop_at)
    best, resumed = run_loop(cache, folder, scores=scores)
    assert_bitwise(best, whole)
    assert_bitwise(resumed[-1], seen[-1])
    lines = [
      [line["step"], line.get("train/loss")]
      for line in models.read_jsonl(folder / "metrics.jsonl")
    ]
    expected = [
      [line["step"], line.get("train/loss")]
      for line in models.read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    ]
    assert lines == expected


def test_a_run_stopped_after_every_step_ends_bitwise_as_one_that_was_not(
  cache, tmp_path, monkeypatch
):
  # Three stops come before the first evaluation, at step 4.
  trainer = dataclasses.replace(loop_trainer(), eval_every=4)
  whole = loop.train(trainer, [make_run(cache, tmp_path / "whole")], config={})
  with monkeypatch.context() as patch:
    patch.setattr(signals, "requested", lambda: True)
    for _ in range(6):  # The last one begins nothing further either.
      with pytest.raises(signals.Interrupted):
        loop.train(trainer, [make_run(cache, tmp_path / "cut")], config={})
  ours = loop.train(trainer, [make_run(cache, tmp_path / "cut")], config={})
  assert_bitwise(jax.device_get(ours), jax.device_get(whole))
  whole, cut = (
    models.read_metrics(tmp_path / n / "metrics.jsonl") for n in ("whole", "cut")
  )
  assert [line["step"] for line in whole] == [2, 4, 6]
  assert cut == whole


def test_a_checkpoint_of_another_shape_is_refused(cache, tmp_path):
  trainer = dataclasses.replace(loop_trainer(), num_steps=2)
  loop.train(trainer, [make_run(cache, tmp_path)], config={})
  params = student_params()
  params["projection"]["dense"]["kernel"] = np.ones((16, 8), np.float32)
  with pytest.raises(UserError, match="of another shape: restore the config"):
    loop.train(trainer, [make_run(cache, tmp_path, params=params)], config={})


def test_what_joins_a_batch_is_told_the_step_and_the_parameters_of_its_run(
  cache, tmp_path
):
  seen = {3: [], 4: []}

  def run(seed):
    def join(batch, step, params):
      seen[seed].append((step, jax.device_get(params())))
      return batch

    return make_run(cache, tmp_path / str(seed), seed=seed, join=join)

  best = loop.train(loop_trainer(2), [run(3), run(4)], config={})
  for seed, last in zip(seen, best):
    assert [step for step, _ in seen[seed]] == [0, 1, 2, 3, 4, 5]
    # The rate is 0 at the first step: both see what they started from.
    assert_bitwise(seen[seed][0][1], jax.device_get(student_params(seed)))
    with pytest.raises(AssertionError):
      assert_bitwise(seen[seed][-1][1], jax.device_get(last))


def train_together(cache, folder, seeds, evaluate=lambda params: {}, patience=0):
  best = loop.train(
    dataclasses.replace(loop_trainer(len(seeds)), patience=patience),
    [
      make_run(cache, folder / str(seed), seed=seed, evaluate=evaluate)
      for seed in seeds
    ],
    config={},
  )
  return [jax.device_get(params) for params in best]


def test_models_trained_together_equal_each_trained_alone(cache, tmp_path):
  together = train_together(cache, tmp_path / "together", (3, 4, 5))
  for seed, ours in zip((3, 4, 5), together):
    (alone,) = train_together(cache, tmp_path / "alone", (seed,))
    logs = [
      models.read_jsonl(tmp_path / kind / str(seed) / "metrics.jsonl")
      for kind in ("together", "alone")
    ]
    # The same data and the same dropout: without either, losses differ by far more.
    for a, b in zip(*logs):
      assert a["step"] == b["step"]
      assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)
    for params in (ours, alone):
      del params["encoder"]["layers"]["key"]["bias"]  # Its gradient is rounding.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, alone
    )
  # Seeds differ from each other.
  assert not np.allclose(
    together[0]["projection"]["dense"]["kernel"],
    together[1]["projection"]["dense"]["kernel"],
  )


def scoring(scores, stop_at=None):
  """Makes an evaluation that returns these scores in turn and may interrupt at one."""
  calls = []

  def evaluate(params):
    calls.append(1)
    if len(calls) == stop_at:
      raise Interrupted
    return {"score": scores[len(calls) - 1]}

  return evaluate


def test_a_model_that_gave_up_keeps_its_best_while_another_trains_on(cache, tmp_path):
  # The scores of two models at steps 2, 4 and 6, in turn; the first is asked twice.
  evaluate = scoring([3, 1, 1, 2, 5])
  found = train_together(cache, tmp_path / "a", (3, 4), evaluate, patience=1)
  whole = scoring([3, 1, 1, 2, 0, 5])
  assert_bitwise(found, train_together(cache, tmp_path / "b", (3, 4), whole))


@pytest.mark.slow
def test_models_trained_together_go_on_from_a_step_that_all_have(cache, tmp_path):
  # The scores of two models at steps 2, 4 and 6, in turn. The first's new best at step
  # 6 is saved, then the run is cut; this best is lost and the one before returns.
  folder, seeds = tmp_path / "cut", (3, 4)
  with pytest.raises(Interrupted):
    train_together(cache, folder, seeds, scoring([3, 1, 1, 2, 5], stop_at=6))
  steps = [
    sorted(int(p.name) for p in (folder / str(seed) / "checkpoints").iterdir())
    for seed in seeds
  ]
  assert steps == [[2, 4, 6], [2, 4]]
  resumed = train_together(cache, folder, seeds, scoring([0, 0]))
  expected = train_together(
    cache, tmp_path / "whole", seeds, scoring([3, 1, 1, 2, 0, 0])
  )
  assert_bitwise(resumed, expected)


def test_the_log_has_loss_parts_rate_norm_and_speed(cache, tmp_path):
  run_loop(cache, tmp_path / "a", scores=[1.0, 2.0, 3.0])
  lines = models.read_jsonl(tmp_path / "a" / "metrics.jsonl")
  names = ("loss", "info_nce", "distillation", "learning_rate", "gradient_norm")
  trained = {f"train/{name}" for name in names}
  assert set(lines[0]) == {"step"} | trained | models.SPEEDS
  assert lines[1] == {"step": 2, "eval/x": 1.0}
  assert list((tmp_path / "a" / "tensorboard").iterdir())


def contrasting(dtype=jnp.float32):
  return Objective(
    losses.parse("info_nce"), config=STUDENT.config, pooling="cls", dtype=dtype
  )


def spoiling(loss_fn, *, loss_rows=(), gradient_rows=()):
  """Makes a loss that is not finite on batches that hold one of these rows."""

  def spoiled(params, inputs):
    loss, parts = loss_fn(params, inputs)
    example_id = inputs.batch["example_id"]
    holds = lambda rows: jnp.isin(example_id, jnp.asarray(rows)).any()
    loss = jnp.where(holds(loss_rows), jnp.inf, loss)
    # The root of one, or of zero, where its derivative times zero is no number.
    one = 1 + 0 * jnp.sum(jax.tree.leaves(params)[0])
    return loss + jnp.sqrt(one - holds(gradient_rows)), parts

  return spoiled


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_step_that_is_not_finite_changes_neither_parameters_nor_optimizer(dtype):
  # Rows are numbered 0 to 7 in every batch: this one's example ids tell it apart.
  loss_fn = spoiling(contrasting(dtype), loss_rows=[100], gradient_rows=[200])
  trainer = make_trainer(loss_fn)
  batch = models.random_batch(0)
  states = [step_lib.init_state(student_params(), trainer.tx, jax.random.key(2))]
  for first in (0, 100, 200, 300):
    ids = np.arange(first, first + 8, dtype=np.int32)
    state, values = trainer.step_fn(
      jax.tree.map(jnp.array, states[-1]), {**batch, "example_id": ids}, {}
    )
    assert bool(values["is_finite"]) == (first in (0, 300))
    states.append(jax.device_get(state))
  kept = lambda state: (state.params, state.opt_state)
  assert_bitwise(kept(states[1]), kept(states[2]))
  assert_bitwise(kept(states[2]), kept(states[3]))
  with pytest.raises(AssertionError):
    assert_bitwise(kept(states[3]), kept(states[4]))
  assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]
  assert [int(state.skipped) for state in states] == [0, 0, 1, 2, 2]
  # Two warm-up steps: the second batch that counts, not the fourth, has half the rate.
  assert float(values["learning_rate"]) == pytest.approx(0.5e-3, rel=1e-6)


def test_skipped_batches_are_written_out_and_too_many_stop_the_run(cache, tmp_path):
  batches = make_batches(cache)
  met = [next(batches)["example_id"].tolist() for _ in range(6)]
  # The second and the third batch of six are spoiled by a row each.
  loss_fn = spoiling(contrasting(), loss_rows=[met[1][0]], gradient_rows=[met[2][5]])
  trainer = make_trainer(loss_fn, max_skipped_steps=2)
  loop.train(trainer, [make_run(cache, tmp_path / "skips")], config={})
  lines = models.read_jsonl(tmp_path / "skips" / "skipped.jsonl")
  assert [line["step"] for line in lines] == [2, 3]
  assert [line["example_ids"] for line in lines] == met[1:3]
  assert lines[0]["sentences"] == [models.SENTENCES[row] for row in met[1]]
  assert lines[0]["loss"] == "inf" and lines[1]["gradient_norm"] == "nan"
  logged = models.read_jsonl(tmp_path / "skips" / "metrics.jsonl")
  # Steps 2, 4 and 6 are logged, except for values that are not finite.
  assert ["train/loss" in line for line in logged] == [False, True, True]
  assert [line["train/skipped_steps"] for line in logged] == [1, 2, 2]
  trainer = dataclasses.replace(trainer, max_skipped_steps=1)
  for _ in range(2):  # Once more from the checkpoint of step 2.
    with pytest.raises(UserError, match="test: at step 3 gradient_norm is nan .*batch"):
      loop.train(trainer, [make_run(cache, tmp_path / "stops")], config={})
    lines = models.read_jsonl(tmp_path / "stops" / "skipped.jsonl")
    assert [line["step"] for line in lines] == [2, 3]
    steps = (tmp_path / "stops" / "checkpoints").iterdir()
    assert [path.name for path in steps] == ["2"]


@pytest.mark.parametrize("devices", [(8, 1), (1, 8)])
def test_a_run_goes_on_with_another_number_of_devices(cache, tmp_path, devices):
  before, after = devices
  loss_fn = contrasting()
  trainers = {n: make_trainer(loss_fn, devices=n) for n in devices}

  def train(name, n, evaluate):
    loop.train(
      trainers[n], [make_run(cache, tmp_path / name, evaluate=evaluate)], config={}
    )
    return models.read_jsonl(tmp_path / name / "metrics.jsonl")

  whole = train("whole", before, lambda params: {})
  with pytest.raises(Interrupted):
    train("moved", before, scoring([0.0, 0.0], stop_at=2))
  moved = train("moved", after, lambda params: {})
  # Another batch or other dropout would change the loss by far more.
  assert [line["step"] for line in moved] == [2, 4, 6]
  for a, b in zip(whole, moved, strict=True):
    assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)


def test_hosts_may_become_more_or_fewer_between_two_batches(cache, tmp_path):
  alone = make_batches(cache)
  for _ in range(3):
    next(alone)
  state = json.loads(json.dumps(alone.get_state()))
  hosts = [
    batches_lib.make_batches(
      cache, batch_size=8, seed=3, bucket_batches=2, host=h, num_hosts=2
    )
    for h in range(2)
  ]
  for host in hosts:
    host.set_state(state)
  for _ in range(60):  # Into the second epoch.
    parts = [next(host)["example_id"] for host in hosts]
    np.testing.assert_array_equal(np.concatenate(parts), next(alone)["example_id"])


def test_steps_are_traced_where_the_config_says(cache, tmp_path):
  trainer = dataclasses.replace(loop_trainer(), profile_steps=(2, 4))
  loop.train(trainer, [make_run(cache, tmp_path / "a")], config={})
  assert len(list((tmp_path / "a" / "profile").rglob("*.xplane.pb"))) == 1

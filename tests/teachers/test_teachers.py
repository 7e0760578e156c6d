"""Teachers: many, unlike, cached; and how far they agree."""

import dataclasses
import json
import logging
import shutil
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dcse_jax import losses
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.eval import diagnostics
from dcse_jax.hub import folder
from dcse_jax.hub import wordpiece
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.recipe import probes
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import workdir
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import cache as teacher_cache
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.teachers import teaching
from tests import models
from tests import processes
from tests.recipes import from_files

TEACHERS = [
  models.tiny_model(5, num_layers=1),
  models.tiny_model(6, num_layers=2),
  models.tiny_model(7, num_layers=1),
]


# One program, since compiling every operation by itself takes longer.
encode = jax.jit(encoder_lib.encode, static_argnames=("config", "pooling"))


def with_other_tokenizer(seed, **shape):
  """Makes a teacher whose tokenizer splits the same sentences into other tokens."""
  tokenizer = wordpiece.train_wordpiece(models.SENTENCES[:100], vocab_size=90)
  model = models.tiny_model(seed, vocab_size=len(tokenizer), **shape)
  return dataclasses.replace(model, tokenizer=tokenizer)


def make_tokens(path, model, max_length=16, **kwargs):
  return tokens_lib.build_token_cache(
    path,
    [models.SENTENCES[:100]],
    tokenize=lambda s: model_lib.tokenize(model.tokenizer, s, max_length),
    tokenizer_state=model_lib.tokenizer_state(model.tokenizer),
    max_length=max_length,
    pad_token_id=model.config.pad_token_id,
    vocab_size=model.config.vocab_size,
    **kwargs,
  )


def cosines(model, sentences):
  """Computes cosines with the public encoder, sentence by sentence, without a stack."""
  encoder = SentenceEncoder.__new__(SentenceEncoder)
  encoder.model = dataclasses.replace(model, max_length=16)
  encoder._params, encoder._mesh = model.params, None
  embeddings = np.stack([encoder.encode(s) for s in sentences])
  return np.asarray(losses.cosine_similarity(embeddings, embeddings))


def similarity(params, stacks, batch, dtype=jnp.float32):
  """Computes cosines of `teacher_embeddings`, in one program."""

  def run(params, batch):
    joint = stacks_lib.teacher_embeddings(params, stacks, batch, dtype=dtype)
    return losses.cosine_similarity(joint, joint)

  return jax.jit(run)(params, batch)


def test_averaged_teachers_equal_the_mean_of_each_alone():
  batch = models.random_batch(0)
  ids, mask = batch["input_ids"][:, 0], batch["attention_mask"][:, 0]
  expected = 0.0
  for teacher, weight in zip(TEACHERS, (0.5, 0.25, 0.25)):
    embeddings = encode(teacher.params, teacher.config, ids, mask, pooling="mean")
    expected += weight * losses.cosine_similarity(embeddings, embeddings)
  stacks, params = stacks_lib.stack_teachers(TEACHERS, [2, 1, 1])
  assert [len(stack.weights) for stack in stacks] == [2, 1]
  ours = similarity(params, stacks, batch)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("form", ["vmap", "unrolled"])
def test_every_way_to_run_a_stack_gives_the_same_embeddings(form):
  batch = models.random_batch(0)
  (stack, _), (params, _) = stacks_lib.stack_teachers(TEACHERS, [1, 1, 1])

  def embed(teacher):
    return encode(
      teacher,
      stack.config,
      batch["input_ids"][:, 0],
      batch["attention_mask"][:, 0],
      pooling="mean",
    )

  expected = np.stack([embed(TEACHERS[0].params), embed(TEACHERS[2].params)])
  for ours in (
    jax.jit(lambda params: stacks_lib.run_stack(embed, params, form))(params),
    jax.jit(lambda params: stacks_lib.run_stack(embed, params))(params),
  ):
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_bfloat16_teachers_take_half_the_memory_and_agree():
  batch = models.random_batch(0)
  exact = stacks_lib.stack_teachers(TEACHERS, [1, 1, 1])
  half = stacks_lib.stack_teachers(TEACHERS, [1, 1, 1], dtype=jnp.bfloat16)
  size = lambda params: sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert size(half[1]) == size(exact[1]) / 2
  a, b = (
    similarity(params, stacks, batch, dtype)
    for (stacks, params), dtype in ((exact, jnp.float32), (half, jnp.bfloat16))
  )
  np.testing.assert_allclose(a, b, atol=0.02)


def test_unlike_teachers_average_what_each_says_of_the_sentence_itself(tmp_path):
  student = models.tiny_model(1)
  unlike = [
    models.tiny_model(5),
    models.tiny_model(6, hidden_size=24, num_layers=3, pooling="mean_top2"),
    with_other_tokenizer(7, hidden_size=8, pooling="cls"),
  ]
  tokens = make_tokens(tmp_path, student)
  sentences = [models.SENTENCES[row] for row in tokens.source_rows]
  teachers = [
    teaching.Teacher(
      str(i),
      model,
      weight,
      # The rows are chosen already: the student's.
      tokens
      if i < 2
      else tokens_lib.build_token_cache(
        tmp_path,
        [sentences],
        tokenize=lambda s: model_lib.tokenize(unlike[2].tokenizer, s, 16),
        tokenizer_state="other",
        max_length=16,
        pad_token_id=0,
        vocab_size=90,
        keep_repeats=True,
      ),
    )
    for i, (model, weight) in enumerate(zip(unlike, (1, 2, 5)))
  ]
  rows = np.asarray([4, 40, 7, 11])
  expected = sum(
    share * cosines(model, [sentences[row] for row in rows])
    for model, share in zip(unlike, (1 / 8, 2 / 8, 5 / 8))
  )
  for taught in (
    teaching.online(teachers, tokens, "float32"),
    teaching.cached(teachers, tmp_path, dtype="float32", compute_dtype="float32"),
  ):
    batch = tokens.gather(rows)
    for source in taught.sources:
      batch |= source.gather(rows)
    ours = similarity(taught.params, taught.stacks, batch)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


# --- The cache of embeddings --------------------------------------------------


def cache_of(tmp_path, dtype="float32", **kwargs):
  model = TEACHERS[0]
  tokens = make_tokens(tmp_path, model)
  return teacher_cache.build_teacher_cache(
    tmp_path, model, tokens, name="t", dtype=dtype, **kwargs
  )


@pytest.mark.parametrize(
  "dtype, tolerance",
  # Half the last place of numbers below 1: 2^-12, 2^-9, and float32's rounding.
  [("float16", 2.5e-4), ("bfloat16", 2e-3), ("float32", 1e-6)],
)
def test_the_cache_holds_unit_embeddings_by_example_id(tmp_path, dtype, tolerance):
  file = cache_of(tmp_path, dtype=dtype)
  tokens = make_tokens(tmp_path, TEACHERS[0])
  rows = np.asarray([30, 2, 77])
  gathered = teacher_cache.TeacherEmbeddings([file]).gather(rows)["teacher_embeddings"]
  batch = tokens.gather(rows)
  expected = encode(
    TEACHERS[0].params,
    TEACHERS[0].config,
    batch["input_ids"][:, 0],
    batch["attention_mask"][:, 0],
    pooling="mean",
  )
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  assert gathered.dtype == jnp.dtype(dtype)
  np.testing.assert_allclose(gathered.astype(np.float32), expected, atol=tolerance)


def test_a_cache_is_named_by_weights_pooling_tokens_and_type(tmp_path):
  model = TEACHERS[0]
  tokens = make_tokens(tmp_path, model)
  other = jax.tree.map(np.array, model.params)
  other["embeddings"]["norm"]["bias"][3] += 1e-3
  variants = [
    (model, tokens),
    (dataclasses.replace(model, params=other), tokens),
    (dataclasses.replace(model, pooling="cls"), tokens),
    (model, make_tokens(tmp_path, model, max_length=15)),
    (model, make_tokens(tmp_path, with_other_tokenizer(1))),
  ]
  keys = [teacher_cache.teacher_key(*variant, "float16") for variant in variants]
  keys.append(teacher_cache.teacher_key(model, tokens, "float32"))
  assert len(set(keys)) == 6
  assert keys[0] == teacher_cache.teacher_key(model, tokens, "float16")


def test_an_interrupted_cache_goes_on_with_the_missing_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(teacher_cache, "_BLOCK_ROWS", 16)
  whole = np.array(cache_of(tmp_path / "whole"))
  original, calls = teacher_cache.encode_tokens, []

  def encode(params, config, token_ids, **kwargs):
    calls.append(len(token_ids))
    if len(calls) == 4:
      raise KeyboardInterrupt
    return original(params, config, token_ids, **kwargs)

  monkeypatch.setattr(teacher_cache, "encode_tokens", encode)
  with pytest.raises(KeyboardInterrupt):
    cache_of(tmp_path / "cut")
  assert not list((tmp_path / "cut").glob("teacher-*"))
  resumed = np.array(cache_of(tmp_path / "cut"))
  # Three of 7 blocks were there; the fourth call was cut.
  assert len(whole) == 100 and calls == [16] * 7 + [4]
  np.testing.assert_array_equal(resumed, whole)


def test_hosts_divide_the_blocks_and_all_see_the_whole(tmp_path):
  whole = np.array(cache_of(tmp_path / "whole"))
  (tmp_path / "two").mkdir()
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = str(free.getsockname()[1])
  hosts = [
    processes.start("tests.cache_host", host, port, str(tmp_path / "two"))
    for host in ("0", "1")
  ]
  with hosts[0], hosts[1]:
    codes = [host.wait() for host in hosts]
  assert codes == [0, 0], [host.stderr() for host in hosts]
  # Seven blocks of 16 rows or fewer: 0, 2, 4, 6 and 1, 3, 5.
  assert [host.stdout().split()[-1] for host in hosts] == ["4", "3"]
  for host in (0, 1):
    seen = np.load(tmp_path / f"two/seen-{host}.npy")
    np.testing.assert_allclose(seen, whole, atol=1e-6)


@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cache_that_does_not_fit_is_refused_before_training(
  files, monkeypatch, trains
):
  config = from_files(files, teacher_cache="float32")
  config.rounds.base.seeds = (1, 2)
  config.rounds.student.seeds = (5, 6, 7)
  # Two teachers, then three, 60 sentences, 16 dimensions, 4 bytes.
  need = (2 + 3) * 60 * 16 * 4
  usage = shutil.disk_usage(files)
  set_free = lambda free: monkeypatch.setattr(
    shutil, "disk_usage", lambda path: usage._replace(free=free)
  )
  set_free(need - 1)
  with pytest.raises(UserError, match="the teacher cache needs.*teacher_cache=''"):
    recipe_lib.run(config, str(files / "run"))
  assert not (files / "run" / "base").exists()
  if not trains:
    return
  set_free(need)
  recipe_lib.run(config, str(files / "run"))
  # What is there already needs no room.
  set_free(0)
  recipe_lib.run(config, str(files / "run"))


def test_what_two_rounds_read_otherwise_takes_room_twice(files, monkeypatch):
  # One teacher of a table's first column in one round, and of its second in another.
  lines = [
    "a,b",
    *(f'"{a}","{b}"' for a, b in zip(*[iter(models.SENTENCES[:120])] * 2)),
  ]
  (files / "pairs.csv").write_text("\n".join(lines) + "\n")
  config = from_files(files, text=str(files / "pairs.csv"), recipe=("one", "other"))
  with config.unlocked():
    for name, column in (("one", "a"), ("other", "b")):
      config.rounds[name] = {
        **config.rounds.student,
        "seeds": (1,),
        "teachers": (str(files / "model"),),
        "columns": (column,),
        "teacher_cache": "float32",
      }
  usage = shutil.disk_usage(files)
  need = 2 * 60 * 16 * 4
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
  # A file of another size, which another config left, is no help.
  other = files / "run" / "cache" / "teacher-other" / "embeddings.bin"
  other.parent.mkdir(parents=True)
  other.write_bytes(bytes(need * 2))
  with pytest.raises(UserError, match="the teacher cache needs 0.00 GB"):
    recipe_lib.run(config, str(files / "run"))


# --- Whole recipes ------------------------------------------------------------


def distil(files, name, **fields):
  """Trains a student with these fields of its round; returns its logged losses."""
  config = from_files(files, recipe=("student",))
  with config.unlocked():
    config.rounds.student.update(
      objective="info_nce + distillation",
      teachers=(str(files / "t1"), str(files / "t2"), str(files / "t3")),
      teacher_weights=(0.2, 0.3, 0.5),
      seeds=(42,),
      log_every=1,
      **fields,
    )
  recipe_lib.run(config, str(files / name))
  lines = models.read_jsonl(files / name / "student" / "42" / "metrics.jsonl")
  return np.asarray([line["train/loss"] for line in lines if "train/loss" in line])


def test_cached_and_online_teachers_train_alike(files):
  models.write_tiny_folder(files / "t1", seed=3, num_layers=1)
  models.write_tiny_folder(files / "t2", seed=4, num_layers=2, pooling="cls")
  folder.save(with_other_tokenizer(5, hidden_size=24), files / "t3")
  online = distil(files, "online")
  assert len(online) == 4
  for dtype, tolerance in (("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 1e-2)):
    cached = distil(files, dtype, teacher_cache=dtype)
    np.testing.assert_allclose(cached, online, rtol=tolerance)
  # Each teacher once, and no embedding is computed again by another round.
  caches = list((files / "float16" / "cache").glob("teacher-*"))
  assert len(caches) == 3


@pytest.mark.slow
def test_a_recipe_goes_on_to_a_second_round_and_to_single_models(files):
  config = from_files(files)
  config.rounds.base.seeds = (1, 2)
  config.rounds.student.seeds = (1, 2)
  config.recipe = ("base", "student")
  recipe_lib.run(config, str(files / "run"))
  made = {p: p.stat().st_mtime_ns for p in (files / "run").rglob("result.json")}
  # The recipe may grow: what is trained stays.
  with config.unlocked():
    config.rounds.one = {**config.rounds.student, "teachers": ("student/2",)}
    config.recipe = ("base", "student", "second", "one")
  config.rounds.second.seeds = (1,)
  trained = recipe_lib.run(config, str(files / "run"))
  assert [(m["round"], m["seed"]) for m in trained] == [
    ("base", 1),
    ("base", 2),
    ("student", 1),
    ("student", 2),
    ("second", 1),
    ("one", 1),
    ("one", 2),
  ]
  for path, time in made.items():
    assert path.stat().st_mtime_ns == time
  spread = json.loads((files / "run" / "second" / "teachers.json").read_text())
  assert spread["teachers"] == ["student-1", "student-2"]
  assert not (files / "run" / "one" / "teachers.json").exists()


@pytest.mark.slow
def test_how_teachers_differ_is_measured_once_a_round_by_its_first_seed(
  files, monkeypatch
):
  models.write_tiny_folder(files / "other", seed=3, num_layers=1)
  config = from_files(files, recipe=("student",))
  config.rounds.student.update(
    teachers=(str(files / "model"), str(files / "other")),
    objective="info_nce + list_net",
    seeds=(1, 2, 3),
  )
  embedded = []
  original = probes.Probe.embed

  def embed(self, model, split):
    embedded.append(split)
    return original(self, model, split)

  monkeypatch.setattr(probes.Probe, "embed", embed)
  recipe_lib.run(config, str(files / "run"))
  # Both teachers embed the first seed's sentences, and each model itself when it is
  # finished; no term is measured by held-out similarities of teachers.
  assert embedded == ["train", "train"] + 3 * ["held_out", "train"]
  path = files / "run" / "student" / "teachers.json"
  before = path.read_bytes()
  shutil.rmtree(files / "run" / "student" / "3")
  written = path.stat().st_mtime_ns
  recipe_lib.run(config, str(files / "run"))
  assert path.stat().st_mtime_ns == written
  # If lost, it is made again from the same sentences, though another seed is trained.
  path.unlink()
  shutil.rmtree(files / "run" / "student" / "3")
  recipe_lib.run(config, str(files / "run"))
  assert path.read_bytes() == before


def test_a_teachers_own_tokens_are_of_the_students_rows(files):
  # The third row repeats the first: the student's cache leaves it out.
  text = models.SENTENCES[:2] + models.SENTENCES[:1] + models.SENTENCES[2:40]
  (files / "text.txt").write_text("\n".join(text) + "\n")
  folder.save(with_other_tokenizer(5, max_positions=10), files / "t")
  config = from_files(files, recipe=("student",))
  config.rounds.student.teachers = (str(files / "t"),)
  config.rounds.student.seeds = (1,)
  recipe = recipe_lib.read(config, workdir.Workdir(str(files / "run")))
  teacher = recipe.inputs.outside[str(files / "t")]
  student = recipe.rounds["student"]
  ours = recipe.inputs.tokens(student)
  theirs = recipe.inputs.teacher_tokens(str(files / "t"), student)
  assert len(ours) == len(theirs) == 40
  # There are no more of them than the teacher takes.
  expected = model_lib.tokenize(teacher.tokenizer, models.SENTENCES[:40], 10)
  assert [ids.tolist() for ids in theirs.sentences(0, 40)] == expected
  recipe_lib.train(recipe)


def test_a_teacher_temperature_that_leaves_one_sentence_is_warned_of_once(
  files, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("dcse_jax"), "propagate", True)
  models.write_tiny_folder(files / "t", seed=3, num_layers=1)
  config = from_files(files, recipe=("student",))
  config.rounds.student.teachers = (str(files / "t"),)
  config.rounds.student.seeds = (1, 2)
  # Any two cosines differ by more than sixteen times as much.
  config.distillation.teacher_temperature = 1e-7
  recipe_lib.run(config, str(files / "run"))
  said = [m for m in caplog.messages if "teacher_temperature=1e-07" in m]
  assert len(said) == 1 and "raise it" in said[0]


def test_a_row_is_one_hot_when_the_others_vanish_beside_the_largest():
  # The largest of three others is 0.1 above the next. At 0.1 / t = 20 the others
  # have 2e-9, which float32 cannot tell from nothing; at 10 they have 5e-5.
  row = [0.5, 0.4, 0.3]
  cosines = np.ones((1, 4, 4), np.float32)
  cosines[0][~np.eye(4, dtype=bool)] = np.tile(row, 4)
  assert losses.share_one_hot(cosines, 0.1 / 20) == 1.0
  assert losses.share_one_hot(cosines, 0.1 / 10) == 0.0


def test_a_term_says_itself_what_is_likely_not_meant():
  # Eight teachers' sentences at right angles: no row is one-hot, and a group of 0.1
  # holds 0.7 of the seven others.
  said = losses.parse("distillation", {"distillation": {"group_probability": 0.1}})
  term, settings = said[0].term, said[0].settings
  (warning,) = term.warnings({"teacher": np.eye(8, dtype=np.float32)[None]}, settings)
  assert warning == (
    "distillation.group_probability=0.1 of batch_size=8: groups hold fewer than two "
    "sentences, so next to nothing is shuffled"
  )
  settings = {**settings, "group_probability": 0.3}
  assert not term.warnings({"teacher": np.eye(8, dtype=np.float32)[None]}, settings)


def test_a_measure_that_asks_for_what_no_probe_has_is_refused():
  with pytest.raises(TypeError, match="asks for queue, pace: it may ask for anchors"):
    losses.terms.term(held_out=lambda queue, *, pace: queue)(lambda anchors: anchors)


def test_a_change_of_an_earlier_round_is_refused_even_if_it_is_gone(files):
  config = from_files(files)
  config.rounds.base.seeds, config.rounds.student.seeds = (1, 2), (1,)
  config.recipe = ("base", "student")
  recipe_lib.run(config, str(files / "run"))
  shutil.rmtree(files / "run" / "base")
  with config.unlocked():
    config.rounds.base.info_nce = dict(temperature=0.1)
  with pytest.raises(
    UserError, match="student comes from something else: another round base"
  ):
    recipe_lib.run(config, str(files / "run"))


def test_a_seed_more_trains_beside_those_that_are_there(files):
  config = from_files(files, "simcse", parallel_seeds=True)
  config.rounds.simcse.seeds = (1,)
  (alone,) = recipe_lib.run(config, str(files / "run"))
  config.rounds.simcse.seeds = (1, 2)
  one, two = recipe_lib.run(config, str(files / "run"))
  assert (one["name"], two["name"]) == ("simcse-1", "simcse-2")
  assert one["dev"] == alone["dev"]


def test_a_seed_that_no_round_has_is_refused(files):
  config = from_files(files)
  config.rounds.student.teachers = ("base/9",)
  with pytest.raises(UserError, match="base/9: round base has the seeds"):
    recipe_lib.run(config, str(files / "run"))


@pytest.mark.slow
def test_seeds_in_parallel_train_as_one_after_the_other(files):
  results = []
  for parallel in (False, True):
    config = from_files(files, parallel_seeds=parallel, teacher_cache="float32")
    config.recipe = ("base", "student")
    config.rounds.base.seeds = (1, 2)
    config.rounds.student.seeds = (5, 6, 7)
    trained = recipe_lib.run(config, str(files / str(parallel)))
    lines = [
      models.read_jsonl(
        files / str(parallel) / m["round"] / str(m["seed"]) / "metrics.jsonl"
      )
      for m in trained
    ]
    results.append(
      [[x["train/loss"] for x in each if "train/loss" in x] for each in lines]
    )
  np.testing.assert_allclose(results[0], results[1], rtol=1e-4)


# --- Diagnostics ----------------------------------------------------------------


def test_orders_are_means_and_cosines_of_unit_embeddings():
  batches = np.asarray([[[3.0, 4.0], [2.0, 0.0], [0.0, 1.0]]])
  # Units (0.6, 0.8), (1, 0) and (0, 1).
  np.testing.assert_allclose(diagnostics.first_order(batches), [0.7, 0.5, 0.5])
  np.testing.assert_allclose(
    diagnostics.second_order(batches), [[0.6, 0.8], [0.6, 0.0], [0.8, 0.0]]
  )


def test_histograms_are_densities_on_common_edges():
  rng = np.random.default_rng(0)
  result = diagnostics.histograms(
    rng.normal(size=(2, 8, 4)), rng.normal(size=(1, 8, 4))
  )
  for order in result.values():
    for split in ("train", "dev"):
      area = np.sum(np.diff(order["edges"]) * order[split])
      assert area == pytest.approx(1.0)
  assert "dev" not in diagnostics.histograms(np.ones((1, 4, 2)), None)["first_order"]


def test_the_spread_of_teachers_is_the_std_and_entropy_over_them():
  rng = np.random.default_rng(1)
  embeddings = rng.normal(size=(3, 2, 16, 8))
  result = diagnostics.teacher_spread(embeddings)
  unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
  std = unit.mean(axis=-1).std(axis=0, ddof=1)
  assert result["first_order"]["mean_std"] == pytest.approx(std.mean())
  # For a Gaussian: ln std + ln(2 pi e) / 2, and ln(2 pi e) is 2.837877.
  entropy = np.mean(np.log(std)) + 2.837877 / 2
  assert result["first_order"]["differential_entropy"] == pytest.approx(entropy)
  # The same by scipy, sentence after sentence.
  cosine = unit @ np.swapaxes(unit, -1, -2)
  expected = []
  for batch in range(2):
    for row in range(16):
      others = np.delete(np.arange(16), row)
      first, second = cosine[0, batch, row, others], cosine[1, batch, row, others]
      top = np.argsort(-first)[:12]
      expected.append(scipy.stats.spearmanr(first[top], second[top]).statistic)
  assert result["top12_spearman"][0][1] == pytest.approx(100 * np.mean(expected))
  np.testing.assert_allclose(np.diag(result["top12_spearman"]), 100.0)


def test_the_monitored_distillation_is_the_loss_without_dropout_or_shuffling():
  sentences, student = models.SENTENCES[:16], models.tiny_model(1)
  probe = probes.Probe(
    train=sentences[:8], held_out=sentences[8:], batch_size=8, max_length=16
  )
  settings = dict(
    student_temperature=0.1, teacher_temperature=0.05, divergence="cross_entropy"
  )
  joint = {
    split: np.stack(
      [
        losses.join_teachers(batch, (1, 2, 1))
        for batch in zip(*(probe.embed(teacher, split) for teacher in TEACHERS))
      ]
    )
    for split in ("train", "held_out")
  }
  # Shuffling is asked for, and left out of the measure.
  terms = losses.parse(
    "distillation", {"distillation": {**settings, "group_probability": 0.5}}
  )
  measure = probes.HeldOut(student, probe, terms, joint)
  ours = measure.metrics({"encoder": student.params})
  for split, part in (("train", sentences[:8]), ("held_out", sentences[8:])):
    taught = sum(w * cosines(t, part) for t, w in zip(TEACHERS, (0.25, 0.5, 0.25)))
    expected = losses.similarity_divergence(
      cosines(student, part), taught, **settings
    ).mean()
    assert ours[f"eval/distillation_{split}"] == pytest.approx(
      float(expected), rel=1e-4
    )

"""Steps compiled ahead: FLOPs, what a program moves, and TPUs that are not there."""

import dataclasses
import importlib.util
import json
import re
import types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from dcse_jax.ahead import abstract_step
from dcse_jax.ahead import hlo
from dcse_jax.hub import folder
from dcse_jax.model import bert
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.flops import encoder_flops
from dcse_jax.model.heads import Head
from dcse_jax.objective.inputs import Size
from dcse_jax.recipe import compose
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.teachers.stacks import CachedTeachers
from dcse_jax.teachers.stacks import TeacherStack
from dcse_jax.train import flops
from dcse_jax.train import step as step_lib
from tests import models
from tests import processes
from tests.recipes import load_config
from tests.recipes import tiny


def compiled(fn, *shapes):
  """A program for eight devices, of float32 arrays divided by their first axis."""
  mesh = mesh_lib.make_mesh(jax.devices())
  by_row = mesh_lib.over_batch(mesh)
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=by_row) for s in shapes]
  text = jax.jit(lambda *xs: fn(mesh, *xs)).lower(*arguments).compile().as_text()
  return hlo.Program(text, mesh.size)


def everywhere(mesh, x):
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


def test_collectives_are_counted_by_kind_with_their_bytes():
  def fn(mesh, x, y):
    return everywhere(mesh, x) * 2, jnp.sum(y)

  found = compiled(fn, (64, 16), (8, 5)).collectives()
  # All of x, 64 * 16 floats, on every device; seven eighths of it are received or sent.
  assert found["all-gather"] == hlo.Collective(1, 4096, 4096 * 7 / 8)
  # One float is sent there and back.
  assert found["all-reduce"] == hlo.Collective(1, 4, 2 * 4 * 7 / 8)
  assert set(found) == {"all-gather", "all-reduce"}


def test_what_a_loop_does_counts_as_often_as_it_turns():
  def fn(mesh, x):
    turn = lambda carry, _: (jnp.tanh(x.T @ (x @ carry)), None)
    return jax.lax.scan(turn, everywhere(mesh, jnp.ones((16, 4))), length=5)[0]

  found = compiled(fn, (64, 16)).collectives()
  # Each turn sums products of the rows [16, 4] over the devices.
  assert found == {"all-reduce": hlo.Collective(5, 5 * 16 * 4 * 4, 5 * 2 * 256 * 7 / 8)}


@pytest.mark.parametrize(
  "groups, size",
  [
    ("{{0,1},{2,3},{4,5},{6,7}}", 2),
    ("[2,4]<=[8]", 4),
    ("[4,2]<=[2,4]T(1,0)", 2),
    ("mesh['data'=4,'fsdp'=2] {'fsdp'}", 2),
    ("mesh['data'=4,'fsdp'=2] {'data','fsdp'}", 8),
    ("mesh['data'=8] {'data':(2)4}", 4),
    ("{}", 8),
  ],
)
def test_a_group_of_a_collective_is_read_in_every_notation(groups, size):
  text = f"""HloModule m

ENTRY %main (x: f32[10]) -> f32[10] {{
  %x = f32[10]{{0}} parameter(0)
  ROOT %sum = f32[10]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}
}}
"""
  found = hlo.Program(text, 8).collectives()["all-reduce"]
  assert found.sent == pytest.approx(2 * 40 * (size - 1) / size)


def test_a_collective_runs_beside_what_stands_between_its_start_and_its_end():
  """Nothing stands between those of the first; a sum between those of the others."""
  text = """HloModule m

%scattered (a: f32[64]) -> f32[8] {
  %a = f32[64]{0} parameter(0)
  ROOT %part = f32[8]{0} reduce-scatter(%a), channel_id=3, dimensions={0}
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %start.1 = f32[64]{0} all-reduce-start(%x), channel_id=1
  %done.1 = f32[64]{0} all-reduce-done(%start.1)
  %start.2 = f32[64]{0} all-reduce-start(%done.1), channel_id=2
  %start.3 = ((f32[64]{0}), f32[8]{0}) async-start(%x), calls=%scattered
  %sum = f32[64]{0} add(%x, %x)
  %done.3 = f32[8]{0} async-done(%start.3)
  ROOT %done.2 = f32[64]{0} all-reduce-done(%start.2)
}
"""
  found = hlo.Program(text, 8).collectives()
  # 64 floats each; a ring sends seven eighths of them, all-reduce twice.
  assert found["all-reduce"] == hlo.Collective(2, 2 * 256, 2 * 2 * 224, beside=1)
  assert found["reduce-scatter"] == hlo.Collective(1, 256, 224, beside=1)


def test_memory_traffic_is_what_is_read_and_written_slices_as_slices():
  def fn(mesh, x):
    return jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros(1000), x)[0]

  text = jax.jit(lambda x: fn(None, x))
  text = text.lower(jax.ShapeDtypeStruct((50, 1000), jnp.float32)).compile().as_text()
  moved = hlo.Program(text, 1).memory_bytes()
  # A turn reads a row and the total and writes the total. Copies around the loop,
  # and its counter, are less than a tenth.
  assert moved == pytest.approx(50 * 3 * 4000, rel=0.1)


CONFIG = bert.EncoderConfig(
  model_type="bert",
  vocab_size=100,
  hidden_size=128,
  num_layers=3,
  num_heads=4,
  intermediate_size=512,
  max_positions=64,
  type_vocab_size=2,
  activation="relu",
)
SHAPE = dict(sentences=16, length=32, squared_length=32**2)


def test_an_encoders_flops_are_its_matrix_products():
  # For a token and layer: query, key, value and output are four products of
  # [128] with [128, 128], the feed-forward two with [128, 512], scores and weighted
  # values 32 products of [128] each; two FLOPs a multiplication.
  token = 2 * (4 * 128 * 128 + 2 * 128 * 512 + 2 * 32 * 128)
  assert encoder_flops(CONFIG, **SHAPE) == 16 * 32 * 3 * token
  # The last layer, for one position: keys and values for 32, the rest for one.
  last = 32 * 2 * (2 * 128 * 128) + 2 * (2 * 128 * 128 + 2 * 128 * 512 + 2 * 32 * 128)
  expected = 16 * (32 * 2 * token + last)
  assert encoder_flops(CONFIG, positions=1, **SHAPE) == expected


@pytest.mark.parametrize("pooling, positions", [("cls", 1), ("mean", 0)])
def test_xla_counts_as_many_flops_of_an_encoder_and_its_gradient(pooling, positions):
  def loss(params, ids, mask):
    embeddings = encoder_lib.encode(params, CONFIG, ids, mask, pooling=pooling)
    return embeddings.sum()

  arguments = (
    encoder_lib.abstract_params(CONFIG),
    jax.ShapeDtypeStruct((16, 32), jnp.int32),
    jax.ShapeDtypeStruct((16, 32), bool),
  )
  ours = encoder_flops(CONFIG, positions=positions, **SHAPE)
  for times, fn in ((1, loss), (3, jax.grad(loss))):
    theirs = jax.jit(fn).lower(*arguments).compile().cost_analysis()["flops"]
    # XLA counts operations on single elements too: softmax, LayerNorm, ...
    assert times * ours < theirs < 1.1 * times * ours


def round_config(**fields):
  config = load_config("distillcse")
  config.update(batch_size=16, max_length=32, **fields)
  return config


def abstract_model(pooling):
  return models.tiny_model(pooling=pooling, num_layers=1)


def test_a_steps_flops_are_the_students_thrice_and_the_teachers_once():
  start = abstract_model("cls")
  lengths = dict(length=10.0, squared_length=110.0)
  encode = lambda sentences, pooling="cls": encoder_flops(
    start.config, sentences=sentences, positions=int(pooling == "cls"), **lengths
  )
  # Two views, each through a projection [16, 16]; one matrix of cosines.
  product = 2 * 16 * 16 * 16
  plain = 3 * (encode(32) + 32 * 2 * 16 * 16 + product)
  names = lambda stacks: "info_nce + distillation" if stacks else "info_nce"

  def count(*stacks, columns=1):
    config = round_config(objective=names(stacks))
    size = Size(batch=16, columns=columns, max_length=32, **lengths)
    return compose.make_objective(config, start, stacks).flops(size)

  assert count() == plain
  # Three columns: three encodings, and cosines with hard negatives too.
  assert count(columns=3) == 3 * (encode(48) + 48 * 2 * 16 * 16 + 2 * product)
  # The student's own cosines come with teachers.
  stack = TeacherStack(start.config, "mean", (0.5, 0.5))
  assert count(stack) == plain + 3 * product + 2 * (encode(16, "mean") + product)
  cached = CachedTeachers((16, 32), (0.5, 0.5))
  assert count(cached) == plain + 3 * product + 2 * 16 * 16 * 48


def test_a_language_models_flops_are_those_of_what_is_predicted():
  start = abstract_model("mean")
  # 15 % of 32 tokens are 5.
  lengths = dict(length=32, squared_length=32**2)
  encoder = encoder_flops(start.config, sentences=16, positions=5, **lengths)
  head = 16 * 5 * 2 * 16 * (16 + start.config.vocab_size)
  config = round_config(objective="masked_language_model")
  size = Size(batch=16, columns=1, max_length=32, **lengths)
  objective = compose.make_objective(config, start)
  assert objective.flops(size) == 3 * (encoder + head)


def test_utilisation_is_of_the_peak_where_it_is_known():
  # Half of what four chips of 197 TFLOP/s do in 2 s.
  work = flops.Work(tokens=64 * 20, flops=0.5 * 2 * 4 * 197e12, dtype="bfloat16")
  devices = lambda kind: [types.SimpleNamespace(device_kind=kind)] * 4
  assert work.metrics(2.0, devices("TPU v5 lite")) == {
    "train/step_seconds": 2.0,
    "train/tokens_per_second": 64 * 20 / 2,
    "train/model_flop_utilisation": pytest.approx(0.5),
  }
  found = work.metrics(2.0, devices("cpu"))
  assert found["train/model_tflops_per_second"] == pytest.approx(0.5 * 197)


def recipe(files, **fields):
  config = tiny(load_config("distillcse"))
  config.update(model=str(files / "model"), **fields)
  return config


def test_the_abstract_step_takes_what_the_real_one_takes(files):
  """Real arrays of its shapes are trained on, from config.json alone."""
  for path in (files / "model").iterdir():
    if path.name not in ("config.json", "modules.json", "1_Pooling"):
      path.unlink()
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  step = abstract_step.make_abstract_step(recipe(files), "student", mesh)
  arguments = jax.tree.map(
    lambda x: jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding), step.arguments
  )
  before = jax.tree.map(jnp.shape, arguments[0])
  state, metrics = step.step_fn(*arguments, None)
  assert jax.tree.map(jnp.shape, state) == before
  assert np.isfinite(jax.device_get(metrics["distillation"]))


@pytest.mark.parametrize(
  "fields, columns",
  [
    (dict(text="tfds:my_set:train:a,b,c"), 3),
    (dict(text="tfds:my_set:train:a"), 1),
    (dict(text="pairs.tsv", columns=("a", "b")), 2),
    (dict(switch_case=0.2), 2),
    (dict(crop=(0.4, 0.8)), 2),
  ],
)
def test_the_abstract_batch_has_the_columns_of_the_text(files, fields, columns):
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  step = abstract_step.make_abstract_step(recipe(files, **fields), "base", mesh)
  assert step.arguments[1]["input_ids"].shape == (8, columns, 16)
  assert step.num_columns == columns


@pytest.mark.parametrize(
  "family",
  [
    f if f in ("mpnet", "modernbert") else pytest.param(f, marks=pytest.mark.slow)
    for f in encoder_lib.NEW
  ],
)
def test_a_new_encoder_of_every_family_has_an_abstract_step(files, family):
  config = recipe(files, pooling="mean")
  config.model = ""
  config.encoder = {**config.encoder, "family": family}
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  step = abstract_step.make_abstract_step(config, "base", mesh)
  shapes = jax.eval_shape(step.step_fn, *step.arguments, None)
  assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(
    jnp.shape, step.arguments[0]
  )
  assert step.flops > 0


def test_cached_teachers_come_with_the_abstract_batch(files):
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  config = recipe(files, teacher_cache="float16")
  step = abstract_step.make_abstract_step(config, "student", mesh)
  _, batch, frozen = step.arguments
  # Four models of the first round, of width 16 as the start.
  embeddings = batch["teacher_embeddings"]
  assert (embeddings.shape, embeddings.dtype) == ((8, 4 * 16), jnp.float16)
  assert step.stacks == (CachedTeachers((16,) * 4, (0.25,) * 4),)
  assert not jax.tree.leaves(frozen)


def test_teachers_that_are_embeddings_come_with_the_batch_beside_those_that_run(files):
  np.save(files / "rows.npy", np.ones((60, 24), np.float16))
  config = recipe(files, teacher_cache="")
  config.rounds.student.update(
    teachers=("base/42", str(files / "rows.npy")), teacher_weights=(1.0, 3.0)
  )
  with config.unlocked():
    config.rounds.student.objective = "embedding_distillation"
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  step = abstract_step.make_abstract_step(config, "student", mesh)
  state, batch, frozen = step.arguments
  assert batch["teacher_embeddings"].shape == (8, 24)
  assert [stack.weights for stack in step.stacks] == [(0.25,), (0.75,)]
  # A map from the student to both, side by side.
  assert state.params["teacher_map"]["kernel"].shape == (16, 16 + 24)
  assert len(frozen["teachers"]) == 2


def test_a_counted_teacher_has_a_table_of_the_most_words_that_it_may_have():
  config = load_config("scratch")
  config.counted.words.most = 1000
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  _, _, frozen = abstract_step.make_abstract_step(config, "student", mesh).arguments
  # A stack of one, as wide as config.counted says, and a row for unknown words.
  assert [x.shape for x in jax.tree.leaves(frozen)] == [(1, 1001, 512)]


def test_the_dense_layers_of_a_teacher_are_part_of_the_abstract_step(files):
  # 16 numbers are pooled, 24 come out of the first layer, 20 of the second.
  rng = np.random.default_rng(0)
  layer = lambda n, m, **then: Head(rng.normal(size=(n, m)), np.zeros(m), **then)
  model = dataclasses.replace(
    models.tiny_model(5, num_layers=1), head=layer(16, 24, then=layer(24, 20))
  )
  folder.save(model, files / "dense")
  config = recipe(files, teacher_cache="", pooling="mean")
  config.rounds.student.teachers = (str(files / "dense"),)
  with config.unlocked():
    config.rounds.student.objective = "embedding_distillation"
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  step = abstract_step.make_abstract_step(config, "student", mesh)
  state, _, frozen = step.arguments
  head = frozen["teachers"][0]["head"]
  assert [each["kernel"].shape for each in head] == [(1, 16, 24), (1, 24, 20)]
  # The student is mapped to what comes out of the last.
  assert state.params["teacher_map"]["kernel"].shape == (16, 20)
  shapes = jax.eval_shape(step.step_fn, *step.arguments, None)
  assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, state)


def test_rounds_train_together_and_teachers_read_their_own_tokens_abstractly(files):
  models.write_tiny_folder(files / "other", num_layers=1, hidden_size=32)
  path = files / "other" / "config.json"
  other = {**json.loads(path.read_text()), "vocab_size": 77}
  path.write_text(json.dumps(other))
  config = recipe(files, parallel_seeds=True)
  config.rounds.student.teachers = ("base", str(files / "other"))
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  step = abstract_step.make_abstract_step(config, "student", mesh)
  state, batch, frozen = step.arguments
  assert step.num_models == len(config.rounds.student.seeds) == 4
  assert isinstance(state, step_lib.TrainState) and state.step.shape == (4,)
  assert batch["input_ids"].shape == (4, 8, 1, 16)
  assert len(batch["teacher_tokens"]) == 1
  # Four of the student's shape, and one of its own.
  assert [len(stack.weights) for stack in step.stacks] == [4, 1]
  shapes = [p["layers"]["query"]["bias"].shape for p in frozen["teachers"]]
  assert shapes == [(4, 1, 16), (1, 1, 32)]


HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
WITH_LIBTPU = pytest.mark.skipif(
  not HAS_LIBTPU, reason="libtpu is not installed: pip install -e '.[test,tpu]'"
)


def compile_command(*arguments):
  """A tiny recipe's last round, of two layers; no model, no text."""
  tiny_encoder = dict(num_layers=2, hidden_size=16, intermediate_size=32, num_heads=2)
  return processes.run(
    "dcse_jax.compile",
    "--config=configs/distillcse.py",
    "--config.model=",
    "--config.max_length=16",
    *(f"--config.encoder.{name}={size}" for name, size in tiny_encoder.items()),
    *arguments,
  )


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install():
  result = compile_command("--topology=v5e:2x2")
  assert result.returncode == 2
  assert re.fullmatch(r"error: .*pip install 'dcse_jax\[tpu\]'.*\n", result.stderr)


def test_a_topology_must_be_named():
  result = compile_command()
  assert result.returncode == 2
  assert re.fullmatch(r"error: .*--topology, such as v5e:2x4\n", result.stderr)


@WITH_LIBTPU
@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--topology=v5e:3x5",), r"--topology v5e:3x5: .*such as v5e:2x4"),
    (("--topology=v5e:2x2", "--round=third"), "the recipe has base, student, second"),
    (("--topology=v5e:2x4", "--config.batch_size=4"), "batch_size=4 .*8 devices"),
    # 3 * 2^22 rows of 4,096 floats, with two moments: 576 GiB.
    (
      (
        "--topology=v5e:2x2",
        "--config.encoder.hidden_size=4096",
        "--config.encoder.vocab_size=12582912",
        "--round=base",
      ),
      "does not fit a chip of v5e:2x2 .*microbatches",
    ),
  ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(arguments, message):
  result = compile_command(*arguments)
  assert result.returncode == 2
  assert re.fullmatch(rf"error: .*{message}.*\n", result.stderr)


@WITH_LIBTPU
def test_a_step_is_compiled_for_tpus_that_are_not_there(tmp_path):
  path = tmp_path / "report.json"
  result = compile_command("--topology=v5e:2x2", "--batch_per_chip=8", f"--json={path}")
  assert result.returncode == 0, result.stderr
  report = json.loads(path.read_text())
  assert (report["chips"], report["batch_size"]) == (4, 4 * 8)
  assert 0 < report["memory"]["total"] < report["memory"]["chip"] == 16 * 2**30
  # Every gradient is summed over the chips, in float32, and little else.
  shape = bert.EncoderConfig(
    model_type="bert",
    vocab_size=8000,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_positions=512,
    type_vocab_size=2,
  )
  params = jax.tree.leaves(encoder_lib.abstract_params(shape))
  gradient = 4 * (sum(p.size for p in params) + 16 * 16 + 16)
  summed = report["collectives"]["all-reduce"]["bytes"]
  assert gradient <= summed < 1.05 * gradient
  assert 0 < report["estimate"]["model_flop_utilisation"] <= 1
  assert "estimate by published rates" in result.stdout

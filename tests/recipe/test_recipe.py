"""Whole recipes through the real loop, and every way that bad input ends."""

import hashlib
import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
import sentence_transformers
import transformers

from dcse_jax import SentenceEncoder
from dcse_jax import report
from dcse_jax.eval import figures as figures_lib
from dcse_jax.eval import sts
from dcse_jax.eval import sts_sets
from dcse_jax.hub import folder
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes
from tests.recipes import from_files
from tests.recipes import load_config
from tests.recipes import tiny


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
  """The quickstart's recipe, tiny, run once."""
  workdir = tmp_path_factory.mktemp("quickstart")
  config = tiny(load_config("quickstart"))
  config.synthetic_sentences, config.synthetic_pairs = 200, 60
  config.lock()
  return config, workdir, recipe_lib.run(config, str(workdir))


def test_results_list_every_model_in_order_of_training(quickstart):
  _, workdir, models_ = quickstart
  written = json.loads((workdir / "results.json").read_text())
  assert written == {"models": models_}
  assert [(m["name"], m["round"], m["seed"]) for m in models_] == [
    ("pretrained", "pretrained", 0),
    ("base-1", "base", 1),
    ("base-2", "base", 2),
    ("distilled", "distilled", 3),
  ]
  for model in models_:
    assert set(model) == {"name", "round", "seed", "dev", "test"}
    assert -100 <= model["dev"] <= 100 and -100 <= model["test"] <= 100


def test_the_export_is_the_last_rounds_model_and_scores_as_reported(quickstart):
  _, workdir, models_ = quickstart
  sets = sts_sets.read_sts(str(workdir / "data" / "sts"))
  scores = sts.score_sts(SentenceEncoder(workdir / "export").encode, sets)
  assert scores["test"] == pytest.approx(models_[-1]["test"], abs=0.01)
  assert scores["dev"] == pytest.approx(models_[-1]["dev"], abs=0.01)


def test_the_export_lacks_nothing_that_transformers_looks_for(quickstart):
  _, workdir, _ = quickstart
  _, info = transformers.AutoModel.from_pretrained(
    workdir / "export", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]


def test_the_same_command_again_trains_nothing(quickstart, capsys):
  config, workdir, models_ = quickstart
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("result.json")}
  assert recipe_lib.run(config, str(workdir)) == models_
  after = {p: p.stat().st_mtime_ns for p in workdir.rglob("result.json")}
  assert before == after and len(before) == 4
  assert "/4  " not in capsys.readouterr().out


def test_a_lost_model_is_trained_again_to_the_same_bits(quickstart, tmp_path):
  config, workdir, models_ = quickstart
  shutil.copytree(workdir, tmp_path / "again")
  shutil.rmtree(tmp_path / "again" / "base" / "2")
  assert recipe_lib.run(config, str(tmp_path / "again")) == models_
  theirs, ours = (
    folder.load(str(path / "base" / "2" / "model")).params
    for path in (workdir, tmp_path / "again")
  )
  jax.tree.map(np.testing.assert_array_equal, theirs, ours)


def test_the_report_finds_all_that_it_shows_in_what_a_run_leaves(quickstart):
  _, workdir, models_ = quickstart
  page = report.write_report(workdir).read_text()
  figures = {path.stem for path in (workdir / "report").glob("*.png")}
  assert figures == set(figures_lib.SECTIONS)
  for model in models_:
    assert f"{model['dev']:.2f}".replace("-", "−") in page


def test_a_workdir_of_another_config_is_refused(quickstart):
  config, workdir, _ = quickstart
  other = config.copy_and_resolve_references()
  with other.unlocked():
    other.info_nce.temperature = 0.07
  with pytest.raises(UserError, match="temperature was 0.2 and is 0.07"):
    recipe_lib.run(other, str(workdir))


def test_a_text_that_changed_since_is_refused(files):
  config = from_files(files, "simcse")
  recipe_lib.run(config, str(files / "run"))
  with (files / "text.txt").open("a") as file:
    file.write("One sentence more.\n")
  with pytest.raises(UserError, match="simcse comes from something else: another text"):
    recipe_lib.run(config, str(files / "run"))


def test_a_change_that_is_accepted_leaves_what_is_finished_and_trains_the_rest(
  files, caplog, monkeypatch
):
  config = from_files(files, "simcse")
  monkeypatch.setattr(logging.getLogger("dcse_jax"), "propagate", True)
  config.rounds.simcse.seeds = (1,)
  recipe_lib.run(config, str(files / "run"))
  before = (files / "run/simcse/1/model/model.safetensors").read_bytes()
  config.rounds.simcse.seeds = (1, 2)
  config.info_nce.temperature = 0.1
  with pytest.raises(
    UserError, match="temperature was 0.05 and is 0.1.*accept_changes"
  ):
    recipe_lib.run(config, str(files / "run"))
  trained = recipe_lib.run(config, str(files / "run"), accept_changes=True)
  assert [model["seed"] for model in trained] == [1, 2]
  assert "temperature was 0.05 and is 0.1; going on with the change" in caplog.text
  assert (files / "run/simcse/1/model/model.safetensors").read_bytes() == before
  # What was accepted is what the round comes from now.
  assert recipe_lib.run(config, str(files / "run")) == trained


def test_a_workdir_that_is_older_than_a_field_goes_on(files):
  config = from_files(files, recipe=("base", "student"))
  config.rounds.base.seeds = config.rounds.student.seeds = (1,)
  trained = recipe_lib.run(config, str(files / "run"))
  # An earlier version wrote this: no such field, and parents named by all their fields.
  for name in ("base", "student"):
    path = files / "run" / name / "origin.json"
    origin = json.loads(path.read_text())
    for field in ("keep_head", "schedule_steps", "info_nce.negative_weight"):
      del origin["material"][field]
    if name == "base":
      parent = hashlib.sha256(json.dumps(origin["material"]).encode()).hexdigest()
    else:
      origin["material"]["round base"] = parent
    path.write_text(json.dumps(origin, indent=2))
  assert recipe_lib.run(config, str(files / "run")) == trained
  with config.unlocked():
    config.rounds.base.info_nce = dict(negative_weight=1.0)
  with pytest.raises(UserError, match="info_nce.negative_weight was 0.0 and is 1.0"):
    recipe_lib.run(config, str(files / "run"))


def test_what_has_no_influence_on_a_model_may_change(files):
  config = from_files(files, "simcse")
  trained = recipe_lib.run(config, str(files / "run"))
  for name in ("text.txt", "model", "sts"):
    (files / name).rename(files / f"moved-{name}")
  config.text = str(files / "moved-text.txt")
  config.model = str(files / "moved-model")
  config.sts = str(files / "moved-sts")
  config.log_every, config.max_skipped_steps = 7, 3
  assert recipe_lib.run(config, str(files / "run")) == trained


@pytest.mark.parametrize("what", ["model", "sets"])
def test_other_weights_or_sets_of_the_same_name_are_refused(files, what):
  config = from_files(files, "simcse")
  recipe_lib.run(config, str(files / "run"))
  if what == "model":
    models.write_tiny_folder(files / "model", seed=9, num_layers=1)
  else:
    models.write_sts(files / "sts", "STSB-dev", num_pairs=50)
  with pytest.raises(UserError, match=f"comes from something else: another {what}"):
    recipe_lib.run(config, str(files / "run"))


def test_outside_teachers_pool_as_the_run_does_unless_they_say_themselves(
  files, monkeypatch
):
  models.write_tiny_folder(files / "t", seed=3, pooling="mean_top2")
  (files / "t" / "modules.json").unlink()
  seen = []
  original = folder.load
  monkeypatch.setattr(
    folder, "load", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1]
  )
  config = from_files(files, recipe=("student",), pooling="mean")
  config.rounds.student.teachers = (str(files / "t"),)
  recipe_lib.run(config, str(files / "run"))
  assert [model.pooling for model in seen[:2]] == ["mean", "mean"]


@pytest.mark.parametrize("name", ["simcse", "focal", "distillcse"])
def test_every_paper_config_trains_on_a_users_text(name, files):
  config = from_files(files, name)
  # Two models a round are enough here.
  if name == "distillcse":
    config.rounds.base.seeds = config.rounds.student.seeds = (1, 2)
  trained = recipe_lib.run(config, str(files / "run"))
  assert trained[-1]["round"] == config.recipe[-1]
  embeddings = SentenceEncoder(files / "run" / "export").encode(["A cat."])
  assert embeddings.shape == (1, 16) and embeddings.dtype == np.float32


def test_from_scratch_a_users_text_is_all_it_takes(files):
  config = tiny(load_config("scratch", "ladder"))
  config.text = str(files / "text.txt")
  config.counted.words = dict(size=8, spelling_size=16, width=16, min_count=1)
  for name in config.rounds:
    config.rounds[name].seeds = (1, 2) if name == "student" else (1,)
    config.rounds[name].teacher_cache = "float32"
  trained = recipe_lib.run(config, str(files / "run"))
  names = [model["name"] for model in trained]
  assert names == ["student-1", "student-2", "plain", "group_p", "averaged", "second"]
  # The words and the two students, each in one file that all later rounds read.
  assert len(list((files / "run" / "cache").glob("teacher-*"))) == 3


def test_a_recipe_of_the_student_alone_takes_outside_teachers(files):
  models.write_tiny_folder(files / "t1", seed=3, num_layers=1)
  models.write_tiny_folder(files / "t2", seed=4, num_layers=2)
  config = from_files(files, recipe=("student",))
  config.rounds.student.teachers = (str(files / "t1"), str(files / "t2"))
  config.rounds.student.teacher_weights = (0.33, 0.67)
  config.rounds.student.seeds = (42,)
  trained = recipe_lib.run(config, str(files / "run"))
  assert [model["round"] for model in trained] == ["student"]
  lines = models.read_jsonl(files / "run" / "student" / "42" / "metrics.jsonl")
  assert "train/distillation" in lines[0]


def test_pairs_with_hard_negatives_train_from_a_table(files):
  rows = zip(models.SENTENCES[:40], models.SENTENCES[40:], models.SENTENCES[80:])
  lines = ["a\tb\tc\n", *("\t".join(row) + "\n" for row in rows)]
  (files / "nli.tsv").write_text("".join(lines))
  config = from_files(files, "simcse", text=str(files / "nli.tsv"))
  config.columns = ("a", "b", "c")
  recipe_lib.run(config, str(files / "run"))


def test_a_supervised_model_keeps_its_head_in_scores_and_in_the_export(files):
  rows = zip(models.SENTENCES[:40], models.SENTENCES[40:], models.SENTENCES[80:])
  lines = ["sent0,sent1,hard_neg", *(",".join(f'"{s}"' for s in row) for row in rows)]
  (files / "nli.csv").write_text("\n".join(lines) + "\n")
  config = tiny(load_config("simcse", "bert-base,supervised"))
  models.write_tiny_folder(files / "cls", num_layers=1, pooling="cls")
  config.model, config.text = str(files / "cls"), str(files / "nli.csv")
  config.sts, config.test = str(files / "sts"), ("X-test",)
  config.recipe = ("simcse", "again")
  config.rounds.again = {**config.rounds.simcse, "start": "simcse"}
  model, again = recipe_lib.run(config, str(files / "run"))
  head = folder.load(str(files / "run/simcse/42/model")).head
  assert head.kernel.shape == (16, 16) and head.activation == "Tanh"
  # What is exported scores as reported, also in PyTorch; without its head otherwise.
  sets = sts_sets.read_sts(str(files / "sts"))
  theirs = sentence_transformers.SentenceTransformer(
    str(files / "run/export"), device="cpu"
  )
  scores = sts.score_sts(lambda s: theirs.encode(list(s)), sets)
  assert scores["STSB-dev"] == pytest.approx(again["dev"], abs=0.01)
  assert scores["X-test"] == pytest.approx(again["test"], abs=0.01)
  # A model that starts from it begins without that head, and has its own.
  start = folder.load(str(files / "run/again/start"), weights=False)
  assert start.head is None


def test_a_schedule_may_be_longer_than_the_training(files):
  config = from_files(files, "simcse", schedule_steps=16, learning_rate=1e-3)
  config.rounds.simcse.log_every = 1
  recipe_lib.run(config, str(files / "run"))
  lines = models.read_jsonl(files / "run/simcse/42/metrics.jsonl")
  rates = [x["train/learning_rate"] for x in lines if "train/learning_rate" in x]
  # It falls by a sixteenth a step, and is not 0 at the fourth.
  np.testing.assert_allclose(rates, [1e-3 * (1 - i / 16) for i in range(4)], rtol=1e-5)


def test_without_sts_sets_the_last_parameters_are_exported(files):
  config = from_files(files, "simcse", sts="")
  (model,) = recipe_lib.run(config, str(files / "run"))
  assert model["dev"] is None and model["test"] is None
  assert (files / "run" / "export" / "model.safetensors").exists()


def test_the_folders_own_pooling_wins_over_the_configs(files):
  config = from_files(files, "simcse", pooling="cls")
  recipe_lib.run(config, str(files / "run"))
  assert folder.load(str(files / "run" / "export")).pooling == "mean"


def test_paper_and_script_temperatures_are_both_there():
  paper, script = (
    load_config("distillcse"),
    load_config("distillcse", "bert-base,script"),
  )
  temperatures = lambda c: (
    c.distillation.student_temperature,
    c.distillation.teacher_temperature,
  )
  assert temperatures(paper) == (0.02, 0.01)
  assert temperatures(script) == (0.025, 0.0125)
  assert script.num_train_steps == 5000
  assert load_config("distillcse", "roberta-large").learning_rate == 1e-5


def break_text(files, config):
  config.text = str(files / "nowhere.txt")


def empty_text(files, config):
  (files / "text.txt").write_text("\n \n")


def latin1_text(files, config):
  (files / "text.txt").write_bytes(b"fine\nna\xefve\n")


def unknown_architecture(files, config):
  path = files / "model" / "config.json"
  path.write_text(path.read_text().replace('"bert"', '"t5"'))


def large_batch(files, config):
  config.batch_size = 64


def unknown_metric(files, config):
  config.dev = ("STSB-devel",)


def too_many_layers(files, config):
  config.num_layers = 7


def bad_choice(files, config):
  config.distillation.divergence = "l2"


def two_shuffles(files, config):
  config.distillation.group_size = 4


def odd_batch(files, config):
  config.batch_size = 9


def no_text(files, config):
  config.text = ""


def long_sentences(files, config):
  config.max_length = 65


def teacher_round_left_out(files, config):
  config.recipe = ("student",)


def recipe_field_in_a_round(files, config):
  config.rounds.student.num_layers = 1


def unwritable_workdir(files, config):
  (files / "run").write_text("a file, not a folder")


def layers_that_are_not_there(files, config):
  config.rounds.base.objective = "sscl"


def negatives_that_are_positives(files, config):
  lines = ["a\tb\tc\n", *(f"{s}\tx{s}\tx{s}\n" for s in models.SENTENCES[:40])]
  (files / "nli.tsv").write_text("".join(lines))
  config.text, config.columns = str(files / "nli.tsv"), ("a", "b", "c")


def focal_with_negatives(files, config):
  rows = zip(models.SENTENCES[:40], models.SENTENCES[40:], models.SENTENCES[80:])
  lines = ["a\tb\tc\n", *("\t".join(row) + "\n" for row in rows)]
  (files / "nli.tsv").write_text("".join(lines))
  config.text, config.columns = str(files / "nli.tsv"), ("a", "b", "c")
  config.objective = "focal_info_nce"
  config.rounds.student.objective = "focal_info_nce + distillation"


def round_named_like_a_folder(files, config):
  config.rounds.report = config.rounds.student
  config.recipe = ("base", "report")


def unknown_round_field(files, config):
  config.rounds.student.temprature = 0.1


BAD_INPUT = {
  break_text: r"nowhere\.txt",
  empty_text: r"text\.txt: holds no sentence",
  latin1_text: r"text\.txt.*2.*UTF-8",
  unknown_architecture: r"unknown architecture 't5'",
  large_batch: r"60 distinct rows .*fewer than batch_size=64",
  unknown_metric: r"no evaluation yields 'STSB-devel'",
  too_many_layers: r"num_layers=7",
  bad_choice: r"divergence='l2'.*cross_entropy",
  two_shuffles: r"exclude each other",
  odd_batch: r"batch_size=9 .*multiple of 8",
  no_text: r"--config\.text",
  long_sentences: r"max_length=65.*64 tokens",
  teacher_round_left_out: r"base does not come before student",
  recipe_field_in_a_round: r"rounds\.student\.num_layers.*config\.num_layers",
  unwritable_workdir: r"cannot make the folder .*run",
  layers_that_are_not_there: r"round base: sscl.layers=\(11,\), but .* 1 layers",
  negatives_that_are_positives: r"hard negative of every row is its own",
  focal_with_negatives: r"no term of .*focal_info_nce.* takes hard",
  round_named_like_a_folder: r"no round can be called 'report'",
  unknown_round_field: r"rounds\.student: unknown field 'temprature'",
}


@pytest.mark.parametrize("spoil", BAD_INPUT, ids=lambda f: f.__name__)
def test_bad_input_ends_in_one_line_before_any_compilation(spoil, files, monkeypatch):
  config = from_files(files)
  spoil(files, config)

  def compile_nothing(*args, **kwargs):
    raise AssertionError("compiled before the input was checked")

  monkeypatch.setattr(jax, "jit", compile_nothing)
  with pytest.raises(UserError, match=BAD_INPUT[spoil]) as error:
    recipe_lib.run(config, str(files / "run"))
  assert "\n" not in str(error.value)
  # A mended command may use the same workdir.
  assert not list(files.glob("run/config.json")) + list(files.glob("run/*/origin.json"))


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--config=configs/nowhere.py",), r"nowhere\.py"),
    (("--config=configs/simcse.py:bert-tiny",), r"'bert-tiny'.*roberta"),
    (("--config=configs/simcse.py", "--config.temp=1"), r"field.*temp"),
    (("--config=configs/simcse.py", "--config.batch_size=x"), r"batch_size"),
    (("--confg=configs/simcse.py",), r"confg"),
    ((), r"--config FILE"),
    (("--config=configs/simcse.py",), r"--config\.text"),
  ],
  ids=lambda value: "",
)
def test_a_wrong_command_prints_one_line_and_exits_with_2(arguments, message, tmp_path):
  result = processes.run("dcse_jax.main", f"--workdir={tmp_path}", *arguments)
  assert result.returncode == 2, result.stderr
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: ")
  assert re.search(message, lines[0]), lines[0]

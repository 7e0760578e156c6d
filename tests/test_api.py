"""Training from Python: text in any form, the command line's run, terms of one's own."""

import json

import jax
import numpy as np
import pytest

import dcse_jax
from dcse_jax import api
from dcse_jax import losses
from dcse_jax import report
from dcse_jax.ahead import abstract_step
from dcse_jax.data.text import read_text
from dcse_jax.hub.model_card import make_card
from dcse_jax.recipe import finished
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes
from tests import recipes

SENTENCES = models.SENTENCES[:60]
# Fields of a run that takes a moment.
TINY = dict(
  batch_size=8,
  bucket_batches=2,
  max_length=16,
  num_train_steps=4,
  eval_every=2,
  log_every=2,
)


def flags(workdir, config, **fields):
  """Writes the same run for the command line."""
  fields = {**TINY, **fields}
  given = [f"--config.{name}={value}" for name, value in fields.items()]
  return ["dcse_jax.main", f"--config={config}", f"--workdir={workdir}", *given]


def content(path):
  return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A model folder and STS sets."""
  path = tmp_path_factory.mktemp("files")
  models.write_tiny_folder(path / "model", num_layers=1)
  models.write_sts(path / "sts", "STSB-dev")
  (path / "text.txt").write_text("\n".join(SENTENCES) + "\n")
  return path


@pytest.fixture(scope="module")
def run(place):
  """A student of one teacher, from a list of sentences."""
  run = dcse_jax.train(
    text=SENTENCES,
    model=place / "model",
    teachers=[place / "model"],
    workdir=place / "run",
    sts=str(place / "sts"),
    test=(),
    distillation={"student_temperature": 0.05},
    **TINY,
  )
  return run


def test_a_run_returns_its_results_its_model_and_its_report(run, place):
  assert json.loads((place / "run/results.json").read_text())["models"] == run.results
  (row,) = run.results
  assert (row["round"], row["seed"]) == ("student", 42) and row["dev"] is not None
  assert run.export == place / "run/export"
  embeddings = run.encoder(max_length=16).encode(SENTENCES[:3])
  assert embeddings.shape == (3, 16)
  page = run.report()
  assert page == place / "run/report/index.html" and "student" in page.read_text()


def test_the_command_line_goes_on_with_a_run_from_python_as_its_own(run, place):
  before = content(place / "run/export")
  result = processes.run(
    *flags(place / "run", "distillcse", sts=place / "sts", test="()"),
    *(f"--config.text={place}/text.txt", f"--config.model={place}/model"),
    *("--config.recipe=('student',)", "--config.rounds.student.seeds=(42,)"),
    f"--config.rounds.student.teachers=('{place}/model',)",
    "--config.distillation.student_temperature=0.05",
  )
  assert result.returncode == 0, result.stderr
  # Had anything differed it would have been refused; and nothing is trained anew.
  assert "4/4" not in result.stdout
  assert content(place / "run/export") == before


def test_the_same_call_goes_on_and_another_text_is_refused(run, place):
  call = dict(
    model=place / "model",
    teachers=[place / "model"],
    workdir=place / "run",
    sts=str(place / "sts"),
    test=(),
    distillation={"student_temperature": 0.05},
    **TINY,
  )
  finished = (place / "run/student/42/result.json").stat().st_mtime_ns
  again = api.train(text=(s for s in SENTENCES), **call)
  assert again.results == run.results
  assert (place / "run/student/42/result.json").stat().st_mtime_ns == finished
  with pytest.raises(UserError, match="comes from something else: another text"):
    api.train(text=SENTENCES[:-1], **call)


def texts_of(text, tmp_path, columns=()):
  path, columns = api._write_text(text, columns, tmp_path / "data")
  return read_text(str(path), columns).columns


PAIRS = [
  {"a": "a cat\nsleeps", "b": "sie schläft"},
  {"a": "it rains", "b": "es regnet"},
]


def test_sentences_dicts_and_datasets_are_read_as_they_were_given(tmp_path):
  assert texts_of(["one\ntwo", "drei ü"], tmp_path) == (["one two", "drei ü"],)
  expected = (["a cat sleeps", "it rains"], ["sie schläft", "es regnet"])
  assert texts_of(PAIRS, tmp_path) == expected
  assert texts_of(iter(PAIRS), tmp_path, ("b",)) == (expected[1],)
  datasets = pytest.importorskip("datasets")
  assert texts_of(datasets.Dataset.from_list(PAIRS), tmp_path) == expected
  # Equal text has one file.
  assert len(list((tmp_path / "data").iterdir())) == 3


@pytest.mark.parametrize(
  "text, message",
  [
    (["a", None, "b"], r"sentence 1 is a NoneType \(None\)"),
    (["a", "b", float("nan")], r"sentence 2 is a float \(nan\)"),
    ([*PAIRS, {"a": "x", "b": 3}], "row 2, column 'b' is a int"),
    ([*PAIRS, {"a": "x"}], "row 2, column 'b' is a NoneType"),
    ([*PAIRS, "x"], "row 2 is a str"),
    ({"a": ["x"]}, "text is a dict"),
    (3, "text is a int"),
  ],
  ids=str,
)
def test_what_is_no_text_is_a_type_error_that_names_its_place(text, message, tmp_path):
  with pytest.raises(TypeError, match=message):
    dcse_jax.train(text=text, workdir=tmp_path / "run")
  # Nothing half-written is left.
  assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"learnig_rate": 1.0}, "field 'learnig_rate': did you mean .learning_rate.?"),
    ({"info_nce": {"temprature": 1.0}}, "unknown config field 'temprature'"),
    ({"batch_size": "many"}, "config.batch_size='many'"),
    ({"config": "nowhere"}, "no config file nowhere"),
    ({"text": []}, "text is empty"),
    ({"text": [{"a": "x"}], "score_columns": ("a",)}, "columns named: 'a'"),
    ({"text": ["\ud800"]}, "sentence 0 holds half a surrogate pair"),
    ({"rounds": {"simcse": {"sedes": (1,)}}}, "unknown field 'sedes'"),
  ],
  ids=str,
)
def test_a_wrong_argument_is_refused_by_name(fields, message, tmp_path):
  with pytest.raises(UserError, match=message):
    dcse_jax.train(workdir=tmp_path / "run", **fields)


# --- Terms of one's own -------------------------------------------------------------

OWN = str(processes.ROOT / "docs/own_term.py")


@pytest.fixture
def own_terms(monkeypatch):
  """What a config registers in this process is forgotten again."""
  before = set(losses.TERMS)
  yield
  for name in set(losses.TERMS) - before:
    del losses.TERMS[name]


def test_a_term_of_ones_own_is_info_nce_where_its_margin_is_0(own_terms):
  api.load_config(OWN)
  own = losses.TERMS["margin_info_nce"].fn
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((2, 6, 5)).astype(np.float32)
  np.testing.assert_allclose(own(a, b, margin=0.0), losses.info_nce(a, b), rtol=1e-5)
  # Two unlike sentences: the chance of the right one is e^(0.5/0.5) / (e^1 + 1).
  eye = np.eye(2, dtype=np.float32)
  found = own(eye, eye, temperature=0.5, margin=0.5)
  np.testing.assert_allclose(found, np.log(1 + np.exp(-1.0)) * np.ones(2), rtol=1e-5)


def test_a_term_of_ones_own_is_compiled_ahead_as_any_other(own_terms, place):
  config = recipes.tiny(api.load_config(OWN))
  config.model = str(place / "model")
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  step = abstract_step.make_abstract_step(config, "own", mesh)
  _, metrics = jax.eval_shape(step.step_fn, *step.arguments, None)
  assert "margin_info_nce" in metrics


@pytest.mark.slow
def test_a_term_without_a_docstring_trains_goes_on_and_has_a_report_and_a_card(
  place, tmp_path
):
  path = tmp_path / "mine.py"
  start = processes.ROOT.joinpath("docs/own_term.py").read_text()
  first, _, after = start.partition('  """InfoNCE with')
  path.write_text(first + after.partition('"""\n')[2])
  command = [
    *flags(tmp_path / "run", path, text=place / "text.txt", model=place / "model"),
    "--config.margin_info_nce.margin=0.2",
  ]
  first = processes.run(*command)
  assert first.returncode == 0, first.stderr
  # As after an interruption: the checkpoint is there, and nothing that is made of it.
  (tmp_path / "run/own/42/result.json").unlink()
  again = processes.run(*command)
  assert again.returncode == 0 and "going on from step 4" in again.stdout, again.stderr
  other = processes.run(*command, "--config.margin_info_nce.margin=0.3")
  assert "margin_info_nce.margin was 0.2 and is 0.3" in other.stderr
  # This process has never seen the config that registers the term.
  page = report.write_report(tmp_path / "run")
  assert "margin_info_nce" in page.read_text()
  model, training = finished.load(tmp_path / "run/own/42")
  card = make_card(model, "mine", training)
  assert "`margin_info_nce`: a term of the run's own config" in card

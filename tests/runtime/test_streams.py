"""Commands whose streams are full, closed, in another encoding or without a reader."""

import functools
import json
import os
import signal

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.recipe import monitor
from dcse_jax.recipe import probes
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import signals
from dcse_jax.runtime.command_line import printable
from dcse_jax.teachers import cache as teacher_cache
from tests import models
from tests import processes
from tests import recipes

SENTENCES = ("Le café est fermé.", "It rains.")
FULL = functools.partial(processes.print_to, "/dev/full")
# A run that soon ends.
TINY = dict(
  recipe="('base',)",
  synthetic_sentences=200,
  synthetic_pairs=60,
  batch_size=8,
  max_length=16,
  num_train_steps=4,
  eval_every=2,
  log_every=2,
  **{f"encoder.{key}": value for key, value in recipes.TINY.items()},
  **{"rounds.base.seeds": "(1,)", "rounds.base.start": ""},
  **{"rounds.base.num_train_steps": 4},
)


def train(workdir):
  fields = [f"--config.{key}={value}" for key, value in TINY.items()]
  return ["main", "--config=configs/quickstart.py", f"--workdir={workdir}", *fields]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
  """A folder with a model, a text, its embeddings, a set and a finished run."""
  path = tmp_path_factory.mktemp("streams")
  models.write_tiny_folder(path / "m")
  (path / "s.txt").write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
  np.save(path / "s.npy", SentenceEncoder(str(path / "m")).encode(list(SENTENCES)))
  models.write_sts(path / "sts", "STSB-test")
  done = processes.run("dcse_jax.main", *train(path / "run")[1:])
  assert done.returncode == 0, done.stderr
  return path


def search(here, *queries):
  files = (f"--embeddings={here}/s.npy", f"--sentences={here}/s.txt")
  return ["search", f"--model={here}/m", *files, "--threshold=-1", *queries]


def command(name, here, to):
  """Returns a command, and the path of what it writes, if anything."""
  model = f"--model={here}/m"
  return {
    "search": lambda: (search(here, "--query=rain"), None),
    "encode": lambda: (
      ["encode", model, f"--input={here}/s.txt", f"--output={to}.npy"],
      f"{to}.npy",
    ),
    "evaluate": lambda: (
      ["evaluate", model, f"--sts={here}/sts", f"--output={to}.json"],
      f"{to}.json",
    ),
    "convert": lambda: (
      ["convert", f"{here}/m", f"--output={to}"],
      f"{to}/model.safetensors",
    ),
    "report": lambda: (["report", f"{here}/run"], f"{here}/run/report/index.html"),
    "main": lambda: (train(to), f"{to}/results.json"),
  }[name]()


def run(arguments, **options):
  name, *rest = arguments
  return processes.run(f"dcse_jax.{name}", *rest, **options)


COMMANDS = [
  "encode",
  *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("search", "evaluate", "convert", "report", "main")
  ),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_work_is_done_though_nobody_reads_or_the_device_is_full(name, here, tmp_path):
  for preexec, status, error in (
    (processes.print_to_nobody, 141 if name == "search" else 0, ""),
    (FULL, 2, "error: cannot print (No space left on device)"),
    (functools.partial(os.close, 1), 2 if name == "search" else 0, None),
  ):
    arguments, written = command(name, here, tmp_path / preexec.__repr__()[-8:-1])
    if written and os.path.exists(written):
      os.remove(written)
    done = run(arguments, preexec=preexec)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr
    if error is not None:
      assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == (status == 2)
    assert not written or os.path.exists(written)


def test_without_stdin_there_is_no_query(here):
  done = run(search(here), preexec=functools.partial(os.close, 0))
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
  "env",
  [
    {"PYTHONIOENCODING": "ascii"},
    pytest.param(
      {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_what_a_terminal_cannot_show_is_spelled_out(here, env):
  # Encodings are chosen as Python starts.
  done = run(search(here, "--query=rain"), env=env, fresh=True)
  assert done.returncode == 0, done.stderr
  assert "\tLe caf\\xe9 est ferm\\xe9.\n" in done.stdout
  assert "\tIt rains.\n" in done.stdout


def test_a_query_that_is_not_utf8_names_line_and_byte(here):
  # The process is given UTF-8; a lone surrogate is how Python spells another byte.
  done = run(search(here), stdin="rain\ncaf\udce9\n", stdin_errors="surrogateescape")
  assert done.returncode == 2
  assert done.stdout.startswith("rain\n")
  assert done.stderr == (
    "error: standard input line 2: not valid UTF-8 (byte 4 is 0xe9); re-save it as "
    "UTF-8\n"
  )
  done = run(search(here, "--query=caf\udce9"))
  assert done.returncode == 2
  assert done.stderr == "error: --query=caf\\udce9: is not valid UTF-8\n"


def test_a_run_whose_terminal_is_gone_goes_on_to_its_end(tmp_path):
  done = run(train(tmp_path / "run"), preexec=processes.lose_terminal)
  assert done.returncode == 0
  assert (tmp_path / "run" / "results.json").exists()


def test_nothing_of_a_file_steers_the_terminal(tmp_path):
  # A title, a colour, the cursor, a bell, a right-to-left mark, C1's own escape.
  hostile = "\x1b]0;x\x07\x1b[31m\x1b[2J\x08\r\u202e\x9b"
  (tmp_path / "a.jsonl").write_text(json.dumps({f"{hostile}a": "b"}) + "\n")
  name = tmp_path / f"{hostile}.txt"
  name.write_text("A sentence.\n")
  for arguments in (
    [*train(tmp_path / "run"), f"--config.text={name}", "--config.sts=x"],
    ["encode", f"--model={tmp_path}", f"--input={name}x", f"--output={tmp_path}/x.npy"],
    [
      *train(tmp_path / "run"),
      "--config.synthetic_sentences=0",
      f"--config.text={tmp_path}/a.jsonl",
      "--config.columns=('c',)",
    ],
  ):
    done = run(arguments)
    assert done.returncode == 2, done.stderr
    for line in (done.stdout + done.stderr).split("\n"):
      assert all(c.isprintable() for c in line), repr(line)
  assert "\\x1b" in done.stderr
  assert printable("é ☃ \x1b") == "é ☃ \\x1b"


# --- Signals ----------------------------------------------------------------------


@pytest.mark.parametrize(
  "number, owner, name, call, begun",
  [
    # In the last evaluation of a model, of two.
    (signal.SIGTERM, monitor.Scorer, "metrics", 2, {"base"}),
    (signal.SIGHUP, monitor.Scorer, "metrics", 2, {"base"}),
    # The signal comes as its scores are taken, and between it and the next.
    (signal.SIGTERM, monitor.Scorer, "scores", 1, {"base"}),
    (signal.SIGTERM, probes.Probe, "histograms", 1, {"base"}),
    # While teachers are probed, and cached.
    (signal.SIGTERM, probes.Probe, "embed", 3, {"base", "student"}),
    (signal.SIGHUP, teacher_cache, "encode_tokens", 1, {"base", "student"}),
  ],
)
def test_a_signal_anywhere_ends_a_run_before_anything_further_begins(
  files, monkeypatch, number, owner, name, call, begun
):
  config = recipes.from_files(files, recipe=("base", "student"))
  config.rounds.base.seeds, config.rounds.student.seeds = (1,), (3,)
  config.teacher_cache = "float16"
  original, calls = getattr(owner, name), []

  def signalled(*args, **kwargs):
    calls.append(name)
    if len(calls) == call:
      os.kill(os.getpid(), number)
    assert len(calls) <= call, "it went on"
    return original(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(owner, name, signalled)
    with pytest.raises(signals.Interrupted), signals.handled():
      recipe_lib.run(config, str(files / "run"))
  assert len(calls) == call
  steps = lambda seed: list((files / "run" / seed).glob("checkpoints/*"))
  assert steps("base/1") and not steps("student/3")
  assert {p.parent.name for p in (files / "run").glob("*/origin.json")} == begun
  recipe_lib.run(config, str(files / "run"))

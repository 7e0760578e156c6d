"""What commands write: which files stay, who may write, and which names are allowed."""

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.encode import encode_file
from dcse_jax.eval import offline
from dcse_jax.hub import folder
from dcse_jax.recipe import finished
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import digests as digests_lib
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import checkpoint
from tests import models
from tests import processes
from tests import recipes

# Foreign content of a folder that a model is written to.
FOREIGN = (".git/HEAD", "onnx/model.onnx", "notes.txt", "1_Pooling/mine.json")


def content(path):
  """Returns what files hold, by name."""
  return {
    str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()
  }


def write_foreign(path):
  for name in FOREIGN:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text("not ours\n")


def card(text):
  return lambda path: path.joinpath("README.md").write_text(text)


# --- Replacing a folder -----------------------------------------------------------


def test_a_model_takes_the_place_of_one_of_ours_and_of_nothing_else(tmp_path):
  path = tmp_path / "m"
  # The first has a file that the second lacks.
  folder.save(models.tiny_model(0, pooling="mean_top2", num_layers=3), path, card("a"))
  gone = set(content(path))
  write_foreign(path)
  folder.save(models.tiny_model(1), path, card("b"))
  folder.save(models.tiny_model(1), tmp_path / "new", card("b"))
  new = content(tmp_path / "new")
  assert content(path) == new | {name: b"not ours\n" for name in FOREIGN}
  assert gone - new.keys()
  assert [p.name for p in sorted(tmp_path.iterdir())] == ["m", "new"]


def test_a_folder_that_is_not_ours_is_refused_unless_told_and_keeps_its_files(tmp_path):
  path = tmp_path / "training"
  models.write_tiny_folder(path)
  write_foreign(path)
  before = content(path)
  with pytest.raises(UserError, match=r"training is .* not ours .* --overwrite$"):
    folder.save(models.tiny_model(1), path)
  assert content(path) == before
  folder.save(models.tiny_model(1), path, overwrite=True)
  folder.save(models.tiny_model(1), tmp_path / "new")
  assert content(path) == before | content(tmp_path / "new")


def test_a_readme_that_was_edited_stays_and_other_edits_are_not_lost(tmp_path, caplog):
  path = tmp_path / "m"
  folder.save(models.tiny_model(0), path, card("ours"))
  folder.save(models.tiny_model(0), path, card("ours, newer"))
  assert (path / "README.md").read_text() == "ours, newer"
  (path / "README.md").write_text("theirs")
  folder.save(models.tiny_model(1), path, card("ours"), overwrite=True)
  assert (path / "README.md").read_text() == "theirs"
  assert caplog.messages == [f"{path}/README.md was changed by hand and stays as it is"]
  (path / "config.json").write_text("{}")
  before = content(path)
  with pytest.raises(UserError, match="config.json is not as it was .* --overwrite"):
    folder.save(models.tiny_model(2), path, card("ours"))
  assert content(path) == before
  folder.save(models.tiny_model(2), path, card("ours"), overwrite=True)
  assert folder.load(str(path)).config.hidden_size == 16


def states_of(monkeypatch, path, action, tmp_path):
  """What a process that dies between two changes of names would leave, for each."""
  states = []

  def recorded(call):
    def wrapper(*args, **kwargs):
      states.append(shutil.copytree(path.parent, tmp_path / f"state-{len(states)}"))
      return call(*args, **kwargs)

    return wrapper

  with monkeypatch.context() as patch:
    for name in ("replace", "rename", "unlink"):
      patch.setattr(pathlib.Path, name, recorded(getattr(pathlib.Path, name)))
    action()
  return [state / path.name for state in states]


def test_a_folder_whose_writer_died_is_whole_or_refused_and_then_written_again(
  tmp_path, monkeypatch
):
  first, second = models.tiny_model(0, pooling="cls"), models.tiny_model(1)
  path, refused = tmp_path / "here" / "m", 0
  folder.save(second, tmp_path / "new")
  folder.save(first, path)
  old, new = content(path), content(tmp_path / "new")
  states = states_of(monkeypatch, path, lambda: folder.save(second, path), tmp_path)
  assert content(path) == new
  for state in states:
    if digests_lib.find_damage(state):
      with pytest.raises(UserError, match="as it was written|is missing"):
        folder.load(str(state))
      refused += 1
    else:
      there = content(state)
      there.pop(f".{digests_lib.NAME}.tmp", None)
      assert there in (old, new)
    folder.save(second, state)
    assert content(state) == new
    assert os.listdir(state.parent) == ["m"]
  # Each file of the second that is not equal in the first, and the digests.
  assert refused >= len(set(new.items()) - set(old.items()))


def test_a_finished_recipe_run_again_writes_nothing_and_leaves_what_people_added(files):
  config = recipes.from_files(files, recipe=("base",))
  config.rounds.base.seeds = (1,)
  run = lambda: recipe_lib.run(config, str(files / "run"))
  run()
  export = files / "run" / "export"
  (export / "notes.txt").write_text("mine")
  (export / "README.md").write_text("mine, too")
  times = lambda: {p: p.stat().st_mtime_ns for p in (files / "run").rglob("*")}
  before = times()
  run()
  after = times()
  # The lock comes and goes in the workdir itself.
  assert {p for p in before | after if before.get(p) != after.get(p)} <= {files / "run"}
  # Only what is damaged is written again.
  (export / "model.safetensors").write_bytes(b"")
  expected = content(export)
  run()
  expected["model.safetensors"] = (
    files / "run" / "base" / "1" / "model" / "model.safetensors"
  ).read_bytes()
  assert content(export) == expected


def test_all_files_of_a_run_may_be_read_as_the_umask_says(files):
  config = recipes.from_files(files, recipe=("base",))
  config.rounds.base.seeds = (1,)
  before = os.umask(0o027)
  try:
    recipe_lib.run(config, str(files / "run"))
  finally:
    os.umask(before)
  modes = {p: p.stat().st_mode & 0o777 for p in (files / "run").rglob("*")}
  assert {m for p, m in modes.items() if p.is_file()} == {0o640}
  assert {m for p, m in modes.items() if p.is_dir()} == {0o750}


# --- Locks ------------------------------------------------------------------------


@pytest.fixture(params=["locks", "no locks"])
def has_locks(request, monkeypatch):
  """Whether the file system has locks, which some network file systems lack."""
  if request.param == "no locks":

    def flock(*_):
      raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
  return request.param == "locks"


def test_who_holds_an_output_keeps_others_off_and_leaves_nothing(
  tmp_path, has_locks, caplog
):
  path = tmp_path / "m.npy"
  holder = re.escape(f"m.npy is in use by process {os.getpid()} on ")
  for _ in range(2):
    with locks.output_locked(path):
      with pytest.raises(UserError, match=holder), locks.output_locked(path):
        raise AssertionError("both have it")
    assert not list(tmp_path.iterdir())
  said = [m for m in caplog.messages if "no file locks here (No locks avail" in m]
  assert bool(said) != has_locks


def test_an_owner_that_died_is_not_waited_for_and_one_that_lives_is(
  tmp_path, monkeypatch
):
  def flock(*_):
    raise OSError(errno.EOPNOTSUPP, "")

  monkeypatch.setattr(fcntl, "flock", flock)
  with locks.locked(tmp_path):
    (owner,) = tmp_path.glob("*-owner")
    ours = json.loads(owner.read_text())
  # No process has this number.
  dead = ours | {"pid": 2**30}
  elsewhere = ours | {"where": "another", "name": "process 1 on another"}
  now = os.stat(tmp_path).st_mtime
  for content_, age, is_free in (
    (dead, 0, True),
    (ours, 1000, False),
    (elsewhere, 0, False),
    (elsewhere, 1000, True),
  ):
    owner.write_text(json.dumps(content_))
    os.utime(owner, (now - age, now - age))
    if is_free:
      with locks.locked(tmp_path):
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    else:
      with pytest.raises(UserError, match="in use by process"):
        with locks.locked(tmp_path):
          raise AssertionError("both have it")
      owner.unlink()


def test_two_that_encode_to_one_file_do_not_mix_their_rows(tmp_path):
  encoder = SentenceEncoder(models.write_tiny_folder(tmp_path / "m"))
  (tmp_path / "s.txt").write_text("\n".join(models.SENTENCES) + "\n")
  output = tmp_path / "s.npy"
  begun = encoder.encode_stream

  def while_another_begins(*args, **kwargs):
    with pytest.raises(UserError, match="s.npy is in use by process"):
      encode_file(encoder, str(tmp_path / "s.txt"), str(output))
    return begun(*args, **kwargs)

  encoder.encode_stream = while_another_begins
  encode_file(encoder, str(tmp_path / "s.txt"), str(output))
  del encoder.encode_stream
  np.testing.assert_array_equal(np.load(output), encoder.encode(models.SENTENCES))


# --- Names that look like something else ------------------------------------------


@pytest.mark.parametrize("name", ["exp[1]", "lr=[1e-5]_b8", "a*?{b}%20"])
def test_no_name_of_a_workdir_is_a_pattern(files, name):
  workdir = files / name
  config = recipes.from_files(files, recipe=("base", "student"))
  config.rounds.base.seeds, config.rounds.student.seeds = (1,), (3,)
  recipe_lib.run(config, str(workdir))
  saved = checkpoint.Checkpoints(workdir / "student/3/checkpoints")
  assert saved.steps == [2, 4] and not saved.damage
  assert finished.load(workdir / "base" / "1", step=2)[1].step == 2
  # It is named as a model, as a teacher, to convert, and to evaluate.
  assert finished.find(workdir) == (workdir / "student" / "3", None)
  assert offline.find_models([str(workdir / "base")])
  np.testing.assert_array_equal(
    SentenceEncoder(str(workdir / "export")).encode(["A cat."]),
    SentenceEncoder(str(workdir / "student/3/model")).encode(["A cat."]),
  )


def test_a_path_with_a_tilde_is_in_the_home_folder(files, monkeypatch):
  (files / "home").mkdir()
  (files / "here").mkdir()
  monkeypatch.setenv("HOME", str(files / "home"))
  monkeypatch.chdir(files / "here")
  config = recipes.from_files(files, recipe=("base",))
  config.rounds.base.seeds = (1,)
  recipe_lib.run(config, "~/run")
  assert (files / "home" / "run" / "results.json").exists()
  assert os.listdir(files / "here") == []


@pytest.mark.parametrize(
  "command",
  [
    ("main", "--config=configs/quickstart.py", "--workdir=~nobody-here/x"),
    ("report", "~nobody-here/x"),
    ("convert", "x", "--output=~nobody-here/x"),
    ("encode", "--model=x", "--input=~nobody-here/x.txt", "--output=x.npy"),
    ("encode", "--model=x", "--input=README.md", "--output=~nobody-here/x.npy"),
    ("search", "--model=x", "--embeddings=~nobody-here/x.npy", "--sentences=x"),
    ("evaluate", "--model=x", "--sts=~nobody-here/x"),
    ("evaluate", "--model=x", "--transfer=~nobody-here/x"),
    ("demo", "--model=x", "--corpus=~nobody-here/x.txt"),
  ],
)
def test_a_path_of_nobody_is_one_line_in_every_command(command):
  name, *arguments = command
  done = processes.run(f"dcse_jax.{name}", *arguments)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "~nobody-here/x" in line and "is no path" in line

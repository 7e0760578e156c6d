"""What an installed package has: its files, its command, its configs, from anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile

from absl import flags
import pytest

from dcse_jax import cli
from dcse_jax.runtime import arguments
from dcse_jax.runtime.errors import UserError
from tests import processes

ROOT = processes.ROOT
# What a checkout has that a wheel is made from.
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "requirements.txt", "configs")


def names(folder, prefix):
  """Lists the files of a folder that belong in a wheel, with their names there."""
  files = (p for p in folder.rglob("*") if p.is_file() and p.suffix in (".py", ".html"))
  return {f"{prefix}/{path.relative_to(folder)}" for path in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """A wheel, built from a copy of the sources with this Python's setuptools."""
  pytest.importorskip("setuptools", "77")
  path = tmp_path_factory.mktemp("sources")
  for name in SOURCES:
    source = ROOT / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path / name)
  ignore = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "dcse_jax", path / "dcse_jax", symlinks=True, ignore=ignore)
  build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
  subprocess.run(
    [sys.executable, "-c", build], cwd=path, check=True, capture_output=True
  )
  (built,) = path.glob("dist/*.whl")
  return built


def test_a_wheel_has_every_module_every_config_and_the_command(wheel):
  with zipfile.ZipFile(wheel) as file:
    found = set(file.namelist())
    (entry,) = (name for name in found if name.endswith("entry_points.txt"))
    assert file.read(entry).decode().split() == [
      "[console_scripts]",
      *("dcse-jax", "=", "dcse_jax.cli:main"),
    ]
  wanted = names(ROOT / "dcse_jax", "dcse_jax")
  wanted |= names(ROOT / "configs", "dcse_jax/configs")
  assert {name for name in found if ".dist-info/" not in name} == wanted


def test_a_wheel_elsewhere_finds_its_configs_and_lists_its_commands(wheel, tmp_path):
  with zipfile.ZipFile(wheel) as file:
    file.extractall(tmp_path / "site")
  code = (
    "import sys, dcse_jax.configs.simcse as mine; from dcse_jax.runtime import arguments;"
    "print(mine.__file__, arguments.find_config('distillcse:bert-base'));"
    "from dcse_jax import cli; sys.argv[1:] = []; cli.main()"
  )
  (tmp_path / "elsewhere").mkdir()
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path / "elsewhere",
    env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    capture_output=True,
    text=True,
  )
  configs = tmp_path / "site/dcse_jax/configs"
  first, *rest = result.stdout.splitlines()
  assert first == f"{configs}/simcse.py {configs}/distillcse.py:bert-base"
  for name in cli.COMMANDS:
    assert any(line.startswith(f"  {name} ") for line in rest), result.stderr


# --- Names of configs ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["simcse", "simcse.py"])
@pytest.mark.parametrize("variant", ["", ":bert-base,mlm"])
def test_a_packaged_config_is_found_where_no_such_file_exists(
  name, variant, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  found = arguments.find_config(name + variant)
  assert found == f"{ROOT}/dcse_jax/configs/simcse.py{variant}"
  (tmp_path / name).write_text("")
  assert arguments.find_config(name + variant).endswith(f"{name}{variant}")
  assert "dcse_jax" not in arguments.find_config(name + variant)


@pytest.mark.parametrize("name", ["nowhere", "nowhere/simcse.py", "./simcse"])
def test_a_config_that_is_nowhere_is_refused_with_those_that_are(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=f"no config file {name}.* cards,.* simcse,"):
    arguments.find_config(name)


# --- The command --------------------------------------------------------------------


def test_dashes_and_underscores_are_both_taken_and_values_stay_as_they_are(monkeypatch):
  known = flags.FlagValues()
  flags.DEFINE_bool("keep_head", False, "", flag_values=known)
  flags.DEFINE_string("my_query", None, "", flag_values=known)
  monkeypatch.setattr(arguments.flags, "FLAGS", known)
  given = "a-b --keep-head --no-keep-head --my-query --x-y -my-query=--x-y"
  wanted = "a-b --keep_head --nokeep_head --my_query=--x-y --my_query=--x-y"
  # A round may have a dash in its name.
  given += (
    " --config.info-nce.temperature=1 --config.rounds['a-b'].eval-every=2 -- --c-d"
  )
  wanted += (
    " --config.info_nce.temperature=1 --config.rounds['a-b'].eval_every=2 -- --c-d"
  )
  assert arguments.normalize(given.split()) == wanted.split()


def test_help_begins_with_what_the_command_does_and_examples_in_its_own_name():
  result = processes.run("dcse_jax.cli", "encode", "--help")
  first, _, example, *rest = result.stdout.splitlines()
  assert result.returncode == 0 and not result.stderr
  assert first.startswith("Embeds a file")
  assert example.startswith("  dcse-jax encode --model DIR --input ")
  # Flags come in the order in which they are defined, and no library's is among them.
  shown = [line.strip() for line in rest if line.startswith("  --")]
  assert shown[:3] == ["--model", "--input", "--output"]
  assert not any("grain" in flag for flag in shown)


def test_help_that_nobody_reads_to_its_end_is_no_error():
  command = [sys.executable, "-m", "dcse_jax.cli", "--help"]
  read, write = os.pipe()
  os.close(read)
  result = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
  os.close(write)
  assert (result.returncode, result.stderr) == (0, b"")


def test_every_command_of_the_package_has_a_name(capsys, monkeypatch):
  # A command is a module that ends by running itself.
  modules = {
    path.stem
    for path in (ROOT / "dcse_jax").glob("*.py")
    if "command_line.run(" in path.read_text(encoding="utf-8")
  }
  assert set(cli.COMMANDS.values()) == modules
  monkeypatch.setattr("sys.argv", ["dcse-jax", "trian"])
  with pytest.raises(SystemExit) as error:
    cli.main()
  assert error.value.code == 2
  assert "'trian' is no command: use one of train," in capsys.readouterr().err

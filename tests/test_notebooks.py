"""The notebooks, run as a reader runs them, with fewer steps."""

import pytest

from tests.processes import ROOT

NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


@pytest.mark.slow  # `.ci/run` runs it by itself.
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
  pytest.importorskip("ipykernel", reason="ipykernel is not installed")
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  assert not any(cell.get("outputs") for cell in notebook.cells)
  monkeypatch.setenv("STEPS", "20")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  # A reader has one CPU, and not the tests' eight, of which a training is a strain.
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  last = "".join(out.get("text", "") for out in notebook.cells[-1].outputs)
  words = last.splitlines()[-1].replace(",", "").split()
  if path.stem == "distil":
    assert float(words[3]) > float(words[1])
  elif path.stem == "adapt":  # So few steps need not gain.
    assert words[::2] == ["before", "after"]
    assert (tmp_path / "runs/adapted/export/model.safetensors").exists()
  else:
    assert (tmp_path / "runs/own_text/report/index.html").exists()

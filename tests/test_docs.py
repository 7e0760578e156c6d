"""What the README and the pages say: their links lead somewhere, their Python runs."""

import pathlib
import re

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.teachers.embeddings import open_embeddings
from tests import models
from tests.processes import ROOT

PAGES = [
  *ROOT.glob("*.md"),
  *ROOT.glob("docs/*.md"),
  ROOT / "benchmarks/README.md",
  ROOT / "launch/README.md",
]


def anchors(path):
  """Lists the names that a page's headings have in links."""
  text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
  headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  plain = [re.sub(r"[^\w\- ]", "", each.lower()) for each in headings]
  return {each.strip().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_and_to_files_lead_somewhere(page):
  text = page.read_text(encoding="utf-8")
  for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
    place, _, anchor = target.partition("#")
    path = (page.parent / place) if place else page
    assert path.exists(), target
    assert not anchor or anchor in anchors(path), target


def blocks(page):
  text = (ROOT / page).read_text(encoding="utf-8")
  return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with what the pages speak of: a model, a text, a finished run."""
  path = tmp_path_factory.mktemp("docs")
  models.write_tiny_folder(path / "runs/mine/export", num_layers=1)
  models.write_tiny_folder(path / "DIR", num_layers=1)
  return path


LINES = ["  A cat sleeps. ", "", *models.SENTENCES[:2100]]


def embed_by_letters(sentences):
  """Stands for an API that refuses an empty text; each row tells its sentence."""
  assert all(s and s == s.strip() for s in sentences) and len(sentences) <= 1000
  return [[s.count(letter) + 1 for letter in "aeiou"] for s in sentences]


def check_parts(code, names):
  expected = embed_by_letters([line.strip() or "-" for line in LINES])
  read = lambda: np.concatenate([np.load(path) for path in sorted(parts.iterdir())])
  parts = pathlib.Path("parts")
  np.testing.assert_array_equal(read(), np.asarray(expected, np.float16))
  assert len(open_embeddings("parts").rows_in_order(len(LINES), "my.txt")) == len(LINES)
  # Stopped before its last part, and started again.
  sorted(parts.iterdir())[-1].unlink()
  exec(code, {**names})
  np.testing.assert_array_equal(read(), np.asarray(expected, np.float16))


def write_parts(path):
  """Writes the Parquet parts that a page speaks of."""
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  path.mkdir()
  rows = SentenceEncoder("runs/mine/export").encode(models.SENTENCES)
  for i in (0, 150):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows[i : i + 150].ravel()), 16)
    columns = {"id": range(i, i + 150), "text": models.SENTENCES[i : i + 150]}
    columns = {name: pa.array(values) for name, values in columns.items()}
    pq.write_table(pa.table({**columns, "embedding": vectors}), path / f"{i}.parquet")


def check_database(code, names):
  encoder, found = names["model"], names["found"].to_list()
  encoder.build_index(models.SENTENCES)
  cosines = dict(encoder.search("Who sleeps?", top_k=300))
  for row in found:
    assert 1 - row["_distance"] == pytest.approx(cosines[row["text"]], abs=1e-5)
  # Five of the nearest, nearly always.
  assert len(found) == 5 and sum(r["text"] in list(cosines)[:5] for r in found) >= 4


TINY = "num_train_steps=2, batch_size=8, max_length=16, eval_every=2, log_every=2"
# For each block of a page: what it takes for granted, what is put in its place, and what
# must hold afterwards. A block without an entry is only compiled, and why is said.
RUNS = {
  ("README.md", 0): (
    {"sentences": models.SENTENCES[:40]},
    {
      '"bert-base-uncased"': '"DIR"',
      '"DIR_OR_ID"': '"DIR"',
      '"runs/mine"': '"runs/python"',
      "num_train_steps=2_000": TINY,
    },
    lambda code, names: names["run"].report().exists(),
  ),
  ("docs/use.md", 0): ({}, {}, None),
  ("docs/use.md", 1): (
    {"sentences": models.SENTENCES[:40]},
    {},
    lambda code, names: len(names["model"].search("Who sleeps?")) == 5,
  ),
  ("docs/search.md", 0): ({}, {}, check_database),
  ("docs/teachers.md", 0): (
    {"answer": embed_by_letters},
    {"  ...\n": "  return answer(sentences)\n"},
    check_parts,
  ),
}
# What is no part of the test requirements: its block is skipped without it.
NEEDED = {("docs/search.md", 0): "lancedb"}
COMPILED = {("docs/evaluate.md", 0): "MTEB fetches its tasks"}


def test_every_block_of_python_is_run_or_cannot_be():
  pages = ["README.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
  found = {(page, i) for page in pages for i, _ in enumerate(blocks(page))}
  assert found == RUNS.keys() | COMPILED.keys()
  for page, i in COMPILED:
    compile(blocks(page)[i], page, "exec")


@pytest.mark.parametrize("page, i", RUNS)
def test_a_block_of_python_runs_as_it_stands(page, i, place, monkeypatch):
  monkeypatch.chdir(place)
  (place / "my.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
  if (page, i) in NEEDED:
    pytest.importorskip(NEEDED[page, i])
    write_parts(place / "my.parts")
  given, changes, check = RUNS[page, i]
  code = blocks(page)[i]
  for old, new in changes.items():
    assert old in code
    code = code.replace(old, new)
  names = {"__name__": "block", **given}
  exec(code, names)
  if check:
    assert check(code, names) in (True, None)

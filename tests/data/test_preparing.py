"""Preparing text: what is read, left out and written, and what is refused."""

import functools
import gzip
import json
import os
import subprocess
import sys

import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("datasketch")

import pyarrow.parquet as pq  # noqa: E402

from dcse_jax.data import cleaning  # noqa: E402
from dcse_jax.data import parts  # noqa: E402
from dcse_jax.data import preparing  # noqa: E402
from dcse_jax.data import text  # noqa: E402
from dcse_jax.runtime import locks  # noqa: E402
from dcse_jax.runtime import pool  # noqa: E402
from dcse_jax.runtime.errors import UserError  # noqa: E402
from tests import models  # noqa: E402
from tests import processes  # noqa: E402

SENTENCES = list(dict.fromkeys(models.SENTENCES))[:60]
# Without near duplicates: sentences of the made-up language are alike.
PLAIN = preparing.Settings(near_duplicates=0)


def prepare(output, *names, settings=PLAIN, run=map, **changes):
  settings = preparing.dataclasses.replace(settings, **changes)
  return preparing.prepare([str(n) for n in names], str(output), settings, run)


def read(folder):
  table = pa.concat_tables([pq.read_table(path) for path in parts.paths(folder)])
  return dict(zip(table["id"].to_pylist(), table["text"].to_pylist()))


def content(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def raw(tmp_path):
  """Files of every kind, in two folders."""
  folder = tmp_path / "raw"
  (folder / "more").mkdir(parents=True)
  lines = [SENTENCES[0], "", "  too   short ", f" {SENTENCES[1]}\t", SENTENCES[0]]
  (folder / "a.txt").write_text("\n".join(lines) + "\n")
  packed = "\n".join([SENTENCES[2], "1234567890 | 12", "x" * 1001])
  (folder / "b.txt.gz").write_bytes(gzip.compress(packed.encode()))
  table = pa.table({"text": [SENTENCES[3], None, SENTENCES[1]], "key": [7, 8, 9]})
  pq.write_table(table, folder / "c.parquet")
  with pa.ipc.new_file(folder / "more/d.arrow", table.schema) as writer:
    writer.write_table(pa.table({"text": [SENTENCES[4]], "key": [10]}))
  (folder / "notes.md").write_text("Nobody reads this.")
  return folder


def test_files_of_every_kind_become_parts_with_ids_and_counts(raw, tmp_path):
  manifest = prepare(tmp_path / "clean", raw, raw / "more/*.arrow")
  assert read(tmp_path / "clean") == {
    "a.txt:0": SENTENCES[0],
    "a.txt:3": SENTENCES[1],
    "b.txt.gz:0": SENTENCES[2],
    "c.parquet:0": SENTENCES[3],
    "more/d.arrow:0": SENTENCES[4],
  }
  assert manifest["read"] == 5 + 3 + 3 + 1 and manifest["rows"] == 5
  assert {k: n for k, n in manifest["left_out"].items() if n} == {
    "blank": 2,
    "too_short": 1,
    "hardly_letters": 1,
    "too_long": 1,
    "exact_duplicates": 2,
  }
  assert json.loads((tmp_path / "clean/manifest.json").read_text()) == manifest
  # Nothing else is left beside the output.
  assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "raw"]
  # The folder is a text as it is, and so is the same as a plain file.
  prepare(tmp_path / "clean.txt", raw, raw / "more/*.arrow")
  found = [text.read_text(str(tmp_path / n)).columns for n in ("clean", "clean.txt")]
  assert found[0] == found[1] == (SENTENCES[:5],)
  about = json.loads((tmp_path / "clean.txt.json").read_text())
  assert about["left_out"] == manifest["left_out"]


def test_ids_of_a_column_are_kept_and_shares_and_documents_are_as_in_training(
  raw, tmp_path
):
  prepare(tmp_path / "ids", raw / "c.parquet", id_column="key")
  assert read(tmp_path / "ids") == {"7": SENTENCES[3], "9": SENTENCES[1]}
  lines = tmp_path / "lines.txt"
  lines.write_text("\n".join(SENTENCES))
  manifest = prepare(tmp_path / "share", f"{lines}*0.5")
  kept = text.read_text(f"{lines}*0.5")
  assert list(read(tmp_path / "share").values()) == kept.columns[0]
  assert manifest["left_out"]["undrawn"] == kept.undrawn_rows > 9
  documents = tmp_path / "documents.txt"
  documents.write_text(f"{SENTENCES[0]} {SENTENCES[1]}\n\n{SENTENCES[2]}")
  manifest = prepare(tmp_path / "split", documents, split="sentences")
  expected = {f"documents.txt:{i}": SENTENCES[j] for i, j in (("0:0", 0), ("0:1", 1))}
  assert read(tmp_path / "split") == expected | {"documents.txt:2:0": SENTENCES[2]}
  assert (manifest["read"], manifest["sentences"]) == (3, 4)


def near_text(path):
  """A text of 90 sentences with 30 of them again, a word or its case changed."""
  words = [f"word{i}" for i in range(2000)]
  fresh = [" ".join(words[20 * i : 20 * i + 20]) for i in range(90)]
  again = [f"{s.upper()}!" if i % 2 else f"{s} end" for i, s in enumerate(fresh[:30])]
  path.write_text("\n".join([*fresh, *again, *fresh[:5]]) + "\n")
  return fresh


def test_sentences_that_nearly_repeat_an_earlier_one_are_left_out(tmp_path):
  fresh = near_text(tmp_path / "a.txt")
  manifest = prepare(tmp_path / "near", tmp_path / "a.txt", near_duplicates=0.8)
  assert list(read(tmp_path / "near").values()) == fresh
  assert manifest["left_out"]["near_duplicates"] == 30
  assert manifest["left_out"]["exact_duplicates"] == 5
  assert prepare(tmp_path / "all", tmp_path / "a.txt")["rows"] == 120


@pytest.fixture
def small(monkeypatch):
  """Chunks and parts of few rows, so that there are some of each."""
  monkeypatch.setattr(preparing, "_CHUNK_ROWS", 10)
  monkeypatch.setattr("dcse_jax.data.unfinished._CHUNKS_KEPT", 2)
  monkeypatch.setattr(parts, "_PART_ROWS", 25)
  monkeypatch.setattr(parts, "_GROUP_ROWS", 10)


class Cut(BaseException):
  """Ends a run as a signal does."""


@pytest.mark.parametrize("place", ["read", "search", "write"])
@pytest.mark.parametrize("output", ["clean", "clean.txt"])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bytes(
  tmp_path, small, monkeypatch, place, output
):
  near_text(tmp_path / "a.txt")
  go = functools.partial(prepare, settings=preparing.Settings())
  whole = go(tmp_path / "whole" / output, tmp_path / "a.txt")
  mapped = []

  def cut(function, items, after):
    for i, item in enumerate(items):
      if i == after:
        raise Cut
      mapped.append(function)
      yield function(item)

  write = parts.files.whole
  with monkeypatch.context() as patch, pytest.raises(Cut):
    if place == "write":
      calls = iter(range(99))

      def fail(path):
        # The second part, or the only file.
        if path.suffix == ".txt" or (path.suffix == ".parquet" and next(calls) == 1):
          raise Cut
        return write(path)

      patch.setattr(parts.files, "whole", fail)
    if place == "search":
      patch.setattr(preparing, "_FEW", 0)
    # Seven of thirteen chunks, six of which are kept; or three bands.
    after = {"read": lambda f: 7, "search": lambda f: 3 if "_search" in str(f) else 99}
    after = after.get(place, lambda f: 99)
    go(
      tmp_path / "cut" / output,
      tmp_path / "a.txt",
      run=lambda f, items: cut(f, items, after(f)),
    )
  assert not (tmp_path / "cut" / output).exists()
  mapped.clear()
  again = go(
    tmp_path / "cut" / output,
    tmp_path / "a.txt",
    run=lambda f, items: cut(f, items, 99),
  )
  assert again == whole
  assert len(mapped) == (13 - 6 if place == "read" else 0)
  for name in os.listdir(tmp_path / "whole"):
    one, other = (tmp_path / each / name for each in ("whole", "cut"))
    assert (content(one) == content(other)) if one.is_dir() else True
    assert one.is_dir() or one.read_bytes() == other.read_bytes()
  assert os.listdir(tmp_path / "whole") == os.listdir(tmp_path / "cut")


PROGRAM = """
import sys
from dcse_jax.data import preparing
from dcse_jax.runtime import pool
if __name__ == "__main__":
  preparing._CHUNK_ROWS, preparing._FEW = 10, 0
  with pool.mapping(int(sys.argv[3])) as run:
    preparing.prepare([sys.argv[1]], sys.argv[2], preparing.Settings(), run)
"""


@pytest.mark.slow
def test_neither_processes_nor_pythons_hashes_change_a_byte(tmp_path):
  near_text(tmp_path / "a.txt")
  (tmp_path / "program.py").write_text(PROGRAM)
  for name, seed, workers in (("one", "1", "1"), ("two", "2", "2")):
    arguments = [tmp_path / "program.py", tmp_path / "a.txt", tmp_path / name, workers]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    environment["PYTHONPATH"] = str(processes.ROOT)
    subprocess.run([sys.executable, *arguments], env=environment, check=True)
  assert content(tmp_path / "one") == content(tmp_path / "two")


def test_what_is_finished_is_not_made_again_and_nothing_of_others_is_mixed(
  raw, tmp_path
):
  first = prepare(tmp_path / "clean", raw)
  before = content(tmp_path / "clean")
  assert prepare(tmp_path / "clean", raw, run=None) == first
  cases = {
    "of other settings": lambda: prepare(tmp_path / "clean", raw, near_duplicates=0.9),
    "of other text": lambda: prepare(tmp_path / "clean", raw / "a.txt"),
  }
  for message, call in cases.items():
    with pytest.raises(UserError, match=message):
      call()
  with locks.output_locked(tmp_path / "clean"):
    with pytest.raises(UserError, match=r"clean is in use by process \d+"):
      prepare(tmp_path / "clean", raw)
  assert content(tmp_path / "clean") == before
  # The same name with other content is another text.
  (raw / "a.txt").write_text(SENTENCES[9])
  with pytest.raises(UserError, match="of other text"):
    prepare(tmp_path / "clean", raw)
  (tmp_path / "mine").mkdir()
  with pytest.raises(UserError, match="`prepare` has not made it"):
    prepare(tmp_path / "mine", raw)


def no_bounds_meet(raw):
  return {"rules": cleaning.Rules(50, 20)}


@pytest.mark.parametrize(
  "name, changes, message",
  [
    ("nowhere.txt", {}, "nowhere.txt: no such file"),
    ("*.csv", {}, "no file fits this pattern"),
    ("notes.md", {}, "unknown kind of file"),
    ("a.txt", {"rules": cleaning.Rules(200, 900)}, "no sentence is left: 5 rows read"),
    ("a.txt", {"rules": cleaning.Rules(9, 8)}, "min_characters=9 is above"),
    ("a.txt", {"id_column": "key"}, "has no columns, so there is no 'key'"),
    (
      "c.parquet",
      {"column": "body"},
      "no column 'body'; the columns there are: 'text'",
    ),
    ("c.parquet", {"column": "key"}, "column 'key' holds a int; name a column of"),
    ("c.parquet", {"id_column": "text"}, "are both 'text': name two"),
    ("bad.txt", {}, r"bad.txt line 2: not valid UTF-8"),
    ("twice.parquet", {"id_column": "key"}, "has the id '1' twice"),
    ("null.parquet", {"id_column": "key"}, r"null.parquet row 1: None in column 'key'"),
    ("a.txt", {"near_duplicates": 0.3}, "give a similarity from 0.5 to 1"),
    ("a.txt", {"split": "words"}, "--split='words': must be"),
    ("hf:x:y:z", {}, "is a set and no file of text"),
  ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
  raw, tmp_path, name, changes, message
):
  (raw / "bad.txt").write_bytes(b"A good line.\n\xff\n")
  rows = {"text": SENTENCES[:2]}
  pq.write_table(pa.table({**rows, "key": [1, 1]}), raw / "twice.parquet")
  pq.write_table(pa.table({**rows, "key": [1, None]}), raw / "null.parquet")
  source = name if name.startswith("hf:") else raw / name
  with pytest.raises(UserError, match=message) as error:
    prepare(tmp_path / "clean", source, **changes)
  assert "\n" not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_file_that_is_named_twice_is_refused(raw, tmp_path):
  with pytest.raises(UserError, match="a.txt: is named twice"):
    prepare(tmp_path / "clean", raw / "a.txt", raw / "*.txt")
  with pytest.raises(UserError, match="name a folder, or a file that ends in .txt"):
    prepare(tmp_path / "clean.parquet", raw / "a.txt")


def test_a_worker_that_is_killed_is_told_in_one_line():
  with pytest.raises(UserError, match="a worker process was killed"):
    with pool.mapping(2) as run:
      list(run(os._exit, [1, 1, 1]))

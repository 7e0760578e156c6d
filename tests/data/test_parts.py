"""Folders of Parquet parts as texts."""

import json

import pytest

from dcse_jax.data import parts
from dcse_jax.data import text
from dcse_jax.runtime.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(folder, *columns, manifest=True):
  folder.mkdir()
  listed = []
  for i, sentences in enumerate(columns):
    ids = [f"{i}-{j}" for j in range(len(sentences))]
    name = f"part-{i:06}.parquet"
    pq.write_table(pa.table({"id": ids, "text": sentences}), folder / name)
    listed.append({"name": name, "rows": len(sentences)})
  if manifest:
    (folder / "manifest.json").write_text(json.dumps({"parts": listed}))
  return str(folder)


def refusal(source, columns=()):
  with pytest.raises(UserError) as caught:
    text.read_text(source, columns)
  assert "\n" not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_folder_is_its_parts_in_their_order_and_nothing_else_in_it(
  tmp_path, manifest
):
  source = write(tmp_path / "clean", ["a", " "], ["b  c"], manifest=manifest)
  for name in ("_SUCCESS", "notes.txt", "_metadata.parquet", ".crc.parquet"):
    (tmp_path / "clean" / name).write_text("not ours")
  found = text.read_text(source)
  assert found.columns == (["a", "b c"],) and found.empty_rows == 1
  assert found.source_rows.tolist() == [0, 2]
  assert list(text.read_ids(source, "id")) == ["0-0", "0-1", "1-0"]
  # Other columns may be named, and other files stand beside.
  assert text.read_text(source, ("id",)).columns == (["0-0", "0-1", "1-0"],)
  (tmp_path / "more.txt").write_text("d\n")
  assert text.read_text((source, str(tmp_path / "more.txt"))).columns[0][2:] == ["d"]
  # The content is what counts, wherever it lies.
  (tmp_path / "plain.txt").write_text("a\n \nb  c\n")
  assert text.measure(source) == text.measure(str(tmp_path / "plain.txt"))


def test_what_does_not_fit_the_manifest_or_has_no_such_column_is_refused(tmp_path):
  source = write(tmp_path / "clean", ["a"], ["b", "c"])
  assert "no column 'body'; the columns there are: 'id'" in refusal(source, ("body",))
  write(tmp_path / "other", ["a", "b"])
  part = tmp_path / "clean/part-000001.parquet"
  (tmp_path / "other/part-000000.parquet").replace(part)
  assert text.read_text(source).columns == (["a", "a", "b"],)
  pq.write_table(pa.table({"text": ["b"]}), part)
  assert f"{part}: has 1 rows; manifest.json lists it with 2 rows" in refusal(source)
  part.write_text("no table")
  assert f"{part}: cannot be read (" in refusal(source)
  part.unlink()
  assert f"{part}: is missing; manifest.json lists it with 2 rows" in refusal(source)
  (tmp_path / "clean/manifest.json").write_text('{"parts": [1]}')
  assert "manifest.json: not as it was written" in refusal(source)


def test_a_folder_that_is_still_written_is_refused(tmp_path):
  source = write(tmp_path / "vectors", ["a"], manifest=False)
  (tmp_path / "vectors/.progress").mkdir()
  assert "vectors: is not finished; run the command that makes it" in refusal(source)


def test_a_model_and_an_empty_folder_are_no_parts(tmp_path):
  model = write(tmp_path / "model", ["a"])
  assert parts.is_parts(model)
  (tmp_path / "model/config.json").write_text("{}")
  (tmp_path / "empty").mkdir()
  assert not parts.is_parts(model) and not parts.is_parts(tmp_path / "empty")
  assert "is a directory; name one file in it" in refusal(str(tmp_path / "empty"))

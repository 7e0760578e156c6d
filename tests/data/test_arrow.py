"""Text from Parquet and Arrow files."""

import pytest

from dcse_jax.data import text
from dcse_jax.runtime.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TABLE = {
  "question": ["Who?  ", None, "What\n?", " "],
  "answer": [
    {"text": "Nobody", "id": 1},
    {"text": "nothing", "id": 2},
    {"text": "This", "id": 3},
    {"text": "That", "id": 4},
  ],
  "number": [10, 11, 12, 13],
}


def write(path, table=None):
  table = pa.table(TABLE if table is None else table)
  if path.suffix == ".parquet":
    pq.write_table(table, path, row_group_size=2)
  elif path.stem == "stream":
    with pa.ipc.new_stream(path, table.schema) as writer:
      writer.write_table(table, max_chunksize=2)
  else:
    with pa.ipc.new_file(path, table.schema) as writer:
      writer.write_table(table, max_chunksize=3)
  return str(path)


@pytest.fixture(params=["t.parquet", "t.arrow", "stream.arrow"])
def source(tmp_path, request):
  return write(tmp_path / request.param)


def test_columns_and_fields_of_structs_are_read_and_rows_with_nulls_left_out(source):
  found = text.read_text(source, ("question", "answer.text"))
  assert found.columns == (["Who?", "What ?"], ["Nobody", "This"])
  # The null row, and the one that is blank once it is cleaned.
  assert found.empty_rows == 2
  assert found.source_rows.tolist() == [0, 2]


def test_ids_are_strings_or_whole_numbers(source):
  assert list(text.read_ids(source, "number")) == ["10", "11", "12", "13"]
  assert list(text.read_ids(source, "answer.id")) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
  "columns, message",
  [
    (("reply",), "no column 'reply'; the columns there are: 'question', 'answer'"),
    (("answer.word",), "no column 'answer.word'; the columns there are: 'text', 'id'"),
    (("number",), "column 'number' holds a int; name a column of strings"),
    (("answer",), "column 'answer' holds a dict; name a column of strings"),
    ((), "name different ones"),
  ],
)
def test_a_column_that_is_no_text_is_refused_by_name(source, columns, message):
  with pytest.raises(UserError, match=message):
    text.read_text(source, columns)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, name):
  (tmp_path / name).write_text("not a table\n" * 10)
  with pytest.raises(UserError, match="cannot be read as its suffix says") as caught:
    text.read_text(str(tmp_path / name), ("a",))
  assert "\n" not in str(caught.value)


def test_a_plain_column_has_no_fields(tmp_path):
  path = write(tmp_path / "t.parquet", {"a": ["x"]})
  with pytest.raises(UserError, match="no column 'a.b'"):
    text.read_text(path, ("a.b",))


@pytest.mark.parametrize("name", ["t.parquet", "stream.arrow"])
def test_rows_come_before_what_follows_them_in_the_file_is_read(tmp_path, name):
  path = tmp_path / name
  write(path, {"a": ["one", "two", "three", "four"]})  # In two groups.
  content = bytearray(path.read_bytes())
  if name == "t.parquet":
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    content[start : start + 20] = b"\xff" * 20
  else:
    content = content[:-100]
  path.write_bytes(content)
  rows = text.first_cells(str(path), ("a",))
  assert [next(rows), next(rows)] == ["one", "two"]
  with pytest.raises(UserError, match="cannot be read as its suffix says"):
    next(rows)


def test_a_column_may_have_a_dot_in_its_name(tmp_path):
  path = write(tmp_path / "t.parquet", {"a.b": ["x"], "a": [{"b": "y"}]})
  assert text.read_text(path, ("a.b",)).columns == (["x"],)

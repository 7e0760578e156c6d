"""Texts divided into parts: every row once, whatever the files and the parts' size."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcse_jax.cluster import parts
from dcse_jax.cluster import tables
from dcse_jax.data.lines import Lines
from dcse_jax.runtime.errors import UserError

CONTENT = b"\xef\xbb\xbfone\r\n\ntwo  \n \xc3\xa9\rthree\nfour\nlast"


def read(source, *, columns=tables.Columns(), part_rows=4, **options):
  """All rows of all parts: sentences, and columns as a dict of lists."""
  text = parts.divide(str(source), columns, part_rows)
  sentences, blocks = [], []
  for part in text.parts:
    found = list(tables.read(part, text.layout, **options))
    assert sum(len(rows.sentences) + rows.bad for rows in found) == part.rows
    sentences += [s for rows in found for s in rows.sentences]
    blocks += [rows.table for rows in found]
  return text, sentences, pa.concat_tables(blocks).to_pydict()


@pytest.mark.parametrize("part_rows", [1, 2, 3, 5, 100])
def test_lines_are_those_that_encode_reads(tmp_path, part_rows):
  path = tmp_path / "a.txt"
  path.write_bytes(CONTENT)
  text, sentences, columns = read(path, part_rows=part_rows)
  assert sentences == list(Lines(str(path)))
  assert columns == {"id": list(range(6))}
  assert [part.rows for part in text.parts] == [
    min(part_rows, 6 - first) for first in range(0, 6, part_rows)
  ]


def test_a_packed_text_is_one_part_and_rows_are_numbered_through_all_files(tmp_path):
  (tmp_path / "b.txt").write_bytes(CONTENT)
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(CONTENT))
  (tmp_path / "c.txt").write_bytes(b"")
  kept = tables.Columns(kept=("text",))
  text, sentences, columns = read(tmp_path, columns=kept)
  assert [(p.shown, p.rows) for p in text.parts] == [
    ("a.txt.gz", 6),
    ("b.txt", 4),
    ("b.txt", 2),
  ]
  assert columns == {"id": list(range(12)), "text": sentences}
  assert sentences[:6] == sentences[6:]


@pytest.mark.parametrize("kind", ["parquet", "feather", "stream"])
def test_rows_of_tables_come_once_and_in_order_with_what_is_kept(tmp_path, kind):
  rows = [dict(id=f"n{i}", body=f"sentence {i}", page=[i]) for i in range(11)]
  table, path = pa.Table.from_pylist(rows), tmp_path / "a.arrow"
  if kind == "parquet":
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=3)
  else:
    make = pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream
    with make(path, table.schema) as file:
      file.write_table(table, max_chunksize=3)
  columns = tables.Columns(text="body", kept=("page", "id"))
  for part_rows in (2, 3, 4, 20):
    text, sentences, found = read(path, columns=columns, part_rows=part_rows)
    assert sentences == [row["body"] for row in rows]
    assert found == {"id": [r["id"] for r in rows], "page": [r["page"] for r in rows]}
    assert text.rows == 11
  assert read(path, columns=tables.Columns(text="body", id="page"))[2] == {
    "id": [row["page"] for row in rows]
  }


def not_utf8(cells):
  """A column whose strings nobody has checked, as other programs may write it."""
  return pa.array(cells, pa.binary()).view(pa.string())


def test_a_bad_row_is_named_or_counted(tmp_path):
  lines, table = tmp_path / "a.txt", tmp_path / "b.parquet"
  lines.write_bytes(b"one\ntwo\n\xff\nfour\n")
  pq.write_table(
    pa.table({"id": [1, 2, None, 4], "text": not_utf8([b"a", None, b"c", b"\xff"])}),
    table,
    row_group_size=2,
  )
  with pytest.raises(UserError, match=r"a.txt line 3: not valid UTF-8; .*--skip_bad"):
    read(lines)
  with pytest.raises(
    UserError, match=r"b.parquet row 1 \(from 0\): column 'text' is n"
  ):
    read(table)
  assert read(lines, skip_bad_rows=True)[1:] == (
    ["one", "two", "four"],
    {"id": [0, 1, 3]},
  )
  assert read(table, skip_bad_rows=True, part_rows=3)[1:] == (["a"], {"id": [1]})


@pytest.mark.parametrize(
  "columns, message",
  [
    (
      tables.Columns(text="title"),
      r"a.parquet: no column 'title'; .* 'id', 'text', 'n'",
    ),
    (tables.Columns(text="n"), "column 'n' holds int64; name a column of strings"),
    (
      tables.Columns(kept=("n",)),
      "b.parquet: column 'n' holds double, and that of .*a.p",
    ),
    (tables.Columns(kept=("embedding",)), "--columns=embedding: name each once"),
    (tables.Columns(id="n", kept=("id",)), "--columns=id: name each once"),
  ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, message):
  for name, number in (("a", 1), ("b", 1.5)):
    table = pa.table({"id": ["x"], "text": ["one"], "n": [number]})
    pq.write_table(table, tmp_path / f"{name}.parquet")
  with pytest.raises(UserError, match=message):
    parts.divide(str(tmp_path), columns)


def test_what_is_no_text_is_refused(tmp_path):
  (tmp_path / "a.csv").write_text("text\n")
  (tmp_path / "b.parquet").write_text("no table at all")
  (tmp_path / "c.txt").write_text("")
  (tmp_path / "d.txt").write_bytes(b"one\rtwo")
  for name, message in [
    ("e.txt", "no such file or folder"),
    ("*.jsonl", "no file fits"),
    ("a.csv", "unknown kind of file; its name must end in .txt"),
    ("b.parquet", "it has no footer"),
    ("c.txt", "is empty: nothing to embed"),
    ("d.txt", "its lines end in CR alone"),
  ]:
    with pytest.raises(UserError, match=message):
      parts.divide(str(tmp_path / name), tables.Columns())
  with pytest.raises(UserError, match="Protocol not known"):
    parts.divide("nowhere://bucket/a.txt", tables.Columns())

"""Reading each kind of source of text, and the errors of bad ones."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dcse_jax import config as config_lib
from dcse_jax.data import decoding
from dcse_jax.data import lines
from dcse_jax.data import text
from dcse_jax.recipe import reading
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import recipes

FORMATS = ("a.txt", "a.csv", "a.tsv", "a.jsonl")


def write(folder, name, content):
  """Writes str (as UTF-8) or bytes; returns the path as the str a user gives."""
  path = folder / name
  path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
  return str(path)


def table(name, *cells):
  """Returns a file with one column "s", or without columns for .txt."""
  if name == "a.jsonl":
    return "".join(json.dumps({"s": cell}, ensure_ascii=False) + "\n" for cell in cells)
  header = [] if name == "a.txt" else ["s"]
  quote = '"' if name == "a.csv" else ""
  return "".join(f"{quote}{cell}{quote}\n" for cell in [*header, *cells])


def column(name):
  """Returns the columns to name to read a `table`."""
  return () if name == "a.txt" else ("s",)


def refusal(source, columns=(), read=text.read_text):
  """Returns the UserError's message, which must name the source on one short line."""
  with pytest.raises(UserError) as caught:
    read(source, columns)
  message = str(caught.value)
  assert source in message and len(message) < 2000
  assert message.splitlines() == [message]
  return message


# Formats.


def test_a_txt_file_is_one_sentence_per_line(tmp_path):
  source = write(tmp_path, "a.txt", "one\ntwo\n")
  assert text.read_text(source) == text.Text((["one", "two"],), empty_rows=0)


def test_the_last_line_needs_no_line_break(tmp_path):
  assert text.read_text(write(tmp_path, "a.txt", "one\ntwo")).columns == (
    ["one", "two"],
  )


@pytest.mark.parametrize(
  "name, content, columns",
  [
    ("a.txt", "one\ntwo\n", ()),
    ("a.csv", "s\none\ntwo\n", ("s",)),
    ("a.tsv", "s\none\ntwo\n", ("s",)),
    ("a.jsonl", '{"s": "one"}\n{"s": "two"}\n', ("s",)),
  ],
)
def test_every_format_reads_the_same_when_gzipped(tmp_path, name, content, columns):
  plain = write(tmp_path, name, content)
  packed = write(tmp_path, name + ".gz", gzip.compress(content.encode("utf-8")))
  expected = text.Text((["one", "two"],), empty_rows=0)
  assert text.read_text(plain, columns) == expected
  assert text.read_text(packed, columns) == expected


def test_the_suffix_may_be_in_capitals(tmp_path):
  source = write(tmp_path, "A.TXT.GZ", gzip.compress(b"one\n"))
  assert text.read_text(source).columns == (["one"],)


def test_csv_columns_come_in_the_order_named(tmp_path):
  source = write(tmp_path, "a.csv", "anchor,label,positive\na1,0,p1\na2,1,p2\n")
  read = text.read_text(source, ("positive", "anchor"))
  assert read.columns == (["p1", "p2"], ["a1", "a2"])


def test_a_quoted_csv_field_keeps_commas_and_quotes_and_joins_its_lines(tmp_path):
  source = write(tmp_path, "a.csv", 's,t\n"a, ""b""\nc",d\n')
  assert text.read_text(source, ("s", "t")).columns == (['a, "b" c'], ["d"])


def test_tsv_quotes_are_plain_characters(tmp_path):
  source = write(tmp_path, "a.tsv", 's\tt\n"open\tx"y\n')
  assert text.read_text(source, ("s", "t")).columns == (['"open'], ['x"y'])


def test_jsonl_reads_three_columns_and_ignores_the_rest(tmp_path):
  source = write(tmp_path, "a.jsonl", '{"n": "c", "p": "b", "a": "\\u00e9", "id": 1}\n')
  assert text.read_text(source, ["a", "p", "n"]).columns == (["é"], ["b"], ["c"])


# Cleaning.


def test_white_space_and_nul_runs_become_one_space(tmp_path):
  source = write(tmp_path, "a.txt", " a \t b\0\0c\u00a0\u3000d \n")
  assert text.read_text(source).columns == (["a b c d"],)


def test_only_a_line_feed_ends_a_line(tmp_path):
  source = write(tmp_path, "a.txt", "a\u2028b\x0bc\u0085d\re\nf\n")
  assert text.read_text(source).columns == (["a b c d e", "f"],)


def test_nothing_but_white_space_is_altered(tmp_path):
  decomposed = "E\u0301cole \u200bZW\ufeff ﬁ “x”"  # not even a BOM past the start
  assert text.read_text(write(tmp_path, "a.txt", decomposed)).columns == ([decomposed],)


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.csv", "s,t\r\na,b\r\n\r\n"),
    ("a.tsv", "s\tt\r\na\tb\r\n\r\n"),
    ("a.jsonl", '{"s": "a", "t": "b"}\r\n\r\n'),
  ],
)
def test_a_byte_order_mark_crlf_and_an_empty_line_are_no_error(tmp_path, name, content):
  source = write(tmp_path, name, "\ufeff" + content)
  assert text.read_text(source, ("s", "t")) == text.Text((["a"], ["b"]), empty_rows=1)


@pytest.mark.parametrize("name", FORMATS)
def test_nul_bytes_are_white_space_in_every_format(tmp_path, name):
  source = write(tmp_path, name, table(name, "a\0b", "\0", "\0c\0"))
  assert text.read_text(source, column(name)) == text.Text((["a b", "c"],), 1)


@pytest.mark.parametrize("name", FORMATS)
def test_equal_lines_are_all_read(tmp_path, name):
  # The token cache leaves them out and counts them.
  source = write(tmp_path, name, table(name, "a", "b", "a", "a"))
  assert text.read_text(source, column(name)) == text.Text((["a", "b", "a", "a"],), 0)


def test_a_long_sentence_is_cut_and_counted(tmp_path):
  most = text.MAX_CHARACTERS
  cells = ["a" * most, " " * 99 + "b" * most + " ", "c" * (most + 1), "é " * most]
  read = text.read_text(write(tmp_path, "a.txt", "\n".join(cells)))
  # The last one ends before the space at which it is cut.
  expected = ["a" * most, "b" * most, "c" * most, ("é " * most)[: most - 1]]
  assert read == text.Text((expected,), empty_rows=0, cut_rows=2)


def test_a_row_that_is_cut_in_two_columns_counts_once_and_a_blank_one_not(tmp_path):
  long = "x" * (text.MAX_CHARACTERS + 1)
  source = write(tmp_path, "a.tsv", f"s\tt\n{long}\t{long}\n{long}\t\na\tb\n")
  read = text.read_text(source, ("s", "t"))
  assert read == text.Text(([long[:-1], "a"], [long[:-1], "b"]), 1, cut_rows=1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_line_of_ten_million_characters_is_one_sentence(tmp_path, name, packed):
  words, zeros = "the cat " * 1_250_000, "\0" * 1_000_000
  content = table(name, "one", words, zeros, "two").encode()
  if packed:
    name, content = name + ".gz", gzip.compress(content, 1)
  source = write(tmp_path, name, content)
  read = text.read_text(source, column(name.removesuffix(".gz")))
  long = words[: text.MAX_CHARACTERS].rstrip()
  assert read == text.Text((["one", long, "two"],), empty_rows=1, cut_rows=1)


def test_reading_csv_leaves_the_limit_of_others_as_it_was(tmp_path):
  before = csv.field_size_limit()
  text.read_text(write(tmp_path, "a.csv", "s\n" + "x" * (before + 1) + "\n"), ("s",))
  refusal(write(tmp_path, "b.csv", 's\n"open\n'), ("s",))
  assert csv.field_size_limit() == before


def test_what_is_left_out_or_cut_is_logged(files, caplog):
  caplog.set_level(logging.INFO)
  long = "x" * (text.MAX_CHARACTERS + 1)
  rows = [*models.SENTENCES[:20], "", long, models.SENTENCES[0]]
  write(files, "text.txt", "\n".join(rows))
  config = recipes.from_files(files)
  rounds = {"base": config_lib.of_round(config, "base")}
  reading.read(config, rounds, files / "run")
  messages = [r.getMessage() for r in caplog.records if "text.txt" in r.getMessage()]
  assert messages[:2] == [
    f"{config.text}: 22 rows, 1 empty left out, 1 cut at 100000 characters",
    f"{config.text}: 1 rows left out whose tokens repeat an earlier row's",
  ]


def test_blank_txt_lines_are_dropped_and_counted(tmp_path):
  source = write(tmp_path, "a.txt", "\ufeffa\r\n\r\n \t\0\nb\n\n")
  assert text.read_text(source) == text.Text((["a", "b"],), empty_rows=3)


def test_a_row_with_one_blank_column_is_dropped_whole(tmp_path):
  source = write(tmp_path, "a.tsv", "s\tt\na\tb\n \tc\nd\t\ne\tf\n")
  assert text.read_text(source, ("s", "t")) == text.Text((["a", "e"], ["b", "f"]), 2)


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7])
def test_block_borders_change_nothing(tmp_path, monkeypatch, block_bytes):
  monkeypatch.setattr(decoding, "_BLOCK_BYTES", block_bytes)
  source = write(tmp_path, "a.txt", "\ufeffé\n\nüü\n日本語\nx")
  assert text.read_text(source) == text.Text((["é", "üü", "日本語", "x"],), 1)
  bad = write(tmp_path, "bad.txt", "é\nok\n".encode() + b"a\xffb\nx\n")
  assert "line 3:" in refusal(bad)


# Refusals.


def test_a_missing_file_is_refused(tmp_path):
  assert "no such file" in refusal(str(tmp_path / "gone.txt"))


def test_a_directory_is_refused(tmp_path):
  assert "is a directory" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["a.docx", "a", "a.gz", "txt", "a.json"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path, name):
  message = refusal(write(tmp_path, name, "x\n"))
  for suffix in (".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".gz"):
    assert suffix in message


@pytest.mark.parametrize(
  "name, columns",
  [("a.txt", ()), ("a.csv", ("s",)), ("a.tsv", ("s",)), ("a.jsonl", ("s",))],
)
def test_invalid_utf8_is_refused_by_line(tmp_path, name, columns):
  first = b'{"s": "x"}\n' if name == "a.jsonl" else b"s\n"
  source = write(tmp_path, name, first + b"caf\xe9\nx\n")
  assert refusal(source, columns).startswith(f"{source} line 2: ")
  assert "re-save it as UTF-8" in refusal(source, columns)


# WTF-8 and CESU-8 write half a pair as three bytes.
@pytest.mark.parametrize("half", [b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_surrogate_in_bytes_is_refused_by_line(tmp_path, name, half):
  content = table(name, "one", "HERE").encode().replace(b"HERE", half)
  source = write(tmp_path, name, content)
  line = 2 if name in ("a.txt", "a.jsonl") else 3
  assert refusal(source, column(name)).startswith(f"{source} line {line}: not valid")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", FORMATS)
def test_utf16_is_refused_by_its_name(tmp_path, name, encoding):
  content = table(name, "one", "two")
  if encoding == "utf-16-be":  # Without its mark, where Python writes none.
    content = "\ufeff" + content
  source = write(tmp_path, name, content.encode(encoding))
  for message in (refusal(source, column(name)), lines_refusal(source)):
    assert message == f"{source} line 1: looks like UTF-16; re-save it as UTF-8"


@pytest.mark.parametrize("name", FORMATS)
def test_a_gzip_file_without_gz_in_its_name_is_refused_with_the_cure(tmp_path, name):
  source = write(tmp_path, name, gzip.compress(table(name, "one").encode()))
  for message in (refusal(source, column(name)), lines_refusal(source)):
    assert message.endswith("line 1: looks like a gzip file; add .gz to its name")


@pytest.mark.parametrize("name", FORMATS)
def test_lines_that_end_in_cr_alone_are_refused(tmp_path, name):
  source = write(tmp_path, name, table(name, "one", "two").replace("\n", "\r"))
  for message in (refusal(source, column(name)), lines_refusal(source)):
    assert "end in CR alone; re-save it with LF or CRLF" in message


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_not_text_is_refused(tmp_path, name):
  random = np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes()
  source = write(tmp_path, name, random)
  assert "not valid UTF-8" in refusal(source, column(name))
  assert "not valid UTF-8" in lines_refusal(source)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_file_packed_otherwise_is_refused_by_its_kind(tmp_path, name):
  content = b"one sentence and another\n" * 9
  stored = io.BytesIO()  # Its text is there to read, between what is not text.
  with zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as file:
    file.writestr("text.txt", content)
  for packed, kind in (
    (bz2.compress(content), "bzip2"),
    (lzma.compress(content), "xz"),
    (b"\x28\xb5\x2f\xfd" + content, "zstd"),
    (stored.getvalue(), "zip"),
  ):
    packed = gzip.compress(packed) if name.endswith(".gz") else packed
    source = write(tmp_path, name, packed)
    said = f"{source}: is compressed by {kind}, which is not read: unpack it, or"
    columns = ("s",) if name == "a.jsonl" else ()
    assert refusal(source, columns).startswith(said)
    assert lines_refusal(source).startswith(said)
  # A text that only begins like that is read as text.
  source = write(tmp_path, "b.txt", b"BZh9 is a magic number.\n")
  assert list(lines.Lines(source)) == ["BZh9 is a magic number."]


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_of_two_faults_is_the_one_named(tmp_path, name):
  # The good sentence is no table: its header lacks the column, and it is no JSON.
  source = write(tmp_path, name, b"good\nbad \xff\n")
  line = 2 if name == "a.txt" else 1
  assert refusal(source, column(name)).startswith(f"{source} line {line}: ")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz"])
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path, name):
  source = str(tmp_path / name)
  os.mkfifo(source)
  assert "is a pipe or device" in refusal(source, ("s",) if ".jsonl" in name else ())
  assert "is a pipe or device" in lines_refusal(source)


@pytest.mark.parametrize(
  "content",
  [
    gzip.compress(b"one sentence\n" * 99)[:-12],  # inside the deflate stream
    gzip.compress(b"one sentence\n")[:-4],  # inside the trailer
    b"one\n",  # never compressed
    gzip.compress(b"one\n")[:10] + b"\xff" * 20,  # not a deflate stream
    gzip.compress(b"one\n") + b"tail",  # something after the end
  ],
  # The ids are names, since what gzip writes holds the time.
  ids=lambda content: str(len(content)),
)
def test_a_damaged_gzip_file_is_refused(tmp_path, content):
  source = write(tmp_path, "a.txt.gz", content)
  assert "not a whole gzip file" in refusal(source)
  assert "not a whole gzip file" in lines_refusal(source)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_missing_table_column_is_refused_with_those_there_are(tmp_path, name):
  separator = "," if name == "a.csv" else "\t"
  source = write(tmp_path, name, separator.join(["one", "two"]) + "\n")
  message = refusal(source, ("one", "three"))
  assert "'three'" in message and "columns there are: 'one', 'two'" in message


@pytest.mark.parametrize("content", ["", "\n", "\ufeff", "\na,b\n", " \n\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_an_empty_header_is_refused(tmp_path, name, content):
  source = write(tmp_path, name, content)
  message = refusal(source, ("a",))
  assert message.startswith(f"{source} line 1: the header must hold column 'a' once")


@pytest.mark.parametrize("header", ["x" * 1_000_000, ",".join(map(str, range(99_999)))])
def test_a_huge_header_makes_no_huge_message(tmp_path, header):
  assert "..." in refusal(write(tmp_path, "a.csv", header + "\n"), ("s",))


def test_a_missing_jsonl_column_is_refused_by_line(tmp_path):
  source = write(tmp_path, "a.jsonl", '{"s": "x"}\n{"a": "x", "b": 1}\n')
  message = refusal(source, ("s",))
  assert message.startswith(f"{source} line 2: no column 's'")
  assert "columns there are: 'a', 'b'" in message


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
  assert "once" in refusal(write(tmp_path, "a.csv", "s,s\na,b\n"), ("s",))


def test_a_column_name_with_a_line_break_leaves_the_message_on_one_line(tmp_path):
  assert "no column" in refusal(
    write(tmp_path, "a.jsonl", '{"a\\nb": "x"}\n'), ("s\nt",)
  )


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.csv", "s,t\na,b\na,b,c\n"),
    ("a.csv", "s,t\na,b\na\n"),
    ("a.tsv", "s\tt\na\tb\na\tb\tc\n"),
    ("a.tsv", "s\tt\na\tb\na\n"),
  ],
)
def test_a_ragged_row_is_refused_by_line(tmp_path, name, content):
  source = write(tmp_path, name, content)
  message = refusal(source, ("s",))
  assert message.startswith(f"{source} line 3: ")
  assert "fields where the header has 2" in message


def test_the_line_of_a_ragged_csv_row_counts_line_breaks_inside_fields(tmp_path):
  source = write(tmp_path, "a.csv", 's,t\n"a\nb",c\nd\n')
  assert refusal(source, ("s",)).startswith(f"{source} line 4: 1 fields")


@pytest.mark.parametrize("row", ['"open,b', '"a"b,c', "a\rb,c"])
def test_bad_csv_quoting_is_refused_at_the_line_where_the_row_begins(tmp_path, row):
  source = write(tmp_path, "a.csv", f"s,t\na,b\n{row}\nc,d\n")
  assert refusal(source, ("s",)).startswith(f"{source} line 3: not valid CSV")


def test_an_open_csv_quote_is_refused_before_it_takes_a_huge_file(tmp_path):
  # Twice the length that a field may have.
  source = write(tmp_path, "a.csv", 's\na\n"open\n' + ("x" * 1023 + "\n") * (1 << 15))
  message = refusal(source, ("s",))
  assert message.startswith(f"{source} line 3: not valid CSV (field larger than")
  assert "close it" in message


@pytest.mark.parametrize(
  "line, complaint",
  [
    ('{"s": "x"', "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ('["x"]', "a list, not an object"),
    ('{"s": 3}', "column 's' holds a int"),
    ('{"s": null}', "column 's' holds a NoneType"),
    ('{"s": "\\ud83d"}', "half a surrogate pair"),
    ('{"s": "\\ude00\\ud83d"}', "half a surrogate pair"),
    ('{"\\ud83d": "x"}', "no column 's'; the columns there are: '\\ud83d'"),
    ('{"s": NaN}', "column 's' holds a float"),
    ('{"s": "x", "n": ' + "9" * 5000 + "}", "not valid JSON"),
    ("\0", "not valid JSON"),
    ('\ufeff{"s": "x"}', "not valid JSON"),
    ('{"s": "a\tb"}', "not valid JSON"),
  ],
)
def test_a_bad_jsonl_line_is_refused_by_line(tmp_path, line, complaint):
  source = write(tmp_path, "a.jsonl", '{"s": "x"}\n' + line + "\n")
  message = refusal(source, ("s",))
  assert message.startswith(f"{source} line 2: ")
  assert complaint in message and "line 1" not in message


@pytest.mark.parametrize("columns", [(), ("a", "b", "a")])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl"])
def test_no_or_repeated_columns_are_refused(tmp_path, name, columns):
  source = write(tmp_path, name, b"")
  assert "name different ones" in refusal(source, columns)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_columns_of_a_txt_file_are_refused(tmp_path, name):
  assert "name none" in refusal(write(tmp_path, name, "x\n"), ("s",))


@pytest.mark.parametrize(
  "name, content, columns",
  [
    ("a.txt", "", ()),
    ("a.txt", "\ufeff\n \n", ()),
    ("a.txt.gz", b"", ()),
    ("a.csv", "s,t\na,\n", ("s", "t")),
    ("a.tsv", "s\n", ("s",)),
    ("a.jsonl", "", ("s",)),
  ],
)
def test_a_source_without_a_sentence_is_refused(tmp_path, name, content, columns):
  assert "holds no sentence" in refusal(write(tmp_path, name, content), columns)


# Lines.


def lines_refusal(source):
  """Returns what is said of a file that `encode` cannot read."""
  return refusal(source, read=lambda source, _: list(lines.Lines(source)))


def test_lines_keeps_every_line_however_odd(tmp_path):
  rows = ["\ufeffone", "", " \t", "\0\0", "two", "two", "\ufeffa\rb\u2028c", "last "]
  content = "\r\n".join(rows).encode()
  expected = ["one", *rows[1:]]  # Only the mark at the start is none of the text.
  for name, written in (("a.txt", content), ("a.txt.gz", gzip.compress(content))):
    read = lines.Lines(write(tmp_path, name, written))
    assert len(read) == 8 and list(read) == expected
    assert [read[i] for i in range(8)] == expected


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_keeps_a_line_of_ten_million_characters(tmp_path, name):
  long = "the cat " * 1_250_000
  content = f"one\n{long}\ntwo\n".encode()
  packed = gzip.compress(content, 1) if name.endswith(".gz") else content
  assert list(lines.Lines(write(tmp_path, name, packed))) == ["one", long, "two"]


def test_lines_names_the_line_that_is_not_utf8_and_reads_the_others(tmp_path):
  source = write(tmp_path, "a.txt", b"one\n\xed\xa0\x80\nthree\n")
  said = f"{source} line 2: not valid UTF-8 (byte 1 is 0xed)"
  assert lines_refusal(source).startswith(said)
  read = lines.Lines(source)
  assert (len(read), read[0], read[2]) == (3, "one", "three")


def test_lines_of_a_missing_file_and_of_a_folder_are_refused(tmp_path):
  assert "no such file" in lines_refusal(str(tmp_path / "gone.txt"))
  assert "is a directory" in lines_refusal(str(tmp_path))


def test_lines_that_are_lost_under_way_are_missed(tmp_path):
  source = write(tmp_path, "a.txt", "one\ntwo\nthree\n")
  read = lines.Lines(source)
  write(tmp_path, "a.txt", "one\ntwo\n")
  with pytest.raises(UserError, match="lost lines while it was read"):
    list(read)
  with pytest.raises(UserError, match="lost lines while it was read"):
    read[2]


# TFDS. The builder stays out of TFDS's registry, so that reading finds the files
# alone, as it does in a process that did not prepare them.


class TinyPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Two splits of three records; the last one's positive is blank."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "anchor": tfds.features.Text(),
          "positive": tfds.features.Text(),
          "label": np.int64,
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples("train"),
      "odd": self._generate_examples("odd"),
    }

  def _generate_examples(self, split):
    positives = ["p 0", "p  1", " "]
    for i, positive in enumerate(positives):
      anchor = b"caf\xe9" if (split, i) == ("odd", 1) else f"é\n{i}"
      yield i, {"anchor": anchor, "positive": positive, "label": i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  TinyPairs(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


@pytest.fixture
def tfds_dir(prepared, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
  return prepared


def test_a_tfds_feature_is_a_column(tfds_dir):
  read = text.read_text("tfds:tiny_pairs:train:anchor")
  assert sorted(read.columns[0]) == ["é 0", "é 1", "é 2"]  # TFDS shuffles as it writes
  assert read.empty_rows == 0


def test_tfds_pairs_stay_together_and_blank_ones_are_counted(tfds_dir):
  read = text.read_text("tfds:tiny_pairs:train:positive,anchor")
  assert sorted(zip(*read.columns)) == [("p 0", "é 0"), ("p 1", "é 1")]
  assert read.empty_rows == 1


@pytest.mark.parametrize(
  "spec, rows",
  [
    ("tfds:tiny_pairs:1.0.0:train:anchor", 3),
    ("tfds:tiny_pairs:1.*.*:train[:2]:anchor", 2),
    ("tfds:tiny_pairs:train[1:]+train[:1]:anchor", 3),
  ],
)
def test_a_tfds_source_takes_a_version_and_a_slice(tfds_dir, spec, rows):
  assert len(text.read_text(spec).columns[0]) == rows


@pytest.mark.parametrize(
  "spec",
  [
    "tfds:",
    "tfds:tiny_pairs",
    "tfds:tiny_pairs:train",
    "tfds:tiny_pairs:train:",
    "tfds:tiny_pairs::anchor",
    "tfds::train:anchor",
    "tfds:tiny_pairs:train:anchor,",
  ],
)
def test_a_malformed_tfds_source_is_refused(spec):
  assert "write tfds:NAME:SPLIT:FEATURE" in refusal(spec)


def test_repeated_tfds_features_are_refused():
  assert "name different ones" in refusal("tfds:tiny_pairs:train:anchor,anchor")


def test_columns_apart_from_the_tfds_source_are_refused():
  assert "name none" in refusal("tfds:tiny_pairs:train:anchor", ("anchor",))


def test_an_unknown_tfds_split_is_refused_with_those_there_are(tfds_dir):
  message = refusal("tfds:tiny_pairs:dev:anchor")
  assert "no split 'dev'; the splits there are: 'train', 'odd'" in message


def test_an_unknown_tfds_feature_is_refused_with_those_there_are(tfds_dir):
  message = refusal("tfds:tiny_pairs:train:text")
  assert "no feature 'text'" in message and "'anchor', 'label', 'positive'" in message


def test_a_tfds_feature_that_is_not_text_is_refused(tfds_dir):
  assert "feature 'label' holds a" in refusal("tfds:tiny_pairs:train:label")


def test_a_tfds_record_that_is_not_utf8_is_refused(tfds_dir):
  assert "feature 'anchor' is not valid UTF-8" in refusal("tfds:tiny_pairs:odd:anchor")


# ag_news_subset: TFDS knows its code, so only the data are missing.
@pytest.mark.parametrize("name", ["never_heard_of", "ag_news_subset", "Bad Name"])
def test_an_unprepared_tfds_dataset_is_refused_with_the_way_to_prepare_it(
  tfds_dir, name
):
  message = refusal(f"tfds:{name}:train:anchor")
  assert (
    f'tfds.builder("{name}", file_format="array_record").download_and_prepare()'
    in message
  )
  assert str(tfds_dir) in message


def test_a_tfds_dataset_in_another_file_format_is_refused(tmp_path, monkeypatch):
  TinyPairs(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  info = tmp_path / "tiny_pairs" / "1.0.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert 'file_format="array_record"' in refusal("tfds:tiny_pairs:train:anchor")


def test_a_tfds_shard_that_is_missing_is_refused(tmp_path, monkeypatch):
  TinyPairs(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  for shard in tmp_path.glob("tiny_pairs/1.0.0/*train*"):
    shard.unlink()
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert "no whole array_record copy" in refusal("tfds:tiny_pairs:train:anchor")

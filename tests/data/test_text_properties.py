"""Properties of the readers of text, for any rows at all, and for any bytes at all."""

import csv
import gzip
import io
import json
import re
from unittest import mock

import hypothesis
from hypothesis import strategies as st
import pytest

from dcse_jax.data import decoding
from dcse_jax.data import lines as lines_lib
from dcse_jax.data import text
from dcse_jax.runtime.errors import UserError

LIMIT = 6  # Replaces text.MAX_CHARACTERS.
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")

# The same examples in every run, however slow the machine.
examples = lambda number: hypothesis.settings(
  max_examples=number,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
block_bytes = st.sampled_from([1, 2, 3, 7, 1 << 24])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("text")


# Characters that readers may stumble over, more often than at random.
characters = st.sampled_from(
  " \t\v\0\r\n\x1c\x85\xa0\u2028\u3000\u200b\ufeff\"',\\{aé日😀"
)
cells = st.text(characters | st.characters(exclude_categories=["Cs"]), max_size=12)
tables = st.integers(1, 3).flatmap(
  lambda width: st.lists(st.tuples(*[cells] * width), max_size=6)
)

pieces = st.sampled_from(
  [
    *(b"\n", b"\r\n", b"\r", b"\0", b" ", b'"', b",", b"\t", b"s", b"word", b"[", b"1"),
    *(b"\xff", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\x1f\x8b", b"PK\x03\x04"),
    *("é日😀\ufeff\u2028".encode(), b"s,t\n", b"s\tt\n", b"a,b\n", b"a\tb\n"),
    "\n\ufeffa".encode(),
    *(b'{"s": "a", "t": "b"}', b'{"s": "\\ud83d"}\n', b'{"s": NaN, "t": ', b"}"),
    *(b'{"s": "a", "s": "b\\u0000", "t": "\\n"}\n', b'{"\\ud83d": 1}', b"9" * 5000),
  ]
)
contents = st.binary(max_size=40) | st.lists(pieces, max_size=12).map(b"".join)


def write_txt(rows, end, plain):
  return "".join(sentence + end for (sentence,) in rows)


def write_csv(rows, end, plain):
  out = io.StringIO(newline="")
  # Older versions of csv leave a CR bare where it is not part of a line's end.
  quoting = csv.QUOTE_MINIMAL if plain and end == "\r\n" else csv.QUOTE_ALL
  writer = csv.writer(out, lineterminator=end, quoting=quoting)
  writer.writerow(["id", *COLUMNS[: len(rows[0])]])
  writer.writerows([number, *row] for number, row in enumerate(rows))
  return out.getvalue()


def write_tsv(rows, end, plain):
  rows = [COLUMNS[: len(rows[0])], *rows]
  return "".join("\t".join(["", *row]) + end for row in rows)


def write_jsonl(rows, end, plain):
  return "".join(
    json.dumps({"id": 1, **dict(zip(COLUMNS, row))}, ensure_ascii=not plain) + end
    for row in rows
  )


COLUMNS = ("s", "t", "u")
WRITERS = dict(zip(SUFFIXES, (write_txt, write_csv, write_tsv, write_jsonl)))
# Characters that a cell of the format cannot hold.
FORBIDDEN = {".txt": "\n", ".csv": "", ".tsv": "\t\n", ".jsonl": ""}


def clean(cell):
  """Returns the sentence of a cell, and whether it was cut."""
  sentence = re.sub(r"[\s\0]+", " ", cell).strip(" ")
  return sentence[:LIMIT].strip(" "), len(sentence) > LIMIT


def outcome(read, path, *args):
  """Returns what is read from a file, or its error: one line that names the file."""
  try:
    return read(str(path), *args)
  except UserError as error:
    message = str(error)
    assert str(path) in message and len(message.splitlines()) == 1
    return message.replace(str(path), "FILE")


@pytest.mark.parametrize("suffix", SUFFIXES)
@examples(120)
@hypothesis.given(
  rows=tables,
  end=st.sampled_from(["\n", "\r\n"]),
  mark=st.booleans(),
  plain=st.booleans(),
  packed=st.booleans(),
  block=block_bytes,
)
def test_every_row_written_is_read_cleaned_or_counted(
  folder, suffix, rows, end, mark, plain, packed, block
):
  if suffix == ".txt":
    rows = [row[:1] for row in rows]
  without = str.maketrans("", "", FORBIDDEN[suffix])
  rows = [tuple(cell.translate(without) for cell in row) for row in rows]
  width = len(rows[0]) if rows else 1
  content = WRITERS[suffix](rows, end, plain) if rows else ""
  if mark or content.startswith("\ufeff"):
    content = "\ufeff" + content
  content = content.encode()
  path = folder / f"rows{suffix}{'.gz' if packed else ''}"
  path.write_bytes(gzip.compress(content) if packed else content)

  cleaned = [[clean(cell) for cell in row] for row in rows]
  full = [row for row in cleaned if all(sentence for sentence, _ in row)]
  columns = () if suffix == ".txt" else COLUMNS[:width]
  with (
    mock.patch.object(decoding, "_BLOCK_BYTES", block),
    mock.patch.object(text, "MAX_CHARACTERS", LIMIT),
  ):
    read = outcome(text.read_text, path, columns)
  if not full:
    whole = "holds no sentence" in read or "is blank in every row" in read
    assert whole or not rows
    return
  assert read.columns == tuple([s for s, _ in column] for column in zip(*full))
  assert read.empty_rows == len(rows) - len(full)
  assert read.cut_rows == sum(any(cut for _, cut in row) for row in full)


@pytest.mark.parametrize("suffix", SUFFIXES)
@examples(200)
@hypothesis.given(content=contents, block=block_bytes)
def test_any_bytes_are_read_or_refused_in_one_line_and_gzipped_the_same(
  folder, suffix, content, block
):
  columns = () if suffix == ".txt" else ("s",)
  path, packed = folder / f"any{suffix}", folder / f"any{suffix}.gz"
  path.write_bytes(content)
  packed.write_bytes(gzip.compress(content))
  read = outcome(text.read_text, path, columns)
  assert outcome(text.read_text, packed, columns) == read
  with mock.patch.object(decoding, "_BLOCK_BYTES", block):
    assert outcome(text.read_text, path, columns) == read
  if isinstance(read, text.Text):
    (sentences,) = read.columns
    assert all(sentence == " ".join(sentence.split()) for sentence in sentences)
    assert "".join(sentences).encode("utf-8")  # No half of a surrogate pair.
    if suffix == ".txt":
      assert len(sentences) + read.empty_rows == len(split_lines(content))
  packed.write_bytes(content)  # Bytes that were never packed.
  outcome(text.read_text, packed, columns)


@pytest.mark.parametrize("suffix", SUFFIXES)
@examples(60)
@hypothesis.given(data=st.data())
def test_a_gzip_cut_anywhere_is_refused_and_a_damaged_one_read_or_refused(
  folder, suffix, data
):
  content = {
    ".txt": b"one\ntwo\n",
    ".csv": b's\none\n"two"\n',
    ".tsv": b"s\none\ntwo\n",
    ".jsonl": b'{"s": "one"}\n{"s": "two"}\n',
  }[suffix]
  columns = () if suffix == ".txt" else ("s",)
  whole = gzip.compress(content * data.draw(st.sampled_from([1, 500])))
  path = folder / f"cut{suffix}.gz"
  path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
  assert "not a whole gzip file" in outcome(text.read_text, path, columns)
  assert "not a whole gzip file" in outcome(lines_lib.Lines, path)
  damaged = bytearray(whole)
  damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
  path.write_bytes(damaged)
  outcome(text.read_text, path, columns)
  outcome(lines_lib.Lines, path)


def split_lines(content):
  """Splits at line feeds; the last line may lack one."""
  lines = content.split(b"\n")
  return lines if lines[-1] else lines[:-1]


@examples(200)
@hypothesis.given(content=contents, packed=st.booleans(), block=block_bytes)
def test_lines_has_every_line_of_any_bytes_at_its_number(
  folder, content, packed, block
):
  path = folder / ("lines.txt.gz" if packed else "lines.txt")
  path.write_bytes(gzip.compress(content) if packed else content)
  with mock.patch.object(lines_lib, "_BLOCK_BYTES", block):
    lines = outcome(lines_lib.Lines, path)
  if b"\r" in content and b"\n" not in content:
    refused = outcome(text.read_text, path)
    assert lines == refused and lines.startswith("FILE line 1: ")
    return
  rows = split_lines(content)
  assert len(lines) == len(rows)
  expected = []
  for number, row in enumerate(rows):
    read = outcome(lambda _: lines[number], path)
    try:
      expected.append(row.decode("utf-8").rstrip("\r"))
    except UnicodeDecodeError:
      assert read.startswith(f"FILE line {number + 1}: ")
      assert outcome(lambda _: list(lines.iterate(number)), path) == read
      continue
    if number == 0:
      expected[0] = expected[0].removeprefix("\ufeff")
    assert read == expected[-1]
  if len(expected) == len(rows):
    assert list(lines) == expected

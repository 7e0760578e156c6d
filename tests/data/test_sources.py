"""Text from several files, patterns, shares, and sentences of documents."""

import json
import sys

import numpy as np
import pytest

from dcse_jax.data import sources
from dcse_jax.data import splitting
from dcse_jax.data import stored
from dcse_jax.data import text
from dcse_jax.runtime.errors import UserError


def write(path, *sentences):
  """Writes a text file, or a table with the column "s"."""
  lines = sentences
  if path.suffix == ".jsonl":
    lines = [json.dumps({"s": sentence}) for sentence in sentences]
  path.write_text("".join(f"{line}\n" for line in lines))
  return str(path)


def refusal(*args, **kwargs):
  with pytest.raises(UserError) as caught:
    text.read_text(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_several_files_are_read_end_to_end_and_rows_are_numbered_over_all(tmp_path):
  one = write(tmp_path / "one.txt", "a", "", "b")
  two = write(tmp_path / "two.jsonl", "c", "d", " ")
  found = text.read_text((one, two), ("s",))
  assert found.columns == (["a", "b", "c", "d"],)
  assert found.empty_rows == 2 and found.source_rows.tolist() == [0, 2, 3, 4]
  # As embeddings have them.
  assert list(text.first_cells((one, two), ("s",))) == ["a", "", "b", "c", "d", ""]
  assert text.measure((one, two), ("s",))[0] == 6
  assert list(text.read_ids((one, two), "s")) == ["0", "1", "2", "c", "d", ""]
  assert text.measure((one, two), ("s",)) != text.measure((two, one), ("s",))


def test_a_pattern_is_all_files_that_fit_in_the_order_of_their_names(tmp_path):
  (tmp_path / "deep").mkdir()
  write(tmp_path / "b.txt", "b")
  write(tmp_path / "a.txt", "a")
  write(tmp_path / "a[b].txt", "name")
  write(tmp_path / "deep" / "c.txt", "c")
  assert text.read_text(f"{tmp_path}/?.txt").columns == (["a", "b"],)
  assert text.read_text(f"{tmp_path}/**/[ac].txt").columns == (["a", "c"],)
  # A file of that very name is no pattern.
  assert text.read_text(f"{tmp_path}/a[b].txt").columns == (["name"],)
  assert "no file fits this pattern" in refusal(f"{tmp_path}/*.csv")


def test_a_share_is_as_many_rows_and_the_same_ones_at_every_time(tmp_path):
  rows = [str(i) for i in range(10_000)]
  one, two = write(tmp_path / "one.txt", *rows), write(tmp_path / "two.txt", *rows)
  found = text.read_text((one, f"{two}*0.3"))
  (sentences,) = found.columns
  assert sentences[:10_000] == rows
  drawn = list(map(int, sentences[10_000:]))
  # Four standard deviations of 10,000 draws.
  assert abs(len(drawn) - 3000) < 4 * np.sqrt(10_000 * 0.3 * 0.7)
  assert drawn == sorted(set(drawn))
  assert found.undrawn_rows == 10_000 - len(drawn) and found.empty_rows == 0
  # Rows of embeddings are those of the whole files.
  assert found.source_rows[10_000:].tolist() == [10_000 + row for row in drawn]
  assert text.measure((one, f"{two}*0.3")) == text.measure((one, two))
  # The file may lie elsewhere, and the disk keep the text.
  moved = write(tmp_path / "moved.txt", *rows)
  again = text.read_text((one, f"{moved}*.3"), store=tmp_path / "disk")
  assert isinstance(again.columns[0], stored.StoredColumn)
  assert list(again.columns[0]) == sentences
  assert again.source_rows.tolist() == found.source_rows.tolist()


def test_a_file_may_have_a_name_that_ends_like_a_share(tmp_path):
  name = str(tmp_path / "a.txt*0.5")
  (tmp_path / "a.txt*0.5").write_text("x")
  assert sources.expand(name) == [sources.Source(name)]
  assert sources.expand("hf:a/b:train:q*0.5") == [sources.Source("hf:a/b:train:q", 0.5)]


@pytest.mark.parametrize("share", ["0", "0.0", "1.5", "2"])
def test_a_share_is_above_0_and_1_at_most(tmp_path, share):
  name = f"{write(tmp_path / 'a.txt', 'a')}*{share}"
  assert f"{name}: a share of its rows is above 0 and 1 at most" in refusal(name)
  assert "to meet a sentence more often, read less of the others" in refusal(name)


def test_sources_that_do_not_fit_together_are_refused(tmp_path):
  plain = write(tmp_path / "a.txt", "a")
  table = tmp_path / "b.csv"
  table.write_text("s,t\na,b\n")
  assert "name none" in refusal((plain, plain), ("s",))
  message = refusal((plain, str(table)), ("s", "t"))
  assert f"{plain} has 1 columns of text and {table} 2" in message
  other = tmp_path / "c.csv"
  other.write_text("s,u\na,b\n")
  assert "must hold column 't' once" in refusal((str(table), str(other)), ("s", "t"))
  assert "no such file" in refusal((plain, str(tmp_path / "gone.txt")))


DOCUMENTS = [
  'Dr. Smith came at 3 p.m. on Jan. 5. "Was it cold?" she asked. Yes!',
  "A title\n\nOne sentence that\nis wrapped. \0Another",
  " \n\n ",
]
SENTENCES = [
  "Dr. Smith came at 3 p.m. on Jan. 5.",
  '"Was it cold?" she asked.',
  "Yes!",
  "A title",
  "One sentence that is wrapped.",
  "Another",
]


def test_documents_become_their_sentences(tmp_path):
  pytest.importorskip("sentencex")
  source = write(tmp_path / "a.jsonl", *DOCUMENTS)
  found = text.read_text(source, ("s",), split="sentences")
  assert found.columns == (SENTENCES,)
  assert found.empty_rows == 1  # A document with none.
  source = write(tmp_path / "a.txt", "Das ist z.B. ein Satz. Am 3. Oktober ruht er.")
  assert text.read_text(source, split="sentences:de").columns == (
    ["Das ist z.B. ein Satz.", "Am 3. Oktober ruht er."],
  )


def test_white_space_that_is_no_ascii_does_no_harm():
  pytest.importorskip("sentencex")
  split = splitting.make("sentences")
  # sentencex alone fails at this one.
  assert list(split("By J\u00a0. Bach. We\u2028hear.")) == ["By J . Bach.", "We hear."]


def test_what_cannot_be_split_is_refused(tmp_path, monkeypatch):
  table = tmp_path / "b.csv"
  table.write_text("s,t\na,b\n")
  assert "must be" in refusal(str(table), ("s",), split="words")
  assert 'as in "sentences:de"' in refusal(str(table), ("s",), split="sentences:")
  monkeypatch.setitem(sys.modules, "sentencex", None)
  message = refusal(str(table), ("s",), split="sentences")
  assert "pip install 'dcse_jax[data]'" in message


def test_two_columns_are_not_split(tmp_path):
  pytest.importorskip("sentencex")
  table = tmp_path / "b.csv"
  table.write_text("s,t\na,b\n")
  assert "there are 2 columns; name one" in refusal(
    str(table), ("s", "t"), split="sentences"
  )

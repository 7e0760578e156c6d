"""Rows with several hard negatives, and with scores of their candidates."""

import json

import numpy as np
import pytest

from dcse_jax.data import batches as batches_lib
from dcse_jax.data import text
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.runtime.errors import UserError

ROWS = [
  {"q": "a", "p": "b", "n": ["c"], "s": [3, 1]},
  {"q": "d", "p": "e", "n": ["f", " ", "g"], "s": [2.5, 0, None, -1]},
  {"q": "h", "p": "i", "n": [], "s": [1]},
]
COLUMNS = (["a", "d"], ["b", "e"], ["c", "f"], ["", "g"])
SCORES = [[3, 1, 0], [2.5, 0, -1]]


def write(path, lines):
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  return str(path)


@pytest.fixture
def lists(tmp_path):
  return write(tmp_path / "t.jsonl", map(json.dumps, ROWS))


def test_lists_of_negatives_become_columns_and_a_row_without_any_is_left_out(lists):
  read = text.read_text(lists, ("q", "p", "n"), ("s",))
  assert read.columns == COLUMNS
  np.testing.assert_array_equal(read.scores, SCORES)
  assert list(read.left_out) == [2]
  assert text.num_columns(lists, ("q", "p", "n")) == 4


def test_parquet_lists_are_read_as_json_lists_are(tmp_path):
  pa = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  path = str(tmp_path / "t.parquet")
  rows = [
    {**row, "s": [None if s is None else float(s) for s in row["s"]]} for row in ROWS
  ]
  parquet.write_table(pa.Table.from_pylist(rows), path)
  read = text.read_text(path, ("q", "p", "n"), ("s",))
  assert read.columns == COLUMNS
  np.testing.assert_array_equal(read.scores, SCORES)


@pytest.mark.parametrize("comma", [",", "\t"])
def test_columns_of_negatives_may_be_blank_in_some_rows(tmp_path, comma):
  lines = ["q,p,n1,n2,s0,s1,s2", "a,b,c,,1,2,", "d,e,f,g,3,4e-1,-5"]
  path = write(
    tmp_path / {",": "t.csv", "\t": "t.tsv"}[comma],
    [line.replace(",", comma) for line in lines],
  )
  read = text.read_text(path, ("q", "p", "n1", "n2"), ("s0", "s1", "s2"))
  assert read.columns == (["a", "d"], ["b", "e"], ["c", "f"], ["", "g"])
  np.testing.assert_allclose(read.scores, [[1, 2, 0], [3, 0.4, -5]])


def test_a_json_row_may_lack_the_columns_of_later_negatives(tmp_path):
  rows = [{"q": "a", "p": "b", "n1": "c"}, {"q": "d", "p": "e", "n1": "f", "n2": "g"}]
  path = write(tmp_path / "t.jsonl", map(json.dumps, rows))
  read = text.read_text(path, ("q", "p", "n1", "n2"))
  assert read.columns[2:] == (["c", "f"], ["", "g"])
  assert read.scores is None


@pytest.mark.parametrize(
  "row, columns, scores, message",
  [
    ({"s": [1]}, "qpn", "s", "row 0: 1 scores for 2 candidates"),
    ({"s": [1, None]}, "qpn", "s", "row 0: the score None is no finite number"),
    ({"s": [1, True]}, "qpn", "s", "row 0: the score True is no finite number"),
    ({"s": [1, "x"]}, "qpn", "s", "row 0: the score 'x' is no finite number"),
    ({"s": {"a": 1}}, "qpn", "s", "line 1: column 's' holds a dict; make it a number"),
    ({"n": [1]}, "qpn", "", "row 0: a list of negatives holds a int"),
    ({"p": ["b"]}, "qpn", "", "line 1: column 'p' holds a list; make it a string"),
    ({}, "q", "s", "name columns of anchors and positives"),
    ({}, "qps", "s", "columns named: 'q', 'p', 's', 's'"),
    ({}, ["q", "p", "n", "m"], "", "column 'm' is blank in every row"),
  ],
  ids=str,
)
def test_what_fits_no_candidate_is_refused(tmp_path, row, columns, scores, message):
  good = {"q": "a", "p": "b", "n": ["c"], "s": [1, 2]}
  path = write(tmp_path / "t.jsonl", [json.dumps(good | row)])
  with pytest.raises(UserError) as error:
    text.read_text(path, tuple(columns), tuple(scores))
  assert message in str(error.value) and "\n" not in str(error.value)


def build(path, columns):
  """Tokenises "4 5" as [2, 4, 5, 3]."""
  return tokens_lib.build_token_cache(
    path,
    columns,
    tokenize=lambda sentences: [[2, *map(int, s.split()), 3] for s in sentences],
    tokenizer_state="",
    max_length=6,
    pad_token_id=0,
    vocab_size=100,
  )


def test_a_negative_of_its_own_row_is_struck_out(tmp_path):
  rows = [
    ["10", "11", "12", "13"],
    ["20", "21", "20", "22"],  # The first negative is the anchor.
    ["30", "31", "32", "32"],  # The second is the first.
    ["40", "41", "41", "40"],  # None is left.
    ["50", "51", "", "52"],
  ]
  cache = build(tmp_path, [list(column) for column in zip(*rows)])
  assert (len(cache), cache.contradicting) == (4, 1)
  batch = cache.gather(np.arange(4))
  expected = [[True, True], [False, True], [True, False], [False, True]]
  np.testing.assert_array_equal(batch["has_negative"], expected)
  assert batch["input_ids"].shape == (4, 4, 6)


def test_rows_that_share_a_negative_may_meet_but_not_a_negative_of_another_pair(
  tmp_path,
):
  # Row 0 shares a negative with row 1; its positive is a negative of row 2.
  columns = [["10", "20", "30"], ["11", "21", "31"], ["12", "12", "11"]]
  cache = build(tmp_path, columns)
  assert (cache.num_twins, cache.max_batch_size) == (2, 2)
  batches = batches_lib.make_batches(cache, batch_size=2, seed=0)
  met = [frozenset(next(batches)["example_id"].tolist()) for _ in range(40)]
  assert set(met) == {frozenset({0, 1}), frozenset({1, 2})}

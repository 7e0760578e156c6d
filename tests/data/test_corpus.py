"""Texts beyond memory: columns on disk, digests for sentences, files that grow."""

import json
import random

import numpy as np
import pytest

from dcse_jax.data import duplicates
from dcse_jax.data import stored
from dcse_jax.data import token_files


@pytest.mark.parametrize("number", [0, 1, 127, 128, 129, 500])
def test_a_column_on_disk_is_read_like_a_list_while_it_grows(tmp_path, number):
  rng = random.Random(number)
  column, expected = stored.StoredColumn(tmp_path / "new"), []
  for row in range(number):
    sentence = rng.choice(["", "é", "日本語", "a b " * 50]) + str(row)
    column.append(sentence)
    expected.append(sentence)
    assert len(column) == row + 1
    assert column[rng.randrange(row + 1)] in expected
  assert list(column) == expected
  for part in (slice(None), slice(3, 300), slice(120, 130), slice(90, None, 7)):
    assert column[part] == expected[part]
  assert [column[np.int64(row)] for row in range(number)] == expected
  assert [column[-1 - row] for row in range(number)] == expected[::-1]
  with pytest.raises(IndexError):
    column[number]
  # The file has no name.
  assert not list((tmp_path / "new").iterdir())


def test_chosen_rows_of_a_column_are_a_column():
  rows = np.asarray([1, 2, 5])
  chosen = stored.Chosen([str(row) for row in range(7)], rows)
  assert list(chosen) == ["1", "2", "5"] and chosen[1:] == ["2", "5"]
  assert len(chosen) == 3 and chosen[np.int64(2)] == "5"


@pytest.mark.parametrize("at_once", [3, 50, 1 << 20])
def test_equal_digests_have_one_number_in_the_order_in_which_they_come(
  monkeypatch, at_once
):
  monkeypatch.setattr(duplicates, "_SORTED_AT_ONCE", at_once)
  rng = np.random.default_rng(0)
  few = rng.integers(0, 2**64, 40, np.uint64)
  few[:3] = 0, 2**64 - 1, 2**63  # The borders of parts.
  digests = rng.choice(few, 300)
  known = {}
  expected = [known.setdefault(each, len(known)) for each in digests.tolist()]
  numbers = duplicates.number(digests)
  assert numbers.tolist() == expected
  first = [number not in expected[:place] for place, number in enumerate(expected)]
  assert duplicates.are_first(numbers).tolist() == first


def tokenize(sentences):
  return [[2, *map(int, sentence.split()), 3][:6] for sentence in sentences]


def reference(columns, dtype, keep_repeats):
  """Returns a cache's arrays, and what it counts, by sets and lists of Python."""
  ids, rows, kept = {}, set(), []
  count = {"dropped": 0, "contradicting": 0}
  tokens = [tokenize(column) for column in columns]
  for number in range(len(columns[0])):
    found = []
    for c, column in enumerate(columns):
      known = ids.setdefault(str(tokens[c][number]), len(ids)) if column[number] else -1
      found.append(-1 if c >= 2 and known in found else known)
    if found[2:] and max(found[2:]) < 0:
      count["contradicting"] += 1
    elif tuple(found) in rows and not keep_repeats:
      count["dropped"] += 1
    else:
      rows.add(tuple(found))
      kept.append((number, found))
  arrays = {
    "sentence_ids": np.asarray([found for _, found in kept], np.int64),
    "source_rows": np.asarray([number for number, _ in kept], np.int64),
  }
  for c, each in enumerate(tokens):
    each = [np.asarray(each[number], dtype) for number, _ in kept]
    arrays[f"tokens_{c}"] = np.concatenate(each)
    arrays[f"offsets_{c}"] = np.cumsum([0, *map(len, each)])
  return arrays, count


@pytest.mark.parametrize(
  "width, dtype", [(1, np.uint16), (2, np.uint32), (4, np.uint16)]
)
@pytest.mark.parametrize("keep_repeats", [False, True])
def test_a_cache_in_chunks_has_the_bytes_of_one_made_in_memory(
  tmp_path, monkeypatch, width, dtype, keep_repeats
):
  monkeypatch.setattr(token_files, "CHUNK", 7)
  rng = random.Random(width)
  number = lambda: str(rng.randrange(4))
  sentence = lambda: " ".join(number() for _ in range(rng.choice([1, 1, 2, 7])))
  columns = [[sentence() for _ in range(120)] for _ in range(width)]
  # A row may have fewer hard negatives than there are columns.
  columns[2:] = [
    [each if rng.random() < 0.7 else "" for each in c] for c in columns[2:]
  ]
  columns = [column + column[::5] for column in columns]
  (tmp_path / "cache").mkdir()
  token_files.write(
    tmp_path / "cache",
    columns,
    tokenize,
    dtype,
    keep_repeats=keep_repeats,
    show_progress=False,
  )
  arrays, count = reference(columns, dtype, keep_repeats)
  assert (count["dropped"] > 0) != keep_repeats
  for name, array in arrays.items():
    np.save(tmp_path / f"{name}.npy", array)
  content = lambda folder: {p.name: p.read_bytes() for p in folder.glob("*.npy")}
  assert content(tmp_path / "cache") == content(tmp_path)
  assert json.loads((tmp_path / "cache" / "meta.json").read_text()) == count

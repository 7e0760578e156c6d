"""The token cache and the order of batches."""

import functools
import json

import grain
import numpy as np
import pytest

from dcse_jax.data import batches as batches_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.runtime import digests as digests_lib


def tokenize(sentences):
  """Returns token ids that can be read off the sentence: "4 5" is [2, 4, 5, 3]."""
  return [[2, *map(int, s.split()), 3][:6] for s in sentences]


def build(path, columns, *, state="v1", max_length=6):
  return tokens_lib.build_token_cache(
    path,
    columns,
    tokenize=tokenize,
    tokenizer_state=state,
    max_length=max_length,
    pad_token_id=0,
    vocab_size=100,
  )


def make_batches(cache, batch_size, **kwargs):
  return batches_lib.make_batches(cache, batch_size=batch_size, seed=7, **kwargs)


# Any lengths meet, or the rows of three batches are sorted by length together.
in_any_order = pytest.mark.parametrize("bucket_batches", [0, 3])


def numbered(n):
  return [str(i) for i in range(10, 10 + n)]


def test_a_batch_holds_the_padded_tokens_of_its_rows(tmp_path):
  cache = build(tmp_path, [["4 5", "6", "7 8 9 10 11 12"]])
  batch = cache.gather(np.asarray([2, 1]))
  np.testing.assert_array_equal(
    batch["input_ids"], [[[2, 7, 8, 9, 10, 11]], [[2, 6, 3, 0, 0, 0]]]
  )
  np.testing.assert_array_equal(batch["attention_mask"].sum(axis=2), [[6], [3]])
  np.testing.assert_array_equal(batch["example_id"], [2, 1])


def test_a_cache_is_made_once_and_anew_when_anything_it_is_made_of_changes(
  tmp_path,
):
  text = [["4 5", "6", "7"]]
  first = build(tmp_path, text)
  assert build(tmp_path, text).key == first.key
  assert len(list(tmp_path.iterdir())) == 1
  others = {
    build(tmp_path, [["4 5", "6", "8"]]).key,
    build(tmp_path, [["4", "5 6", "7"]]).key,
    build(tmp_path, [["4 5", "6", "7"], ["4", "4", "4"]]).key,
    build(tmp_path, text, state="v2").key,
    build(tmp_path, text, max_length=5).key,
  }
  assert len(others | {first.key}) == 6
  assert len(list(tmp_path.iterdir())) == 6


def test_an_interrupted_build_leaves_no_cache(tmp_path):
  def broken(sentences):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    tokens_lib.build_token_cache(
      tmp_path,
      [["4"]],
      tokenize=broken,
      tokenizer_state="v1",
      max_length=6,
      pad_token_id=0,
      vocab_size=100,
    )
  assert not list(tmp_path.glob("tokens-*"))
  assert len(build(tmp_path, [["4"]])) == 1


def test_ids_past_65535_survive_the_cache(tmp_path):
  cache = tokens_lib.build_token_cache(
    tmp_path,
    [["x"]],
    tokenize=lambda s: [[70_000]],
    tokenizer_state="v1",
    max_length=2,
    pad_token_id=1,
    vocab_size=70_001,
  )
  assert cache.gather(np.asarray([0]))["input_ids"].tolist() == [[[70_000, 1]]]


def test_rows_that_repeat_in_tokens_are_dropped_and_counted(tmp_path):
  # After a cut to six tokens the last two are one sentence to the model.
  cache = build(tmp_path, [["4", "5", "4", "1 2 3 4 5 6", "1 2 3 4 5 7"]])
  assert (len(cache), cache.dropped) == (3, 2)


def test_a_row_that_is_its_own_hard_negative_is_left_out_and_counted(tmp_path):
  anchors = ["1", "2", "3", "1 2 3 4 5 6"]
  positives = ["11", "12", "13", "14"]
  # The second one's is its positive, the third one's its anchor; so is the last one's,
  # once cut to six tokens.
  negatives = ["21", "12", "3", "1 2 3 4 5 7"]
  cache = build(tmp_path, [anchors, positives, negatives])
  assert (len(cache), cache.dropped, cache.contradicting) == (1, 0, 3)
  assert cache.source_rows.tolist() == [0]
  # The same pairs without negatives are all there, and so is a pair of equals.
  pairs = build(tmp_path, [anchors, ["11", "12", "3", "14"]])
  assert (len(pairs), pairs.contradicting) == (4, 0)


def test_a_cache_of_an_earlier_version_loses_its_contradictions_and_its_name(tmp_path):
  rows = [["1", "2"], ["11", "12"], ["21", "22"]]
  key = build(tmp_path, rows).key
  rows[2][1] = "12"
  cache = build(tmp_path, rows)
  folder = next(p for p in tmp_path.iterdir() if p.name != f"tokens-{key}")
  # The cache as it was: with the row, and without its count.
  (folder / "meta.json").write_text('{"dropped": 0}')
  np.save(folder / "sentence_ids.npy", np.asarray([[0, 1, 2], [3, 4, 4]]))
  digests_lib.write(folder)
  again = build(tmp_path, rows)
  assert (len(again), again.contradicting, again.key) == (1, 1, cache.key)
  # If nothing was left out the name stays the same.
  assert folder.name != f"tokens-{cache.key}"


@in_any_order
def test_an_epoch_shows_every_sentence_at_most_once_and_epochs_differ(
  bucket_batches, tmp_path
):
  cache = build(tmp_path, [numbered(22)])
  iterator = make_batches(cache, 5, bucket_batches=bucket_batches)
  epochs = [
    np.concatenate([next(iterator)["example_id"] for _ in range(4)]) for _ in range(3)
  ]
  for epoch in epochs:
    assert len(set(epoch.tolist())) == 20
  assert epochs[0].tolist() != epochs[1].tolist() != epochs[2].tolist()


@in_any_order
def test_hosts_share_one_global_batch_without_overlap(bucket_batches, tmp_path):
  cache = build(tmp_path, [numbered(40)])
  make = functools.partial(make_batches, cache, 8, bucket_batches=bucket_batches)
  alone, hosts = make(), [make(host=h, num_hosts=4) for h in range(4)]
  for _ in range(7):
    parts = [next(host)["example_id"] for host in hosts]
    np.testing.assert_array_equal(np.concatenate(parts), next(alone)["example_id"])


def test_batches_say_how_many_tokens_their_fullest_group_holds(tmp_path):
  # Sentences of one to three numbers.
  sentences = [" ".join([str(i)] * (1 + i % 3)) for i in range(10, 40)]
  cache = build(tmp_path, [sentences])
  alone = next(make_batches(cache, 8, groups=4))
  lengths = alone["attention_mask"].sum(axis=(1, 2))
  assert alone["num_tokens"] == lengths.reshape(4, 2).sum(axis=1).max()
  # Hosts that each have a part of the batch must choose the same packing.
  for host in range(2):
    part = next(make_batches(cache, 8, groups=4, host=host, num_hosts=2))
    assert part["num_tokens"] == alone["num_tokens"]


def test_buckets_hold_rows_of_like_length_in_random_order(tmp_path):
  # Four sentences each of 3, 4, 5 and 6 tokens, mixed.
  words = [" ".join(str(i + k) for k in range(1 + i % 4)) for i in range(10, 26)]
  cache = build(tmp_path, [words])
  iterator = make_batches(cache, 4, bucket_batches=4)
  orders = []
  for _ in range(5):
    epoch = [next(iterator) for _ in range(4)]
    lengths = [batch["attention_mask"].sum(axis=2) for batch in epoch]
    assert all(len(np.unique(each)) == 1 for each in lengths)
    assert [each.max() for each in lengths] == [batch["longest"] for batch in epoch]
    orders.append([int(each.max()) for each in lengths])
    assert sorted(orders[-1]) == [3, 4, 5, 6]
  assert len(set(map(tuple, orders))) > 1
  # The longer column of a pair says how long a row is.
  pairs = build(tmp_path, [numbered(16), words])
  for batch in (next(make_batches(pairs, 4, bucket_batches=4)) for _ in range(4)):
    lengths = batch["attention_mask"].sum(axis=2).max(axis=1)
    assert len(np.unique(lengths)) == 1


@in_any_order
def test_a_restored_iterator_goes_on_exactly(bucket_batches, tmp_path):
  cache = build(tmp_path, [numbered(30)])
  iterator = make_batches(cache, 4, bucket_batches=bucket_batches)
  for _ in range(9):
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  expected = [next(iterator)["example_id"].tolist() for _ in range(9)]
  resumed = make_batches(cache, 4, bucket_batches=bucket_batches)
  resumed.set_state(state)
  assert [next(resumed)["example_id"].tolist() for _ in range(9)] == expected


@in_any_order
def test_rows_that_share_a_sentence_never_meet_and_none_is_lost(
  bucket_batches, tmp_path
):
  # Anchors 10..29 come twice each, with 40 different positives; one positive is
  # another row's anchor.
  anchors = numbered(20) * 2
  positives = [f"{i} 1" for i in range(40)]
  positives[3] = "29"
  cache = build(tmp_path, [anchors, positives])
  assert len(cache) == 40
  assert cache.num_twins == 40
  iterator = make_batches(cache, 10, bucket_batches=bucket_batches)
  seen = set()
  for _ in range(60):
    rows = next(iterator)["example_id"]
    assert len(rows) == 10
    sentences = cache.sentence_ids[rows].ravel().tolist()
    assert len(sentences) == len(set(sentences))
    seen.update(rows.tolist())
  assert seen == set(range(40))


def test_a_corpus_of_nearly_nothing_but_twins_still_fills_whole_batches(
  tmp_path,
):
  # 60 rows share one anchor; 7 others share nothing: 8 rows can meet.
  anchors = ["10"] * 60 + numbered(8)[1:]
  positives = [f"{i} 2" for i in range(67)]
  cache = build(tmp_path, [anchors, positives])
  assert cache.num_twins == 60
  assert cache.max_batch_size == 8
  iterator = make_batches(cache, 8)
  for _ in range(20):
    sentences = cache.sentence_ids[next(iterator)["example_id"]].ravel().tolist()
    assert len(sentences) == len(set(sentences)) == 16


def test_the_order_is_a_grain_iterator_whose_state_is_json(tmp_path):
  iterator = make_batches(build(tmp_path, [numbered(8)]), 4)
  assert isinstance(iterator, grain.DatasetIterator)
  json.dumps(iterator.get_state())

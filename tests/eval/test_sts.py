"""Spearman on STS sets, by closed form and by the published conventions."""

import numpy as np
import pytest

from dcse_jax.eval import registry
from dcse_jax.eval import sts
from dcse_jax.eval import sts_sets
from dcse_jax.runtime.errors import UserError


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(text.encode())


def one_hot_angles(sentences):
  """Embeds "30" as the unit vector at 30 degrees."""
  angles = np.radians([float(s) for s in sentences])
  return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_spearman_with_ties_is_pearson_of_mean_ranks():
  a, b = np.asarray([1.0, 2.0, 2.0, 5.0]), np.asarray([0.1, 0.4, 0.3, 0.3])
  ranks_a, ranks_b = [1, 2.5, 2.5, 4], [1, 4, 2.5, 2.5]
  expected = 100 * np.corrcoef(ranks_a, ranks_b)[0, 1]
  assert sts.spearman(a, b) == pytest.approx(expected)


def test_spearman_of_drawn_pairs_is_that_of_each_pair_as_often_as_it_was_drawn():
  a = np.asarray([0.1, 0.4, 0.4, -0.2, 0.9])
  b = np.asarray([1.0, 2.0, 3.0, 3.0, 5.0])
  counts = np.asarray([[1, 1, 1, 1, 1], [0, 2, 1, 2, 0], [3, 0, 0, 0, 2]])
  repeated = lambda x, row: np.repeat(x, row)
  expected = [sts.spearman(repeated(a, row), repeated(b, row)) for row in counts]
  assert sts.drawn_spearman(a, b, counts) == pytest.approx(expected)
  # One pair alone, and a model that tells nothing apart, rank nothing.
  assert sts.drawn_spearman(a, b, np.asarray([[5, 0, 0, 0, 0]])) == pytest.approx([0])
  assert sts.drawn_spearman(np.ones(5), b, counts) == pytest.approx([0, 0, 0])


def test_a_collapsed_encoder_scores_zero_not_nan():
  assert sts.spearman(np.ones(5), np.arange(5.0)) == 0.0


def test_subsets_of_a_file_make_one_ranking(tmp_path):
  # Each subset alone is ranked perfectly (100); together they are not.
  write(
    tmp_path / "X.tsv",
    "1\t0\t50\ta\n2\t0\t40\ta\n1\t0\t20\tb\n2\t0\t10\tb\n",
  )
  sets = sts_sets.read_sts(str(tmp_path))
  # Scores 1 2 1 2 against cosines ranked 1 2 3 4.
  expected = 100 * np.corrcoef([1.5, 3.5, 1.5, 3.5], [1, 2, 3, 4])[0, 1]
  scores = sts.score_sts(one_hot_angles, sets)
  assert scores == pytest.approx({"X": expected, "avg": expected})


def test_each_distinct_sentence_is_embedded_once(tmp_path):
  write(tmp_path / "X.tsv", "1\t0\t50\n2\t0\t40\n")
  write(tmp_path / "Y.tsv", "1\t0\t50\n2\t50\t40\n")
  calls = []

  def embed(sentences):
    calls.append(list(sentences))
    return one_hot_angles(sentences)

  sts.score_sts(embed, sts_sets.read_sts(str(tmp_path)))
  assert calls == [["0", "50", "40"]]


def test_the_average_leaves_train_and_dev_sets_out():
  names = ["SICKR-dev", "STS12-test", "STSB-train", "mine"]
  assert sts_sets.averaged_sets(names) == ["STS12-test", "mine"]
  assert sts_sets.averaged_sets(["STSB-dev"]) == ["STSB-dev"]


def test_quotes_are_part_of_a_sentence_and_crlf_and_a_byte_order_mark_are_not(tmp_path):
  write(tmp_path / "X.tsv", '\ufeff1.5\tsay "hi\tbye\r\n0\ta\tb\tsubset\r\n')
  pairs = sts_sets.read_sts_file(tmp_path / "X.tsv")
  assert pairs.first == ['say "hi', "a"]
  assert pairs.second == ["bye", "b"]
  np.testing.assert_array_equal(pairs.scores, [1.5, 0.0])


@pytest.mark.parametrize("line", ["x\ta\tb", "1\ta", "1\ta\tb\tc\td", "nan\ta\tb", "1"])
def test_a_line_of_another_form_is_named(line, tmp_path):
  write(tmp_path / "X.tsv", f"1\ta\tb\n{line}\n")
  with pytest.raises(UserError, match=r"X\.tsv:2: expected a score"):
    sts_sets.read_sts(str(tmp_path))


def test_a_line_that_is_not_utf8_is_named(tmp_path):
  (tmp_path / "X.tsv").write_bytes(b"1\ta\tb\n1\t\xff\tb\n")
  with pytest.raises(UserError, match=r"X\.tsv:2: not UTF-8"):
    sts_sets.read_sts(str(tmp_path))


def test_a_set_that_is_not_there_is_named_with_those_that_are(tmp_path):
  write(tmp_path / "X.tsv", "1\ta\tb\n2\ta\tc\n")
  with pytest.raises(UserError, match="'STSB-dev'.*holds X"):
    registry.read_named(["STSB-dev"], str(tmp_path), dev=True)
  with pytest.raises(UserError, match="holds no .tsv file"):
    sts_sets.read_sts(str(tmp_path / "nowhere"))


def test_alignment_is_the_mean_squared_distance_of_paraphrases():
  # Unit vectors at right angles: 2; the same direction: 0; the third pair's
  # score of 3.9 is below four fifths of 5.
  first = np.asarray([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
  second = np.asarray([[0.0, 3.0], [0.0, 1.0], [-1.0, 0.0]])
  assert sts.alignment(first, second, np.asarray([5.0, 4.0, 3.9])) == pytest.approx(1)


def test_paraphrases_are_told_in_any_scale_and_theirs_are_strictly_above():
  told = lambda scores, **kwargs: sts.paraphrases(np.asarray(scores), **kwargs).tolist()
  assert told([0.0, 3.9, 4.0, 5.0]) == [False, False, True, True]
  # SICK-R's scores begin at 1: four fifths of 5 all the same.
  assert told([1.0, 3.9, 4.0, 5.0]) == [False, False, True, True]
  # From -5 to -1 the upper fifth begins at -1.8, from -1 to 1 at 0.6.
  assert told([-5.0, -2.0, -1.5, -1.0]) == [False, False, True, True]
  assert told([-1.0, 0.5, 0.7, 1.0]) == [False, False, True, True]
  assert told([-3.0, -3.0]) == [True, True]
  assert told([3.9, 4.0, 4.1], strictly_above=4.0) == [False, False, True]


def test_what_alignment_and_uniformity_cannot_be_taken_of_is_no_nan():
  one = np.ones((1, 3))
  assert sts.alignment(one, one, np.asarray([3.0]), strictly_above=4.0) is None
  assert sts.uniformity(one) == 0.0
  # Equal rows lie on one point too: exp(0) = 1.
  assert sts.uniformity(np.ones((4, 3))) == pytest.approx(0.0)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_cosines_and_distances_do_not_depend_on_length(scale):
  first, second = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
  long = (first * scale).astype(np.float32), (second * scale).astype(np.float32)
  scores = np.arange(6.0)
  np.testing.assert_allclose(
    sts.paired_cosine(*long), sts.paired_cosine(first, second), atol=1e-6
  )
  expected = sts.alignment(first, second, scores), sts.uniformity(first)
  assert sts.alignment(*long, scores) == pytest.approx(expected[0], rel=1e-5)
  assert sts.uniformity(long[0]) == pytest.approx(expected[1], rel=1e-5)


def test_uniformity_is_the_log_mean_potential_of_all_pairs():
  # Squared distances 2, 2 and 4 on the unit circle.
  embeddings = np.asarray([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])
  expected = np.log((2 * np.exp(-4.0) + np.exp(-8.0)) / 3)
  assert sts.uniformity(embeddings) == pytest.approx(expected)
  many = np.random.default_rng(0).normal(size=(1500, 4))
  unit = many / np.linalg.norm(many, axis=1, keepdims=True)
  squared = ((unit[:, None] - unit[None]) ** 2).sum(-1)[np.triu_indices(1500, 1)]
  assert sts.uniformity(many) == pytest.approx(np.log(np.mean(np.exp(-2 * squared))))


# This is SentEval's own layout, as its get_transfer_data.bash leaves it.

SUBSETS = {
  "STS12": ["MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"],
  "STS13": ["FNWN", "headlines", "OnWN"],
  "STS14": ["deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"],
  "STS15": ["answers-forums", "answers-students", "belief", "headlines", "images"],
  "STS16": [
    *("answer-answer", "headlines", "plagiarism", "postediting", "question-question")
  ],
}


def write_senteval(data, tables):
  """Writes the same pairs in SentEval's layout under data and as TSVs in tables."""
  rng = np.random.default_rng(0)
  draw = lambda: (float(rng.integers(0, 6)), *map(str, rng.integers(0, 180, 2)))
  folder = data / "downstream"
  for year, subsets in SUBSETS.items():
    lines = []
    for subset in subsets:
      pairs = [draw() for _ in range(4)]
      path = folder / "STS" / f"{year}-en-test"
      # The second pair has no score.
      scores = [str(score) for score, _, _ in pairs]
      gold = "\n".join([scores[0], "", *scores[2:]]) + "\n"
      write(path / f"STS.gs.{subset}.txt", gold)
      both = "".join(f"{first}\t{second}\n" for _, first, second in pairs)
      write(path / f"STS.input.{subset}.txt", both)
      lines += [f"{s}\t{a}\t{b}\t{subset}\n" for s, a, b in pairs[:1] + pairs[2:]]
    write(tables / f"{year}-test.tsv", "".join(lines))
  names = {"train": "train", "dev": "trial", "test": "test_annotated"}
  for split, name in names.items():
    pairs = [draw() for _ in range(5)]
    lines = [f"genre\tfile\t2012\t1\t{s}\t{a}\t{b}\n" for s, a, b in pairs]
    write(folder / "STS" / "STSBenchmark" / f"sts-{split}.csv", "".join(lines))
    write(
      tables / f"STSB-{split}.tsv", "".join(f"{s}\t{a}\t{b}\n" for s, a, b in pairs)
    )
    pairs = [draw() for _ in range(6)]
    lines = [
      "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    ]
    lines += [f"1\t{a}\t{b}\t{s}\tNEUTRAL\n" for s, a, b in pairs]
    write(folder / "SICK" / f"SICK_{name}.txt", "".join(lines))
    write(
      tables / f"SICKR-{split}.tsv", "".join(f"{s}\t{a}\t{b}\n" for s, a, b in pairs)
    )


@pytest.mark.parametrize("inside", ["", "downstream", "downstream/STS"])
def test_sentevals_own_folder_scores_as_the_same_pairs_as_tsvs(inside, tmp_path):
  write_senteval(tmp_path / "data", tmp_path / "tables")
  ours = sts_sets.read_sts(str(tmp_path / "tables"))
  theirs = sts_sets.read_sts(str(tmp_path / "data" / inside))
  assert list(theirs) == list(ours) and len(ours) == 11
  # Three of each subset's four pairs have a score.
  assert len(theirs["STS14-test"].scores) == 3 * 6
  expected = sts.score_sts(one_hot_angles, ours)
  assert sts.score_sts(one_hot_angles, theirs) == expected


@pytest.mark.parametrize(
  "file, line, message",
  [
    ("STS/STS12-en-test/STS.gs.MSRpar.txt", "x", r"MSRpar\.txt:5: expected a score"),
    ("STS/STS12-en-test/STS.gs.MSRpar.txt", "1", r"has 5 lines and .* 4"),
    ("STS/STS13-en-test/STS.input.FNWN.txt", "a", r"FNWN\.txt:5: expected two"),
    ("STS/STSBenchmark/sts-dev.csv", "a\tb", r"sts-dev\.csv:6: expected genre"),
    ("SICK/SICK_trial.txt", "1\ta\tb\tNEUTRAL", r"SICK_trial\.txt:8: expected pair_ID"),
  ],
)
def test_a_line_that_senteval_would_not_have_is_named(file, line, message, tmp_path):
  write_senteval(tmp_path / "data", tmp_path / "tables")
  path = tmp_path / "data" / "downstream" / file
  path.write_text(path.read_text() + line + "\n")
  if line in ("x", "a"):  # The other file of the two gets a fifth line, too.
    other = "input" if ".gs." in file else "gs"
    other = path.with_name(path.name.replace(path.name.split(".")[1], other))
    other.write_text(other.read_text() + ("1\n" if other.match("*.gs.*") else "a\tb\n"))
  with pytest.raises(UserError, match=message):
    sts_sets.read_sts(str(tmp_path / "data"))


def test_a_file_that_senteval_lacks_is_named(tmp_path):
  write_senteval(tmp_path / "data", tmp_path / "tables")
  (tmp_path / "data/downstream/STS/STS16-en-test/STS.gs.headlines.txt").unlink()
  with pytest.raises(UserError, match=r"cannot read .*STS\.gs\.headlines\.txt"):
    sts_sets.read_sts(str(tmp_path / "data"))


def test_one_tsv_is_a_set_named_by_its_stem(tmp_path):
  write(tmp_path / "mine.tsv", "1\ta\tb\n2\ta\tc\n")
  assert list(sts_sets.read_sts(str(tmp_path / "mine.tsv"))) == ["mine"]


def test_mtebs_sickr_is_all_three_splits_and_the_other_sets_stay(tmp_path):
  write_senteval(tmp_path / "data", tmp_path / "tables")
  sets = sts_sets.read_sts(str(tmp_path / "tables"))
  all_of = sts_sets.with_all_of_sickr(sets)
  assert len(all_of["SICKR-all"].scores) == 3 * 6
  assert all_of.keys() - sets.keys() == {"SICKR-all"}
  assert sets.keys() - all_of.keys() == {"SICKR-test"}
  del sets["SICKR-dev"]
  with pytest.raises(UserError, match="SICKR-dev is not there"):
    sts_sets.with_all_of_sickr(sets)


def test_where_all_seven_are_there_the_average_is_of_these():
  seven = list(sts_sets.SEVEN_TEST_SETS)
  assert sts_sets.averaged_sets(["mine", *seven, "STSB-dev"]) == seven
  mteb = [*seven[:-1], "SICKR-all"]
  assert sts_sets.averaged_sets([*mteb, "mine"]) == mteb

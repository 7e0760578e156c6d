"""Transfer tasks: reading them, and logistic regression on toy embeddings."""

import gzip

import numpy as np
import pytest

from dcse_jax.eval import transfer
from dcse_jax.eval import transfer_tasks
from dcse_jax.runtime.errors import UserError

sklearn = pytest.importorskip("sklearn", reason="needs dcse_jax[eval]")


def write(path, text, encoding="utf-8"):
  path.parent.mkdir(parents=True, exist_ok=True)
  content = text.encode(encoding)
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def two_numbers(sentences):
  """Embeds "3 -1" as the point (3, -1)."""
  return np.asarray([s.split()[:2] for s in sentences], np.float32)


def points(seed, num, separable=True):
  """Makes sentences for `two_numbers`, labelled by the first's sign, or at random."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(num, 2))
  if separable:
    x[:, 0] += np.sign(x[:, 0])  # A gap of two around the border.
  y = x[:, 0] > 0 if separable else rng.random(num) < 0.5
  labels = np.where(y, "1", "0")
  return transfer_tasks.Split(labels, ([f"{a} {b}" for a, b in x],))


def task_of(splits, separable=True, num=200):
  return {split: points(i, num, separable) for i, split in enumerate(splits)}


SPLITS = [("train",), ("train", "test"), ("train", "dev", "test")]


@pytest.mark.parametrize("dev", [False, True])
@pytest.mark.parametrize("splits", SPLITS)
def test_what_a_line_separates_scores_100(splits, dev):
  scores = transfer.score_task(two_numbers, task_of(splits), dev=dev)
  assert scores == {"accuracy": 100.0}


@pytest.mark.parametrize("splits", SPLITS)
def test_labels_by_chance_score_half(splits):
  scores = transfer.score_task(two_numbers, task_of(splits, separable=False, num=400))
  # Three standard deviations of 400 throws of a coin: 7.5.
  assert scores["accuracy"] == pytest.approx(50, abs=7.5)


def test_the_length_of_embeddings_makes_no_difference():
  task = task_of(("train", "test"), separable=False)
  long = transfer.score_task(lambda s: 1000 * two_numbers(s), task)
  assert long == transfer.score_task(two_numbers, task)


def test_numbers_that_vary_by_rounding_alone_make_no_difference():
  def embed(sentences):
    noise = np.random.default_rng(0).normal(size=(len(sentences), 5))
    return np.concatenate([two_numbers(sentences), 1e-8 * noise], axis=1)

  task = task_of(("train", "test"), separable=False)
  scores = transfer.score_task(embed, task)
  assert scores == transfer.score_task(two_numbers, task)


def test_a_collapsed_encoder_scores_as_the_commoner_label():
  labels = np.asarray(["1"] * 30 + ["0"] * 20)
  rows = transfer_tasks.Split(labels, ([str(i) for i in range(50)],))
  scores = transfer.score_task(lambda s: np.ones((len(s), 2)), {"train": rows})
  assert scores["accuracy"] == pytest.approx(60)


def test_dev_embeds_no_sentence_of_the_test_set():
  task = task_of(("train", "dev", "test"))
  tested = set(task["test"].sentences[0])

  def embed(sentences):
    assert not tested & set(sentences)
    return two_numbers(sentences)

  transfer.score_task(embed, task, dev=True)


def test_pairs_are_told_by_their_difference_and_f1_is_of_label_1():
  # A pair is alike if it is twice the same point; 30 pairs of 40 in test are.
  def pairs(seed, alike, unlike):
    rng = np.random.default_rng(seed)
    same = [f"{a} {b}" for a, b in rng.normal(size=(alike + unlike, 2))]
    far = [f"{float(s.split()[0]) + 5} 0" for s in same[alike:]]
    labels = np.asarray(["1"] * alike + ["0"] * unlike)
    return transfer_tasks.Split(labels, (same, same[:alike] + far))

  task = {"train": pairs(0, 60, 60), "test": pairs(1, 30, 10)}
  assert transfer.score_task(two_numbers, task) == {"accuracy": 100.0, "f1": 100.0}
  # With five of the thirty called 0 in the gold: 5 of 30 calls wrong, none missed.
  gold = task["test"].labels.copy()
  gold[:5] = "0"
  task["test"] = transfer_tasks.Split(gold, task["test"].sentences)
  scores = transfer.score_task(two_numbers, task)
  assert scores["accuracy"] == pytest.approx(100 * 35 / 40)
  precision, recall = 25 / 30, 1.0
  f1 = 2 * precision * recall / (precision + recall)
  assert scores["f1"] == pytest.approx(100 * f1)


def tsv(split):
  rows = zip(split.labels, *split.sentences)
  return "".join("\t".join(row) + "\n" for row in rows)


def test_sentevals_own_folder_gives_the_tasks_of_the_tsvs(tmp_path):
  data, tables = tmp_path / "data" / "downstream", tmp_path / "tables"
  positive = [f"good {i}" for i in range(12)] + ["caf\xe9"]
  negative = [f"bad {i}" for i in range(12)] + [""]
  files = {
    "MR": ("rt-polarity.pos", "rt-polarity.neg"),
    "CR": ("custrev.pos", "custrev.neg"),
    "SUBJ": ("subj.objective", "subj.subjective"),
    "MPQA": ("mpqa.pos", "mpqa.neg"),
  }
  for name, (of_1, of_0) in files.items():
    # A sentence that is not UTF-8 is Latin-1; an empty one is a full stop.
    write(data / name / of_1, "\n".join(positive) + "\n", "latin-1")
    write(data / name / of_0, "\n".join(negative) + "\n")
    rows = [("1", s) for s in positive] + [("0", s or ".") for s in negative]
    write(tables / f"{name}.tsv.gz", "".join(f"{y}\t{s}\n" for y, s in rows))
  for split in ("train", "dev", "test"):
    rows = [(str(i % 2), f"{split} {i}") for i in range(4)]
    lines = "".join(f"{s}\t{y}\n" for y, s in rows)
    write(data / "SST" / "binary" / f"sentiment-{split}", lines)
    write(tables / f"SST2-{split}.tsv.gz", "".join(f"{y}\t{s}\n" for y, s in rows))
  for split, file in (("train", "train_5500.label"), ("test", "TREC_10.label")):
    rows = [(y, f"What : {split} {i} ?") for i in range(10) for y in ("HUM", "NUM")]
    lines = "".join(f"{y}:fine {s}\n" for y, s in rows)
    write(data / "TREC" / file, lines)
    write(tables / f"TREC-{split}.tsv.gz", "".join(f"{y}\t{s}\n" for y, s in rows))
  for split in ("train", "test"):
    rows = [(str(i % 2), f'a "{split} {i}', f"b {i}") for i in range(20)]
    lines = ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"]
    lines += [f"{y}\t1\t2\t{a}\t{b}\n" for y, a, b in rows]
    write(data / "MRPC" / f"msr_paraphrase_{split}.txt", "".join(lines))
    rows = "".join(f"{y}\t{a}\t{b}\n" for y, a, b in rows)
    write(tables / f"MRPC-{split}.tsv.gz", rows)
  expected = transfer_tasks.read_transfer(str(tables))
  assert tuple(expected) == transfer_tasks.TASKS
  assert expected["MR"]["train"].sentences[0][-1] == "."
  for folder in (tmp_path / "data", data):
    tasks = transfer_tasks.read_transfer(str(folder))
    assert tuple(tasks) == transfer_tasks.TASKS
    for name, task in tasks.items():
      assert set(task) == set(expected[name])
      for split, rows in task.items():
        assert tsv(rows) == tsv(expected[name][split]), (name, split)


def test_sentevals_own_files_are_latin_1_even_where_they_are_utf8(tmp_path):
  # senteval/binary.py and trec.py open them so; 0x85 is another line end of Latin-1.
  few = "".join(f"row {i}\n" for i in range(10))
  write(tmp_path / "CR" / "custrev.pos", few + "caf\xe9\n")
  write(tmp_path / "CR" / "custrev.neg", few + "one\x85two\n", "latin-1")
  questions = "".join(f"HUM:x Who {i} ?\nNUM:x How {i} ?\n" for i in range(10))
  for file in ("train_5500.label", "TREC_10.label"):
    write(tmp_path / "TREC" / file, questions + "NUM:x caf\xe9 ?\n")
  tasks = transfer_tasks.read_transfer(str(tmp_path))
  (cr,), (trec,) = tasks["CR"]["train"].sentences, tasks["TREC"]["test"].sentences
  assert cr[10] == "caf\xc3\xa9" and cr[-2:] == ["one", "two"]
  assert trec[-1] == "caf\xc3\xa9 ?"
  # Our own tables are UTF-8.
  write(tmp_path / "CR.tsv", "1\tcaf\xe9\n" * 10 + "0\tx\n" * 10)
  assert (
    transfer_tasks.read_transfer(str(tmp_path))["CR"]["train"].sentences[0][0]
    == "caf\xe9"
  )


ROWS = "".join(f"{y}\ts {i}\n" for i in range(10) for y in "01")


@pytest.mark.parametrize(
  "files, message",
  [
    ({}, "holds no .tsv"),
    ({"X.tsv": ROWS + "1 no tab\n"}, r"X\.tsv:21: expected a label"),
    ({"X.tsv": ROWS + "1\ta\tb\n"}, r"X\.tsv:21: expected a label"),
    ({"X.tsv": "1\ta\n"}, r"one label, '1'"),
    ({"X.tsv": ROWS + "2\ta\n"}, r"too few rows \(1\) with label '2': 10-fold"),
    ({"X.tsv": ROWS, "X-train.tsv": ROWS}, r"another file for train"),
    ({"X-train.tsv": ROWS, "X-dev.tsv": ROWS}, r"only .*dev.*train and test"),
    ({"X-test.tsv": ROWS}, r"only test"),
    ({"X-train.tsv": ROWS, "X-test.tsv": "3\ta\n"}, r"test has label '3'"),
    ({"X-train.tsv": ROWS, "X-test.tsv": "1\ta\tb\n"}, r"sentences a row"),
  ],
)
def test_a_task_of_another_form_is_named(files, message, tmp_path):
  for name, text in files.items():
    write(tmp_path / name, text)
  with pytest.raises(UserError, match=message):
    transfer_tasks.read_transfer(str(tmp_path))


def test_a_file_that_is_not_gzip_is_named(tmp_path):
  (tmp_path / "X.tsv.gz").write_bytes(b"1\ta\n")
  with pytest.raises(UserError, match=r"cannot read .*X\.tsv\.gz"):
    transfer_tasks.read_transfer(str(tmp_path))

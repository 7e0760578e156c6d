"""Hard negatives: those that sentence-transformers mines, and tables of them."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.data import table_writer
from dcse_jax.data import text as text_lib
from dcse_jax.embed import bridge
from dcse_jax.embed import candidates
from dcse_jax.embed import mined_file
from dcse_jax.embed import mining
from dcse_jax.embed import row_file
from dcse_jax.embed import score_file
from dcse_jax.model import inference
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes

# Some anchors have two positives, and some positives two anchors.
ANCHORS = [*models.SENTENCES[:12], *models.SENTENCES[:4], models.SENTENCES[5]]
POSITIVES = [f"{anchor} the" for anchor in ANCHORS[:12]]
POSITIVES += [f"mountains {anchor} in" for anchor in ANCHORS[:4]] + POSITIVES[:1]
CORPUS = models.SENTENCES[60:90]
TRIPLETS = mined_file.Table("triplet", 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Two models and a cross-encoder, tiny and random."""
  import transformers

  path = tmp_path_factory.mktemp("m")
  for seed, name in enumerate(("model", "second")):
    models.write_tiny_folder(path / name, seed, num_layers=1)
  tokenizer = models.tiny_model(0).tokenizer
  transformers.set_seed(0)
  config = transformers.BertConfig(
    vocab_size=len(tokenizer),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    num_labels=1,
    initializer_range=0.5,
  )
  cross = transformers.BertForSequenceClassification(config)
  cross.save_pretrained(path / "cross")
  tokenizer.save_pretrained(path / "cross")
  return path


@pytest.fixture(scope="module")
def encoder(folders):
  return SentenceEncoder(str(folders / "model"))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
  """The table that most tests write again: what its folder keeps, they share."""
  return tmp_path_factory.mktemp("o") / "mined.jsonl"


def mine(encoder, output, pairs=(ANCHORS, POSITIVES, CORPUS), **kwargs):
  """Mines; returns the report and the values of each row."""
  kwargs = {"table": TRIPLETS} | kwargs
  report = mined_file.mine_file(encoder, mining.group(*pairs), output, **kwargs)
  return report, [tuple(row.values()) for row in models.read_jsonl(output)]


@pytest.mark.parametrize(
  "guards, scorer, seed",
  [
    ({}, None, None),
    ({"range_min": 3, "range_max": 9}, None, 5),
    ({"absolute_margin": 0.008, "min_score": 0.98}, None, None),
    ({"relative_margin": 0.006, "max_score": 0.989, "range_min": 1}, None, None),
    ({"relative_margin": 0.006}, None, 7),
    ({"absolute_margin": 0.004, "range_min": 1}, "second", None),
    ({"absolute_margin": 0.02, "max_score": 0.2}, "cross", 3),
  ],
  ids=str,
)
def test_negatives_are_those_that_sentence_transformers_mines(
  folders, encoder, output, guards, scorer, seed
):
  datasets = pytest.importorskip("datasets", reason="needs datasets")
  from sentence_transformers import CrossEncoder
  from sentence_transformers import SentenceTransformer
  from sentence_transformers.util import mine_hard_negatives

  class Second:
    """A bi-encoder that answers as a cross-encoder does."""

    def predict(self, pairs, convert_to_tensor, **_):
      texts = (second.encode(x, convert_to_tensor=True) for x in zip(*pairs))
      return second.similarity_pairwise(*texts)

  model, second = (
    SentenceTransformer(str(folders / name), device="cpu")
    for name in ("model", "second")
  )
  cross = {"second": Second, "cross": lambda: CrossEncoder(str(folders / "cross"))}
  random.seed(seed)
  theirs = mine_hard_negatives(
    datasets.Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES}),
    model,
    corpus=CORPUS,
    cross_encoder=cross[scorer]() if scorer else None,
    num_negatives=2,
    sampling_strategy="top" if seed is None else "random",
    output_scores=True,
    verbose=False,
    **guards,
  )
  pairs = mining.group(ANCHORS, POSITIVES, CORPUS)
  prompts = {role: {"prompt_name": role} for role in ("query", "document")}
  make = {
    None: None,
    "second": lambda folder: candidates.BiEncoder(
      folder, SentenceEncoder(str(folders / "second")), pairs, prompts, batch_size=64
    ),
    "cross": lambda folder: candidates.CrossScorer(
      bridge.CrossEncoder(str(folders / "cross"), batch_size=32), pairs
    ),
  }[scorer]
  report, found = mine(
    encoder,
    output,
    table=mined_file.Table("triplet", 2, scores=True),
    guards=mining.Guards(**guards),
    seed=seed,
    make_scorer=make,
  )
  expected = sorted((*row.values(),) for row in theirs)
  assert expected and sorted(row[:3] for row in found) == [row[:3] for row in expected]
  np.testing.assert_allclose(
    [row[3:] for row in sorted(found)], [row[3] for row in expected], atol=1e-5
  )
  assert report.rows == len(found)
  assert all(report.left_out.values())
  assert set(report.left_out) == set(guards) - {"range_min", "range_max"}


def test_an_anchor_and_its_positives_are_never_its_negatives(encoder, tmp_path):
  pairs = ["a b", "a b", "c"], ["a", "b", "a b"]
  mined = lambda number, seed=None: mine(
    encoder,
    tmp_path / "mined.jsonl",
    pairs,
    table=mined_file.Table("triplet", number),
    seed=seed,
  )
  report, found = mined(2)
  assert set(found) == {("c", "a b", "a"), ("c", "a b", "b")}
  # The other anchor has the two documents as positives, and is the third itself.
  assert (report.pairs, report.short, report.without) == (3, 2, 2)
  assert {mined(1, seed)[1][0][2] for seed in range(20)} == {"a", "b"}
  with pytest.raises(UserError, match="num_negatives=3, and there are 3 documents"):
    mined(3)
  with pytest.raises(UserError, match="range_max=2 leave no room for num_negatives=3"):
    mining.Guards(range_max=2).depth(3, 1)


def test_guards_that_leave_nothing_are_counted_in_one_line_and_write_nothing(
  encoder, tmp_path
):
  output = tmp_path / "mined.jsonl"
  with pytest.raises(UserError) as error:
    mine(encoder, output, guards=mining.Guards(max_score=-1.0))
  assert "no pair has any negative (max_score left out " in str(error.value)
  # There are 12 anchors, four with two positives and one with another's.
  assert "17 of 17 (100.0%) pairs have fewer" in str(error.value)
  assert not output.exists()


def test_each_form_of_table_holds_the_same_negatives_and_training_reads_it(
  encoder, output, tmp_path
):
  table = mined_file.Table("candidates", 2)
  _, scored = mine(encoder, output, table=table, guards=mining.Guards(max_score=1.0))
  own = [
    positive for anchor, positive in zip(ANCHORS, POSITIVES) if anchor == ANCHORS[0]
  ]
  scores = sorted(
    row[2] for row in scored if row[0] == ANCHORS[0] and row[1] not in own
  )
  # The first anchor keeps one negative.
  guards = mining.Guards(max_score=(scores[0] + scores[1]) / 2)
  pairs = mining.group(ANCHORS, POSITIVES, CORPUS)
  table = lambda form: mined_file.Table(form, 2, scores=True)
  report, triplets = mine(encoder, output, table=table("triplet"), guards=guards)
  assert report.pairs > report.short > report.without
  expected: dict = {}
  for anchor, positive, negative, score, other in triplets:
    found = expected.setdefault((anchor, positive), ([], [score]))
    found[0].append(negative)
    found[1].append(other)
  path = tmp_path / "mined.parquet"
  forms = {
    "n-tuple": ("negative_1", "negative_2", "negative_1_score", "negative_2_score"),
    "list": ("negatives", "negative_scores"),
  }
  for form, names in forms.items():
    mined_file.mine_file(encoder, pairs, path, table=table(form), guards=guards)
    assert list(pq.read_schema(path).names) == list(table(form).columns)
    names = names[: len(names) // 2], names[len(names) // 2 :]
    text = text_lib.read_text(
      str(path), ("anchor", "positive", *names[0]), ("positive_score", *names[1])
    )
    rows = {
      row[:2]: ([x for x in row[2:] if x], [float(x) for x in scores if x])
      for row, scores in zip(zip(*text.columns), text.scores)
    }
    assert list(rows) == list(expected)
    for pair, (negatives, scores) in expected.items():
      assert rows[pair][0] == negatives
      np.testing.assert_allclose(rows[pair][1], scores, rtol=1e-6)
  with pytest.raises(UserError, match=r"a\.tsv: a \.tsv holds no lists"):
    table_writer.check_output("a.tsv", mined_file.Table("list").columns)
  with pytest.raises(UserError, match=r"a\.txt: name a table that ends in \.tsv"):
    table_writer.check_output("a.txt", mined_file.Table().columns)


def test_scores_of_another_program_are_taken_for_the_models_own(encoder, output):
  guards = mining.Guards(relative_margin=0.006)
  _, expected = mine(encoder, output, guards=guards)
  _, scored = mine(
    encoder, output, table=mined_file.Table("candidates", 2), guards=guards
  )
  pairs = mining.group(ANCHORS, POSITIVES, CORPUS)
  assert len({row[:2] for row in scored}) == len(scored)
  mined = lambda rows: mine(
    encoder,
    output,
    guards=guards,
    make_scorer=lambda folder: score_file.ScoreFile("s", rows, pairs),
  )
  report, found = mined(scored)
  assert found == expected and "unscored" not in report.left_out
  # Without the score of its positive an anchor has no margin, and no negative.
  first = ANCHORS[0]
  report, found = mined([row for row in scored if row[0] != first or row[1] in CORPUS])
  assert found == [row for row in expected if row[0] != first]
  assert report.left_out["unscored"] == sum(row[0] == first for row in scored) - 2
  with pytest.raises(UserError, match="s: none of its 1 rows is of an anchor and"):
    mined([("no", "body", 1.0)])


def test_a_search_by_faiss_finds_the_same(encoder, tmp_path):
  pytest.importorskip("faiss", reason="needs faiss-cpu")
  exact, near = (
    mine(encoder, tmp_path / f"{index}.jsonl", index=index)[1]
    for index in ("exact", "faiss")
  )
  assert near == exact


def test_a_command_that_is_cut_off_goes_on_to_the_same_bytes(
  encoder, tmp_path, monkeypatch
):
  monkeypatch.setattr(inference, "CHUNK", 16)
  monkeypatch.setattr(candidates, "_SEARCHED", 4)
  _, whole = mine(encoder, tmp_path / "whole.jsonl")
  write_json, written, stops = row_file.files.write_json, [], [4, 8]

  def cut(path, content):
    write_json(path, content)
    written.append(content.get("rows"))
    if len(written) in stops:
      raise KeyboardInterrupt

  monkeypatch.setattr(row_file.files, "write_json", cut)
  # After the second part of the documents, and after the second of the search.
  for _ in stops:
    with pytest.raises(KeyboardInterrupt):
      mine(encoder, tmp_path / "cut.jsonl")
  assert not (tmp_path / "cut.jsonl").exists()
  _, found = mine(encoder, tmp_path / "cut.jsonl")
  assert found == whole
  # Nothing was made twice: 12 anchors, 46 documents, neighbours of 12 anchors.
  assert [rows for rows in written if rows] == [12, 16, 32, 46, 4, 8, 12]
  kept = {
    run: {p.name: p.read_bytes() for p in (tmp_path / f"{run}.jsonl.mining").iterdir()}
    for run in ("cut", "whole")
  }
  assert kept["cut"] == kept["whole"]


def test_a_damaged_file_is_made_anew(encoder, tmp_path):
  output = tmp_path / "mined.jsonl"
  _, whole = mine(encoder, output)
  for path in (tmp_path / "mined.jsonl.mining").glob("*.npy"):
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
  assert mine(encoder, output)[1] == whole


def test_the_command_writes_what_trains_and_says_what_was_left_out(
  folders, encoder, tmp_path
):
  rows = ["a\tb", *("\t".join(pair) for pair in zip(ANCHORS, POSITIVES))]
  (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
  lines = [json.dumps({"body": text}) for text in CORPUS]
  (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
  output = str(tmp_path / "triplets.tsv")
  command = (
    *("--model", str(folders / "model"), "--output", output),
    *("--text", str(tmp_path / "pairs.tsv"), "--columns", "a,b"),
    *("--corpus", str(tmp_path / "corpus.jsonl"), "--corpus_column", "body"),
  )
  done = processes.run("dcse_jax.mine", *command, "--max_score", "0.99")
  assert done.returncode == 0, done.stderr
  report, expected = mine(
    encoder,
    tmp_path / "expected.jsonl",
    table=mined_file.Table(),
    guards=mining.Guards(max_score=0.99),
  )
  names = ("anchor", "positive", "negative")
  assert list(zip(*text_lib.read_text(output, names).columns)) == expected
  assert "16 of 16 positives are not in" in done.stdout
  number = report.left_out["max_score"]
  assert f"max_score left out {number:,} of {report.candidates:,}" in done.stdout
  assert f"{len(expected)} rows written to" in done.stdout
  for more, said in (
    (("--second_model", "b"), "--second_model scores for bounds, and there is none"),
  ):
    done = processes.run("dcse_jax.mine", *command, *more)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1

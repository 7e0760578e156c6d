"""An evaluator: how well a model finds the documents that answer queries.

The measures are trec_eval's own: pytrec_eval, which MTEB and BEIR score with, too, is
that program behind a Python interface, a compiled file of half a megabyte. Among equal
scores trec_eval has the higher document id first, and so has what is here.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import re
from typing import Any, Self

import numpy as np

from dcse_jax.embed.precision import has_ranges
from dcse_jax.embed.precision import quantize
from dcse_jax.embed.precision import ranges_of
from dcse_jax.embed.ranking import Ranking
from dcse_jax.eval import retrieval_sets
from dcse_jax.eval.evaluator import Evaluator
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.evaluator import Subject
from dcse_jax.eval.evaluator import draw_counts
from dcse_jax.runtime.errors import UserError

# A query's documents are ranked to this depth, as BEIR's are.
_DEPTH = 1000
# What trec_eval calls each; the reciprocal rank is of rankings cut at ten.
_MEASURES = {
  "nDCG@10": "ndcg_cut_10",
  "MRR@10": "recip_rank",
  "MAP": "map",
  "recall@100": "recall_100",
}
# Queries handed to trec_eval at a time: its form of a ranking takes much memory.
_QUERIES = 1024

# Anserini's settings, which BEIR's figures of BM25 have.
_BM25 = {"k1": 0.9, "b": 0.4}
_WORD = re.compile(r"[^\W_]+")


def measure(
  collection: retrieval_sets.Collection, scores: np.ndarray, rows: np.ndarray
) -> dict[str, np.ndarray]:
  """Measures a ranking, in percent, for each query with any judgement.

  Args:
    collection: has n queries.
    scores: those of the documents found for each query, [n, k]; -inf is none.
    rows: the documents' places in the corpus, [n, k].

  Returns:
    "nDCG@10", whose gain is the grade, "MRR@10", "MAP" over the documents found, and
    "recall@100", [n] each.

  References:
    Järvelin and Kekäläinen, 2002; trec_eval's ndcg_cut, recip_rank, map and recall.
  """
  import pytrec_eval

  names = list(collection.queries)
  number = {name: i for i, name in enumerate(names)}
  # A query for which nothing was found has no value, which is 0.
  measured = {name: np.zeros(len(names)) for name in _MEASURES}
  for start in range(0, len(names), _QUERIES):
    part = range(start, min(start + _QUERIES, len(names)))
    run = {names[i]: _ranking(collection.ids, scores[i], rows[i]) for i in part}
    first = {name: dict(ranking[:10]) for name, ranking in run.items()}
    judged = {name: collection.judgements[name] for name in run}
    for wanted, ranked in (
      ({"ndcg_cut.10", "map", "recall.100"}, {n: dict(r) for n, r in run.items()}),
      ({"recip_rank"}, first),
    ):
      found = pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(ranked)
      for query, values in found.items():
        for name, key in _MEASURES.items():
          if key in values:
            measured[name][number[query]] = 100.0 * values[key]
  return measured


def _ranking(
  ids: Sequence[str], scores: np.ndarray, rows: np.ndarray
) -> list[tuple[str, float]]:
  """Returns the documents found and their scores, in trec_eval's order."""
  found = zip(rows.tolist(), scores.tolist())
  pairs = [(ids[row], score) for row, score in found if score > -np.inf]
  return sorted(pairs, key=lambda pair: (pair[1], pair[0]), reverse=True)


def bm25(collection: retrieval_sets.Collection) -> tuple[np.ndarray, np.ndarray]:
  """Ranks the documents by BM25, as `Ranking.result` does by embeddings.

  Words are runs of letters and digits, in lower case; each word of a query counts
  once; k1 is 0.9 and b 0.4. There is no stemming and no list of stop words, which are
  a language's: docs/results.md has what English ones are worth.

  References:
    Robertson and Zaragoza, 2009; Lucene's form of it, by the library bm25s.
  """
  import bm25s

  logging.getLogger("bm25s").setLevel(logging.WARNING)
  words = lambda texts: [_WORD.findall(text.lower()) for text in texts]
  model = bm25s.BM25(**_BM25)
  model.index(words(collection.documents()), show_progress=False)
  depth = min(_DEPTH, len(collection.ids))
  queries = [list(dict.fromkeys(q)) for q in words(collection.queries.values())]
  found = model.retrieve(queries, k=depth, show_progress=False)
  # Documents without any word of the query are not found.
  scores = np.where(found.scores > 0, found.scores, -np.inf)
  return scores.astype(np.float32), found.documents


class _Rounded:
  """A ranking of ten documents, whose embeddings are rounded as they come.

  The first thousands of them are the sample that ranges are measured on.
  """

  def __init__(self, queries: np.ndarray, precision: str, dot: bool):
    self._precision, self._ranges = precision, None
    self._make = functools.partial(Ranking, queries, 10, precision=precision, dot=dot)
    self._ranking = None

  def add(self, block: np.ndarray) -> None:
    if self._ranking is None:
      if has_ranges(self._precision):
        self._ranges = ranges_of([block])
      self._ranking = self._make(ranges=self._ranges)
    self._ranking.add(quantize(block, self._precision, self._ranges))

  def result(self) -> tuple[np.ndarray, np.ndarray]:
    return self._ranking.result()


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluator):
  """Scores embeddings by nDCG@10 of an exact search in each collection.

  The search compares by dot product where the folder says so, else by cosine. The
  prompts "query" and "document" of the folder stand before queries and documents.

  Attributes:
    collections: what is searched, by name.
    options: whether BM25 stands beside, and in which precisions else to search.
  """

  kind = "retrieval"
  form = "DIR"
  about = (
    "Folder with corpus.jsonl, queries.jsonl and qrels/test.tsv (with --dev dev.tsv), "
    "as BEIR has it, or with three TSVs; or a folder of such folders. Repeats."
  )
  measure = "nDCG@10"
  unit = "queries"

  collections: dict[str, retrieval_sets.Collection]
  options: Options = Options()

  @classmethod
  def read(cls, places: Sequence[str], options: Options) -> Self:
    """Reads queries and judgements, and checks the documents."""
    for package, wanted in (("pytrec_eval", True), ("bm25s", options.bm25)):
      if wanted and importlib.util.find_spec(package) is None:
        raise UserError(f"retrieval needs {package}: pip install 'dcse_jax[eval]'")
    found: dict[str, retrieval_sets.Collection] = {}
    for place in places:
      more = retrieval_sets.read_collections(place, dev=options.dev)
      if both := found.keys() & more.keys():
        raise UserError(
          f"--retrieval {place}: there is a {min(both)} already; rename one"
        )
      found |= more
    return cls(found, options)

  @property
  def columns(self) -> tuple[str, ...]:
    """The names of the collections."""
    return tuple(self.collections)

  def score(self, subject: Subject) -> dict[str, float]:
    """Returns nDCG@10 of each collection, the mean, and the other measures."""
    return self.score_drawn(subject, draws=0)[0]

  def score_drawn(
    self, subject: Subject, draws: int
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the same, and nDCG@10 of queries that are drawn anew."""
    measured = lambda each: self._measured(each, subject)
    found = {name: measured(each) for name, each in self.collections.items()}
    scores = _columns(found, self.options.precisions)
    if not draws:
      return scores, {}
    drawn = {}
    for name, values in found.items():
      by_query = values[self.measure]
      drawn[name] = draw_counts(len(by_query), draws) @ by_query / len(by_query)
    return scores, {**drawn, "avg": np.mean(list(drawn.values()), axis=0)}

  def _measured(self, collection, subject: Subject) -> dict[str, np.ndarray]:
    """Measures a search in each precision, all with one embedding of each document."""
    model = subject.model
    dot = model.similarity == "dot" and not model.normalize
    queries = np.concatenate(list(subject.stream(collection.queries.values(), "query")))
    whole = Ranking(queries, _DEPTH, dot=dot)
    rounded = {each: _Rounded(queries, each, dot) for each in self.options.precisions}
    for block in subject.stream(collection.documents(), "document"):
      for ranking in (whole, *rounded.values()):
        ranking.add(block)
    measured = measure(collection, *whole.result())
    for precision, ranking in rounded.items():
      measured[precision] = measure(collection, *ranking.result())[self.measure]
    return measured

  def references(self) -> dict[str, dict[str, float]]:
    """Scores BM25, if the options say so."""
    if not self.options.bm25:
      return {}
    found = {
      name: measure(each, *bm25(each)) for name, each in self.collections.items()
    }
    return {"BM25": _columns(found)}

  def metric_name(self, column: str) -> str:
    """Returns the name of a measure in metrics.jsonl, such as eval/nq_ndcg_at_10."""
    name, _, measured = column.rpartition(" ")
    if measured not in _MEASURES:
      name, measured = column, self.measure
    return f"eval/{name}_{measured.replace('@', '_at_')}".lower()

  def metrics(self, scores: dict[str, float], subject: Subject) -> dict[str, float]:
    """Returns every measure of every collection."""
    del subject
    return {self.metric_name(c): value for c, value in scores.items() if c != "avg"}

  def digest(self, column: str) -> str:
    """Returns a digest of a collection, or of all together."""
    if column != "avg":
      return self.collections[column].digest
    digests: Iterable[str] = (each.digest for each in self.collections.values())
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()

  def describe(self) -> dict[str, Any]:
    """Returns the title, the collections in the mean, and their sizes."""
    split = "dev" if self.options.dev else "test"
    return {
      "unit": self.unit,
      "title": f"Retrieval: nDCG@10 x 100 of an exact search, {split} queries",
      "averaged": list(self.collections),
      "collections": {
        name: {"documents": len(each.ids), "queries": len(each.queries)}
        for name, each in self.collections.items()
      },
    }


def _columns(
  by_query: dict[str, dict[str, np.ndarray]], precisions: Sequence[str] = ()
) -> dict[str, float]:
  """Arranges measures by collection: nDCG@10 under its name, the rest beside.

  Behind them stands what each precision loses of nDCG@10, in the mean.
  """
  found = {
    name: {key: float(each.mean()) for key, each in values.items()}
    for name, values in by_query.items()
  }
  mean = lambda key: float(np.mean([values[key] for values in found.values()]))
  ndcg = {name: values[Retrieval.measure] for name, values in found.items()}
  others = {
    f"{name} {key}": value
    for name, values in found.items()
    for key, value in values.items()
    if key != Retrieval.measure
  }
  average = mean(Retrieval.measure)
  lost = {f"lost by {each}": average - mean(each) for each in precisions}
  return ndcg | {"avg": average} | others | lost

"""Clusters, neighbours and negatives of sentences within the whole text of a run.

Some terms ask for more than a sentence's tokens. What they ask for is computed for the
whole corpus with the model in training, kept in ROUND/SEED/corpus-KIND-STEP-*.npz so
that a resumed run has the same, and joined to batches by example id.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
import logging
import pathlib
from typing import Any
import warnings
import zipfile

import jax
import numpy as np
import scipy  # Its parts load at first use.

from dcse_jax.data.tokens import TokenCache
from dcse_jax.embed.neighbours import ExactIndex
from dcse_jax.model.vectors import unit_length
from dcse_jax.objective.mined import Miner
from dcse_jax.runtime import files
from dcse_jax.runtime import processes

_log = logging.getLogger(__name__)

# k-means learns from this many sentences for each centre, as faiss does.
_SAMPLE = 256
_ITERATIONS = 20
# Divides cosines in the softmax over centres that says how sure a cluster is.
_TEMPERATURE = 0.1
_BLOCK = 65_536


def cluster(
  embeddings: np.ndarray, num_clusters: Sequence[int], *, seed: int
) -> dict[str, np.ndarray]:
  """Clusters by cosine, at several granularities.

  Args:
    embeddings: [n, D].
    num_clusters: one number for each granularity, cut to the number of sentences.
    seed: draws the sample and the first centres.

  Returns:
    `clusters`, [n, G] int32, and `confidence`, [n, G] float32: the share of
    sentences whose softmax over centres is lower at their own, in [0, 1].
  """
  from sklearn.cluster import KMeans  # An extra.

  unit = unit_length(np.asarray(embeddings, np.float32))
  order = np.random.default_rng(seed).permutation(len(unit))
  clusters, confidence = [], []
  for wanted in num_clusters:
    size = min(wanted, len(unit))
    k_means = KMeans(size, n_init=1, max_iter=_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
      # Equal sentences leave centres empty, and scikit-learn warns of that.
      warnings.simplefilter("ignore")
      k_means.fit(unit[np.sort(order[: _SAMPLE * size])])
    centres = unit_length(k_means.cluster_centers_)
    place = np.empty(len(unit), np.int32)
    share = np.empty(len(unit), np.float32)
    for start in range(0, len(unit), _BLOCK):
      block = slice(start, start + _BLOCK)
      logits = unit[block] @ centres.T / _TEMPERATURE
      place[block] = logits.argmax(axis=1)
      share[block] = scipy.special.softmax(logits, axis=1).max(axis=1)
    rank = scipy.stats.rankdata(share, method="min") - 1
    clusters.append(place)
    confidence.append((rank / max(len(unit) - 1, 1)).astype(np.float32))
  return {
    "clusters": np.stack(clusters, axis=1),
    "confidence": np.stack(confidence, axis=1),
  }


def neighbours(embeddings: np.ndarray, number: int) -> dict[str, np.ndarray]:
  """Finds the nearest other sentences of each sentence, by cosine.

  Args:
    embeddings: [n, D].
    number: how many; all others if there are fewer.

  Returns:
    `neighbours`, [n, number] int32, the nearest first.
  """
  number = min(number, len(embeddings) - 1)
  index, found = ExactIndex(embeddings), []
  for start in range(0, len(embeddings), 1024):
    rows = np.arange(start, min(start + 1024, len(embeddings)))
    _, near = index.search(embeddings[rows], number + 1)
    # A sentence is its own nearest, or ties with another of the same embedding.
    is_itself = near == rows[:, None]
    is_itself[~is_itself.any(axis=1), -1] = True
    found.append(near[~is_itself].reshape(len(rows), number))
  return {"neighbours": np.concatenate(found).astype(np.int32)}


@dataclasses.dataclass
class Corpus:
  """Joins what the terms of a run ask for to its batches.

  Attributes:
    folder: the run's.
    tokens: the corpus.
    embed: takes encoder parameters, token ids of sentences, and a pooling or None for
      the model's own, and returns the sentences' embeddings, [n, D].
    settings: those of the terms that ask, by what they ask for: `clusters`,
      `retrieved`.
    share: brings what the first process wrote in the folder to all.
    seed: seeds all that is drawn.
    miner: finds hard negatives, if batches are to have any of these.
    groups: equal parts of the global batch, as `make_batches` has them.
    params_at: returns the encoder's parameters after a number of steps, or None where
      nothing holds them any more.
  """

  folder: pathlib.Path
  tokens: TokenCache
  embed: Callable[[Any, Sequence[np.ndarray], str | None], np.ndarray]
  settings: Mapping[str, Mapping[str, Any]]
  share: Callable[[], None]
  seed: int
  miner: Miner | None = None
  groups: int = 1
  params_at: Callable[[int], Any] = lambda step: None

  def __post_init__(self):
    self._known: dict[str, tuple[int, dict[str, np.ndarray]]] = {}

  def join(
    self, batch: dict[str, np.ndarray], step: int, params: Callable[[], Any]
  ) -> dict[str, np.ndarray]:
    """Returns a batch with what the terms ask for about its sentences.

    Args:
      batch: columns by name, among them `example_id`.
      step: how many steps were done before.
      params: returns the encoder's parameters as they are now.
    """
    rows, joined = batch["example_id"], dict(batch)
    if "clusters" in self.settings:
      every = self.settings["clusters"]["refresh_every"]
      sizes = self.settings["clusters"]["num_clusters"]
      make = lambda model: cluster(self._embed_all(model), sizes, seed=self.seed)
      known = self._at("clusters", step - step % every, step, params, make)
      joined |= {name: values[rows] for name, values in known.items()}
    if "retrieved" in self.settings:
      number = self.settings["retrieved"]["num_neighbours"]
      pooling = self.settings["retrieved"]["search_pooling"]
      pooling = None if pooling == "model" else pooling
      make = lambda model: neighbours(self._embed_all(model, pooling), number)
      near = self._at("retrieved", 0, step, params, make)["neighbours"]
      rng = np.random.default_rng([self.seed, step])
      drawn = rng.integers(near.shape[1], size=len(near))[rows]
      tokens = self.tokens.gather(near[rows, drawn])
      sentences = self.tokens.sentence_ids[:, 0].astype(np.int32)
      joined["sentence_id"] = sentences[rows]
      joined["retrieved_id"] = sentences[near[rows, drawn]]
      joined["retrieved_input_ids"] = tokens["input_ids"][:, 0]
      joined["retrieved_mask"] = tokens["attention_mask"][:, 0]
    if self.miner:
      every = self.miner.settings.every
      make = lambda model: self.miner.mine(lambda x: self.embed(model, x, None))
      known = self._at("mined", step - step % every, step, params, make)
      joined = self.miner.join(
        joined, known["negatives"], groups=self.groups, host=jax.process_index()
      )
    return joined

  def _embed_all(self, model: Any, pooling: str | None = None) -> np.ndarray:
    return self.embed(model, self.tokens.sentences(0, len(self.tokens)), pooling)

  def _about(self, kind: str) -> Any:
    """Returns what is made depends on besides the model, JSON."""
    if kind == "mined":
      return self.miner.about
    return [self.tokens.key, dict(self.settings[kind])]

  def _at(self, kind, step: int, now: int, params, make) -> dict[str, np.ndarray]:
    """Reads what was made at a step, or makes it."""
    if kind in self._known and self._known[kind][0] == step:
      return self._known[kind][1]
    about = json.dumps(self._about(kind), sort_keys=True)
    key = hashlib.blake2b(about.encode(), digest_size=4).hexdigest()
    path = self.folder / f"corpus-{kind}-{step}-{key}.npz"
    # The processes must agree: they do what follows together or not at all.
    if not processes.agree(_read(path) is not None):
      model = self.params_at(step) if now != step else None
      if now != step or path.exists():
        by = "as it is now" if model is None and now != step else "as it was"
        _log.warning("%s is missing or damaged: made anew, by the model %s", path, by)
      model = params() if model is None else model
      if processes.is_first():
        _write(path, make(model))
      self.share()
    self._known[kind] = (step, _read(path))
    return self._known[kind][1]


def _read(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  try:
    with np.load(path) as file:
      return {name: file[name] for name in file.files}
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    return None


def _write(path: pathlib.Path, values: dict[str, np.ndarray]) -> None:
  with files.whole(path) as beside, beside.open("wb") as file:
    np.savez(file, **values)

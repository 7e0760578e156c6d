"""Measures of the variance of embeddings and among teachers.

The first order of a sentence is the mean over dimensions of its unit-length
embedding; the second order of two sentences is their cosine, the logit that is
distilled. Sentences come in batches, as in training. The measures follow Xu et al.,
DistillCSE, 2023, sections 3 and 5 (arXiv:2310.13499).
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import scipy  # Its parts load at first use: two seconds of every start.

from dcse_jax.model.vectors import unit_length

# The paper correlates on the twelve sentences that a teacher finds most similar.
_TOP = 12
_BINS = 60


def first_order(batches: np.ndarray) -> np.ndarray:
  """Computes the mean of each unit-length embedding: [n, B, D] to [n * B]."""
  return unit_length(batches).mean(axis=-1).ravel()


def second_order(batches: np.ndarray) -> np.ndarray:
  """Computes cosines of each sentence with its batch: [n, B, D] to [n * B, B - 1]."""
  unit = unit_length(batches)
  cosine = unit @ unit.transpose(0, 2, 1)
  others = ~np.eye(unit.shape[1], dtype=bool)
  return cosine[:, others].reshape(-1, unit.shape[1] - 1)


def histograms(train: np.ndarray, dev: np.ndarray | None) -> dict[str, Any]:
  """Computes densities of both orders on training and on dev sentences.

  Args:
    train: embeddings of training sentences, [n, B, D].
    dev: those of dev sentences, or None.

  Returns:
    JSON: for "first_order" and "second_order" `edges`, [61], and the densities
    `train` and `dev`, [60] each, between these.
  """
  result = {}
  for name, order in (("first_order", first_order), ("second_order", second_order)):
    values = {"train": order(train).ravel()}
    if dev is not None:
      values["dev"] = order(dev).ravel()
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), _BINS)
    result[name] = {"edges": edges.tolist()}
    for split, numbers in values.items():
      density, _ = np.histogram(numbers, edges, density=True)
      result[name][split] = density.tolist()
  return result


def _spread(values: np.ndarray) -> dict[str, float]:
  """Computes mean std and mean differential entropy, of a Gaussian, over teachers."""
  std = np.maximum(values.std(axis=0, ddof=1), 1e-12)
  entropy = np.log(std) + 0.5 * math.log(2 * math.pi * math.e)
  return {
    "mean_std": float(std.mean()),
    "differential_entropy": float(entropy.mean()),
  }


def teacher_spread(embeddings: Sequence[np.ndarray]) -> dict[str, Any]:
  """Measures how much teachers differ on the same sentences.

  Args:
    embeddings: those of each of T > 1 teachers, [n, B, D_t].

  Returns:
    JSON: for "first_order" and "second_order" the `mean_std` and the
    `differential_entropy`, ln std + ln(2 pi e) / 2 in nats, over teachers, each
    a mean over values; and `top12_spearman`, [T, T] in percent: the rank correlation
    of the row's and the column's teacher on the twelve other sentences (or all, in
    small batches) that the row's finds most similar, a mean over sentences.
  """
  firsts = np.stack([first_order(e) for e in embeddings])
  seconds = np.stack([second_order(e) for e in embeddings])
  correlation = np.zeros((len(seconds), len(seconds)))
  for i, ours in enumerate(seconds):
    top = np.argsort(-ours, axis=1, kind="stable")[:, :_TOP]
    ranks = [
      scipy.stats.rankdata(np.take_along_axis(s, top, axis=1), axis=1) for s in seconds
    ]
    centred = [r - r.mean(axis=1, keepdims=True) for r in ranks]
    norms = [np.maximum(np.linalg.norm(c, axis=1), 1e-12) for c in centred]
    for j in range(len(seconds)):
      rho = np.sum(centred[i] * centred[j], axis=1) / (norms[i] * norms[j])
      correlation[i, j] = 100.0 * rho.mean()
  return {
    "first_order": _spread(firsts),
    "second_order": _spread(seconds),
    "top12_spearman": correlation.tolist(),
  }

"""Sparse training: weights that do little for alignment and uniformity become zero.

It follows An, Zhang and Song, SparseCSE, 2023 (arXiv:2311.03881). A weight's
contribution is |weight x gradient| of alignment plus uniformity, summed over some
batches: a first-order estimate of what removing it changes. The lowest share of the
elements of all the layers' matrices is masked, once, and the rest is trained. Our
choice, since the paper's is not public: the number of batches, and that embeddings,
biases and LayerNorms stay.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcse_jax import losses
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective

Params = Mapping[str, Any]

# How many batches weights are judged on before a sparse training.
_BATCHES = 32


def sparse(
  loss_fn: Objective,
  encoder: Params,
  batches: Iterable[Mapping[str, np.ndarray]],
  rng: jax.Array,
  share: float,
) -> Params:
  """Returns an encoder without the weights that do least on some batches.

  Args:
    loss_fn: a round's; its terms make no difference.
    encoder: its parameters.
    batches: tokens, on the host; the first few are read.
    rng: draws the dropout.
    share: the share of the layers' matrix elements that becomes zero, in [0, 1).
  """
  # A new projection is random, and would prefer weights at random.
  judge = dataclasses.replace(
    loss_fn,
    terms=losses.parse("alignment_uniformity"),
    stacks=(),
    pooling=pooling_lib.unprojected(loss_fn.pooling),
  )
  first = itertools.islice(batches, _BATCHES)
  return prune(encoder, contributions(judge, encoder, first, rng), share)


def contributions(
  loss_fn: Objective,
  encoder: Params,
  batches: Iterable[Mapping[str, np.ndarray]],
  rng: jax.Array,
) -> Any:
  """Sums |weight x gradient| over batches: what each weight does for a loss.

  Args:
    loss_fn: an objective of `losses.alignment_uniformity`.
    encoder: its parameters.
    batches: tokens, on the host.
    rng: draws the dropout.
  """
  params = loss_fn.init_params(encoder, rng)

  @jax.jit
  def one(params, batch, rng):
    gradient = jax.grad(lambda p: loss_fn(p, StepInputs(batch, rng))[0])(params)
    weigh = lambda p, g: jnp.abs(p * g)
    return jax.tree.map(weigh, params["encoder"], gradient["encoder"])

  total = None
  for i, batch in enumerate(batches):
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    here = one(params, batch, jax.random.fold_in(rng, i))
    total = here if total is None else jax.tree.map(jnp.add, total, here)
  return jax.device_get(total)


def prune(encoder: Params, scores: Any, share: float) -> Params:
  """Sets the elements of the layers' matrices with the lowest scores to zero.

  Args:
    encoder: its parameters.
    scores: the score of each element, from `contributions`.
    share: the share of these elements that becomes zero, in [0, 1).
  """
  kernels = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores["layers"])
    if _is_kernel(path)
  ]
  everything = np.concatenate([leaf.ravel() for leaf in kernels])
  number = int(share * len(everything))
  least = np.zeros(len(everything), bool)
  least[np.argpartition(everything, number)[:number]] = True
  masks = iter(np.split(least, np.cumsum([leaf.size for leaf in kernels])[:-1]))

  def mask(path, leaf):
    if not _is_kernel(path):
      return leaf
    return np.where(next(masks).reshape(leaf.shape), 0, leaf).astype(leaf.dtype)

  layers = jax.tree_util.tree_map_with_path(mask, encoder["layers"])
  return {**encoder, "layers": layers}


def keep_zeros() -> optax.GradientTransformation:
  """Makes a transformation that keeps matrix elements at zero that are exactly zero."""

  def update(updates, params):
    keep = lambda path, u, p: jnp.where(p == 0, 0, u) if _is_kernel(path) else u
    return jax.tree_util.tree_map_with_path(keep, updates, params)

  return optax.stateless(update)


def _is_kernel(path) -> bool:
  return path[-1].key == "kernel"

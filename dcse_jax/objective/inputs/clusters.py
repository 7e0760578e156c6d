"""Pseudo-labels of sentences, from clusters of the whole text."""

import importlib.util

import jax
import jax.numpy as jnp

from dcse_jax.objective.inputs.provider import Provider


class Clusters(Provider):
  """A sentence's clusters by granularity, and how sure they are, both [B, G].

  `corpus.Corpus` finds the clusters.
  """

  offers = ("clusters", "confidence")

  def validate(self, objective, start):
    if importlib.util.find_spec("sklearn") is None:
      return "clusters need scikit-learn: pip install 'dcse_jax[eval]'"
    return ""

  def corpus_settings(self, objective):
    return {"clusters": objective.settings_of("clusters")}

  def abstract_batch(self, objective, batch, columns, length):
    shape = (batch, len(objective.setting("num_clusters")))
    return {
      "clusters": jax.ShapeDtypeStruct(shape, jnp.int32),
      "confidence": jax.ShapeDtypeStruct(shape, jnp.float32),
    }

  def join(self, objective, params, inputs, offered):
    return {name: inputs.batch[name] for name in self.offers}

"""Embeddings of sentences: the views that are contrasted, and their earlier layers."""

import jax
import jax.numpy as jnp

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.objective.inputs.rows import number_views


class Views(Provider):
  """Two views, [B, D], a hard negative, [B, D], and earlier layers, [B, L, D].

  Views are the first column twice under independent dropout, or the columns; `layers`
  are of the first view, as the term's setting `layers` counts them from 1. All come
  after the projection, where there is one.
  """

  offers = embeddings = ("anchors", "positives", "negatives", "layers")
  compared = ("anchors", "positives", "negatives")
  needs_views = True

  def is_asked(self, objective):
    return objective.has_views

  def validate(self, objective, start):
    for each in objective.terms:
      layers = each.settings.get("layers", ())
      if layers and max(layers) >= objective.config.num_layers:
        return (
          f"{each.term.name}.layers={tuple(layers)}, but {start.name} has "
          f"{objective.config.num_layers} layers, of which the last is the embedding's "
          "own: name earlier ones"
        )
    if start.columns > 2 and "negatives" not in objective.inputs:
      return (
        f"no term of objective={objective.text!r} takes hard negatives: name two "
        "columns, or use info_nce"
      )
    return ""

  def init_params(self, objective, encoder, init, language_model):
    if not pooling_lib.get(objective.pooling).projected:
      return {}
    return {"projection": init("projection", heads.Projection)}

  def flops(self, objective, size):
    return objective.embedding_flops(size, size.batch * max(2, size.columns)), 0.0

  def embed(self, objective, sentences, offered):
    rows, packing = sentences.rows, sentences.packing
    columns, length = rows["input_ids"].shape[1:]
    views = columns
    if columns == 1:
      views, packing = 2, packing and packing.times(2)
    grid = lambda x: jnp.repeat(x, views // columns, axis=1).reshape(-1, length)
    inputs = (
      sentences.params["encoder"],
      objective.config,
      grid(rows["input_ids"]),
      grid(rows["attention_mask"]),
    )
    settings = dict(
      pooling=objective.pooling,
      rng=jax.random.fold_in(sentences.rng, 3),
      dtype=objective.dtype,
      packing=packing,
      row_ids=number_views(sentences.row_ids, views),
    )
    by_view = lambda x: x.reshape(-1, views, *x.shape[1:])
    arrays = {}
    if "layers" in objective.inputs:
      embeddings, layers = encoder_lib.encode_with_layers(
        *inputs, layers=tuple(objective.setting("layers")), **settings
      )
      arrays["layers"] = by_view(layers)[:, 0]
    else:
      embeddings = encoder_lib.encode(*inputs, **settings)
    embeddings = by_view(embeddings)
    for i, name in enumerate(("anchors", "positives", "negatives")[:views]):
      arrays[name] = embeddings[:, i]
    # `Served` may want the anchors as they were before the projection.
    return {"pooled": arrays["anchors"], **objective.project(sentences.params, arrays)}

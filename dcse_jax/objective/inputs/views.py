"""Embeddings of sentences: the views that are contrasted, and their earlier layers."""

import jax
import jax.numpy as jnp

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.objective.inputs.provider import Provider
from dcse_jax.objective.inputs.rows import number_views


class Views(Provider):
  """Two views, [B, D], hard negatives, [B, K, D], and earlier layers, [B, L, D].

  Views are the first column twice under independent dropout, or the columns; where
  nothing needs pairs, the first column once. Where the text has one column of hard
  negatives, they are [B, D]. `layers` are of the first view, as the term's setting
  `layers` counts them from 1. All come after the projection, where there is one.
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
    for each in objective.terms:
      if start.columns < 3 and "negatives" in each.term.required:
        return (
          f"{each.term.name} takes hard negatives, and the text has none: name their "
          "columns after those of anchors and positives"
        )
    return ""

  def init_params(self, objective, encoder, init, language_model):
    if not pooling_lib.get(objective.pooling).projected:
      return {}
    return {"projection": init("projection", heads.Projection)}

  def flops(self, objective, size):
    views = self._number(objective, size.columns)
    return objective.embedding_flops(size, size.batch * views), 0.0

  def _number(self, objective, columns: int) -> int:
    return 2 if columns == 1 and objective.has_pairs else columns

  def embed(self, objective, sentences, offered):
    rows, packing = sentences.rows, sentences.packing
    columns, length = rows["input_ids"].shape[1:]
    views = self._number(objective, columns)
    packing = packing and packing.times(views // columns)
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
    arrays["anchors"] = embeddings[:, 0]
    if views > 1:
      arrays["positives"] = embeddings[:, 1]
    if views > 2:
      arrays["negatives"] = embeddings[:, 2 if views == 3 else slice(2, None)]
    # `Served` may want the anchors as they were before the projection.
    return {"pooled": arrays["anchors"], **objective.project(sentences.params, arrays)}

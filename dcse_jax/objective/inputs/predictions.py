"""The anchors' predictions by a small network that is trained along."""

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.objective.inputs.provider import Provider


class Predictions(Provider):
  """Predictions of another model's embeddings from the anchors, [B, D]."""

  offers = embeddings = ("predictions",)
  needs_views = True

  def validate(self, objective, start):
    return objective.validate_width("predictions", start)

  def init_params(self, objective, encoder, init, language_model):
    return {"predictor": init("predictor", heads.Predictor)}

  def join(self, objective, params, inputs, offered):
    predictor, anchors = params["predictor"], offered["anchors"]
    return {"predictions": encoder_lib.predict(predictor, objective.config, anchors)}

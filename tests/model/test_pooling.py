"""Poolings, against those of sentence-transformers, wherever the padding stands."""

import jax
import numpy as np
import pytest
from sentence_transformers.sentence_transformer.modules import Pooling
import torch

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import flops
from dcse_jax.model import packing as packing_lib
from dcse_jax.model import pooling as pooling_lib
from tests import models

LENGTHS = np.asarray([12, 7, 2, 1])
RIGHT = np.arange(12) < LENGTHS[:, None]
MASKS = {"full": RIGHT[[0, 0]], "right": RIGHT, "left": RIGHT[:, ::-1]}
# Ours, and as sentence-transformers has them.
MODES = {
  "cls": "cls",
  "max": "max",
  "mean": "mean",
  "mean_sqrt_len": "mean_sqrt_len_tokens",
  "weightedmean": "weightedmean",
  "lasttoken": "lasttoken",
}
NAMES = [*MODES, "mean+max", "lasttoken+cls+weightedmean"]


def theirs(name, states, mask):
  modes = [MODES[mode] for mode in name.split("+")]
  features = {
    "token_embeddings": torch.tensor(np.asarray(states)),
    "attention_mask": torch.tensor(mask.astype(int)),
  }
  pool = Pooling(states.shape[-1], pooling_mode=modes)
  return pool(features)["sentence_embedding"].numpy()


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("name", NAMES)
def test_a_pooling_is_sentence_transformers_with_padding_on_either_side(name, side):
  mask = MASKS[side]
  states = np.random.default_rng(0).normal(size=(*mask.shape, 6)).astype(np.float32)
  ours = pooling_lib.get(name).reduce(states, mask)
  np.testing.assert_allclose(ours, theirs(name, states, mask), atol=1e-6)


# One token's state alone is computed; or all, and here pooled in every way.
@pytest.mark.parametrize("name", ["cls", "lasttoken", "+".join(MODES)])
def test_packed_and_padded_rows_are_pooled_as_sentence_transformers_pools_states(name):
  model = models.tiny_model()
  packing = packing_lib.Packing(int(LENGTHS.sum()) + 1)
  encode = jax.jit(encoder_lib.encode, static_argnames=("config", "pooling", "packing"))
  states_of = jax.jit(encoder_lib.hidden_states, static_argnames="config")
  for mask in (RIGHT, RIGHT[:, ::-1]):
    ids = np.random.default_rng(1).integers(5, 150, mask.shape)
    batch = {"config": model.config, "input_ids": ids, "attention_mask": mask}
    *_, states = states_of(model.params, **batch)
    for form in (None, packing):
      ours = encode(model.params, **batch, pooling=name, packing=form)
      np.testing.assert_allclose(ours, theirs(name, states, mask), atol=1e-6)


def test_the_last_token_costs_what_the_first_does_and_less_than_all():
  count = lambda name: flops.encode_flops(
    models.tiny_model().config, name, sentences=4, length=10, squared_length=100
  )
  assert count("lasttoken") == count("cls") < count("mean")

"""Sentences that several devices of a host embed together."""

import jax
import numpy as np
import pytest

from dcse_jax.embed import devices
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime.errors import UserError
from tests import models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("devices") / "model"
  return models.write_tiny_folder(path, num_layers=1)


# One is a batch that leaves devices without a sentence.
@pytest.mark.parametrize("number", [1, 77])
def test_eight_devices_embed_as_one_does_in_the_same_order(folder, number):
  sentences = models.SENTENCES[:number]
  one = SentenceEncoder(folder).encode(sentences, batch_size=4)
  eight = SentenceEncoder(folder, devices=8).encode(sentences, batch_size=4)
  np.testing.assert_allclose(eight, one, atol=1e-6)


def test_made_up_devices_of_a_cpu_are_taken_only_if_asked_for():
  assert len(jax.local_devices()) == 8
  assert devices.make_mesh() is None
  assert devices.make_mesh(4).size == 4


def test_more_devices_than_there_are_are_refused(folder):
  with pytest.raises(UserError, match="--devices=9: this host has 8"):
    SentenceEncoder(folder, devices=9)


def test_what_a_thread_computes_ahead_comes_in_order_and_with_its_errors():
  assert list(devices.ahead(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
  assert not list(devices.ahead(len, ()))
  found = devices.ahead(lambda x: 1 // x, (1, 0))
  assert next(found) == 1
  with pytest.raises(ZeroDivisionError):
    next(found)

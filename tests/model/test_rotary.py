"""Families with rotary positions: their states and gradients are PyTorch's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from dcse_jax import losses
from dcse_jax.hub import huggingface
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import modernbert
from dcse_jax.model.chunks import Chunks
from dcse_jax.model.packing import Packing
from dcse_jax.objective.objective import Objective
from tests import families
from tests import models

# What an exported folder says in its own way.
SAID = {"architectures", "dtype", "use_cache", "sliding_window", "max_window_layers"}


def assert_close(ours, theirs, rtol):
  """Asserts equality within rtol of the largest, or of 1."""
  scale = max(np.abs(theirs).max(), 1.0)
  np.testing.assert_allclose(ours, theirs, atol=rtol * scale)


def compiled_states(params, config, ids, mask, **options):
  run = lambda params: encoder_lib.hidden_states(params, config, ids, mask, **options)
  return [np.asarray(state, np.float32) for state in jax.jit(run)(params)]


# Short rows with padding; and packed rows that are longer than the window.
@pytest.mark.parametrize(
  "shape, length", [pytest.param(1, 16, marks=pytest.mark.slow), (2, 40)]
)
@pytest.mark.parametrize("kind", families.SHAPES)
def test_states_equal_pytorch_and_weights_come_back_bitwise(
  kind, shape, length, tmp_path
):
  model = families.make_torch(kind, shape)
  model.save_pretrained(tmp_path)
  params, config = families.read(tmp_path)
  ids, mask = families.padded_inputs(length)
  packing = Packing(int(mask.sum()) + 3) if shape == 2 else None
  states = compiled_states(params, config, ids, mask, packing=packing)
  with torch.no_grad():
    expected = families.torch_states(model, ids, mask)
  for ours, theirs in zip(states, expected):
    assert_close(ours[mask], theirs.numpy()[mask], 1e-5)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  back = huggingface.to_tensors(params, config)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)
  written = type(model.config)(**huggingface.config_to_json(config)).to_dict()
  for name, value in model.config.to_dict().items():
    if name in huggingface.config_to_json(config) and name not in SAID:
      assert written[name] == value, name


@pytest.mark.parametrize("kind", families.quickly("modernbert"))
def test_gradients_of_long_rows_equal_pytorch(kind, tmp_path):
  model = families.make_torch(kind)
  model.save_pretrained(tmp_path)
  params, config = families.read(tmp_path)
  ids, mask = families.padded_inputs(40)
  weights = np.random.default_rng(1).normal(size=(*ids.shape, 24)).astype(np.float32)
  weights *= mask[:, :, None]
  *_, expected = families.torch_states(model, ids, mask)
  (expected * torch.tensor(weights)).sum().backward()

  @jax.jit
  @jax.grad
  def gradients(params):
    *_, last = encoder_lib.hidden_states(params, config, ids, mask)
    return jnp.sum(last * weights)

  ours = huggingface.to_tensors(gradients(params), config)
  # The gradients as weights of a model, which is saved as the weights were.
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(parameter.grad)
  model.save_pretrained(tmp_path)
  theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert ours.keys() == theirs.keys()
  for name, gradient in theirs.items():
    # PyTorch leaves the padding's row out.
    rows = slice(int(len(gradient) == 120), None)
    scale = max(np.abs(gradient).max(), 1e-3)
    np.testing.assert_allclose(
      ours[name][rows], gradient[rows], atol=2e-5 * scale, err_msg=name
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", families.SHAPES)
def test_bfloat16_states_are_near_those_of_float32(kind, tmp_path):
  families.make_torch(kind, 1).save_pretrained(tmp_path)
  params, config = families.read(tmp_path)
  ids, mask = families.padded_inputs(40)
  run = lambda dtype: compiled_states(params, config, ids, mask, dtype=dtype)[2][mask]
  exact, near = run(jnp.float32), run(jnp.bfloat16)
  # Eight bits a number, which some ten roundings after each other lose three of.
  assert 0 < np.abs(exact - near).mean() < 2**-5 * np.abs(exact).mean()


@pytest.mark.parametrize("kind, shape", [("modernbert", 2), ("nomic_bert", 1)])
def test_scores_of_words_equal_pytorch(kind, shape, tmp_path):
  model = families.make_torch(kind, shape, families.ENCODERS[kind]._from_config)
  model.save_pretrained(tmp_path)
  params, config = families.read(tmp_path)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  head = huggingface.language_model_from_tensors(tensors, config)
  ids, mask = families.padded_inputs(16)

  @jax.jit
  def score(params, head):
    *_, last = encoder_lib.hidden_states(params, config, ids, mask)
    return encoder_lib.score_tokens(head, params, config, last)

  with torch.no_grad():
    theirs = model(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)))
  ours = np.asarray(score(params, head))
  assert_close(ours[mask], theirs.logits.numpy()[mask], 1e-5)
  for name, tensor in huggingface.language_model_to_tensors(head, config).items():
    np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_the_first_layers_keep_their_kinds_and_the_last_norm(tmp_path):
  model = families.make_torch("modernbert")
  model.save_pretrained(tmp_path)
  params, config = encoder_lib.keep_layers(*families.read(tmp_path), 2)
  ids, mask = families.padded_inputs(40)
  model.layers = model.layers[:2]
  with torch.no_grad():
    *_, expected = families.torch_states(model, ids, mask)
  *_, last = compiled_states(params, config, ids, mask)
  assert_close(last[mask], expected.numpy()[mask], 1e-5)
  written = huggingface.config_to_json(config)
  assert written["layer_types"] == model.config.layer_types[:2]


@pytest.mark.parametrize(
  "kind, shape", [("modernbert", 1), pytest.param("qwen3", 2, marks=pytest.mark.slow)]
)
def test_the_last_layer_for_few_tokens_gives_their_full_states(kind, shape, tmp_path):
  families.make_torch(kind, shape).save_pretrained(tmp_path)
  params, config = families.read(tmp_path)
  config = dataclasses.replace(config, attention_dropout=0.2)
  ids, mask = families.padded_inputs(40)
  positions = np.stack([np.zeros(4, int), mask.sum(axis=1) - 1], axis=1)
  at = lambda states: jnp.take_along_axis(states, positions[..., None], axis=1)

  @jax.jit
  def run(params, rng):
    # With dropout: its masks are the same, in blocks and packed too.
    few = encoder_lib.states_at(
      params, config, ids, mask, positions, packing=Packing(80), rng=rng
    )
    *_, last = encoder_lib.hidden_states(params, config, ids, mask, rng=rng)
    return few, at(last)

  few, full = run(params, jax.random.key(3))
  np.testing.assert_allclose(few, full, atol=1e-5)
  other, _ = run(params, jax.random.key(4))
  assert np.abs(few - other).max() > 0.01


@pytest.mark.slow
def test_packed_and_in_microbatches_it_trains_as_padded_dropout_included():
  config = modernbert.new_config(
    max_tokens=40,
    vocab_size=150,
    hidden_size=16,
    num_layers=4,
    num_heads=2,
    intermediate_size=24,
    initializer_range=0.2,
    pad_token_id=0,
  )
  config = dataclasses.replace(config, local_attention=4)
  batch = models.random_batch(3, length=24)

  def gradient(packing, number):
    loss_fn = Objective(
      losses.parse("info_nce + masked_language_model"),
      config=config,
      pooling="mean",
      mask_token_id=4,
      special_token_ids=(0, 1, 2, 3, 4),
      microbatches=Chunks(number),
    )
    params = loss_fn.init_params(
      encoder_lib.init_params(config, jax.random.key(1)), jax.random.key(0)
    )
    (loss, _), gradient = jax.jit(
      jax.value_and_grad(models.called(loss_fn), has_aux=True), static_argnums=4
    )(params, batch, jax.random.key(7), {}, packing)
    return loss, gradient

  loss, expected = gradient(None, 1)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  for packing, number in ((Packing(170), 1), (Packing(100, 2), 2)):
    other, found = gradient(packing, number)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), found, expected
    )

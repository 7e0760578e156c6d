"""Model FLOPs of families with windows, shared heads and gates."""

from dcse_jax.model import modernbert
from dcse_jax.model import qwen3
from dcse_jax.model.flops import encoder_flops

SHAPE = dict(vocab_size=100, hidden_size=32, num_heads=4, intermediate_size=48)


def test_a_windows_flops_are_those_of_the_keys_in_it():
  config = modernbert.EncoderConfig(
    model_type="modernbert", num_layers=3, local_attention=8, **SHAPE
  )
  # Four products with [32, 32] and three with [32, 48] a token; scores and weighted
  # values of 32 numbers a pair: with all 100 keys in layer 0, with 4 + 1 + 4 in the
  # next; two FLOPs a multiplication.
  token = 4 * 32 * 32 + 3 * 32 * 48
  pairs = 100 * 100 + 2 * 100 * 9
  expected = 2 * 7 * (3 * 100 * token + 2 * 32 * pairs)
  counted = encoder_flops(config, sentences=7, length=100, squared_length=100**2)
  assert counted == expected
  # Sentences that are shorter than the window have no more than all of their pairs.
  short = encoder_flops(config, sentences=7, length=5, squared_length=25)
  assert short == 2 * 7 * 3 * (5 * token + 2 * 32 * 25)


def test_a_decoders_flops_are_those_of_the_keys_before_and_of_fewer_heads():
  config = qwen3.EncoderConfig(
    model_type="qwen3",
    num_layers=2,
    max_positions=128,
    layer_norm_eps=1e-6,
    activation="silu",
    initializer_range=0.02,
    pad_token_id=0,
    attention_dropout=0.0,
    kv_heads=2,
    head_size=16,
    is_local=(False, False),
    sliding_window=4,
    theta=1e4,
    **SHAPE,
  )
  # Queries and outputs of 4 heads of 16, keys and values of 2.
  queries, keys, gated = 2 * 32 * 64, 2 * 32 * 32, 3 * 32 * 48
  # The n-th of 10 tokens sees n keys: 55 pairs.
  layer = 2 * (10 * (queries + keys + gated) + 2 * 64 * 55)
  counted = encoder_flops(config, sentences=1, length=10, squared_length=100)
  assert counted == 2 * layer

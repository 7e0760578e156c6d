"""What a run says about the time that it still takes."""

from dcse_jax import config as config_lib
from dcse_jax.recipe import time_left


def test_the_time_of_a_round_and_of_the_recipe_is_that_of_the_steps_to_come():
  left = time_left.TimeLeft("base", in_round=100, in_recipe=3_000)
  # 20 + 100 steps of half a second; and 3,000 more.
  assert left.tell(20, 0.5) == "(60 s left in round base, 26 min in all)"
  last = time_left.TimeLeft("student", in_round=0, in_recipe=0)
  assert last.tell(36_000, 1.0) == "(10.0 h left in round student)"
  assert last.tell(0, 1.0) == "(0 s left in round student)"


def test_a_later_round_counts_by_the_tokens_that_it_reads():
  config = config_lib.default()
  config.num_train_steps, config.batch_size, config.max_length = 10, 64, 32
  # Two models of ten steps, each of half as many tokens as a step of 128 sentences.
  step = config_lib.default()
  step.batch_size = 128
  assert time_left.work(config, 2) / time_left.tokens_of_step(step) == 10

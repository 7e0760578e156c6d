"""Hard negatives that are mined while a model trains."""

import contextlib
import logging

import jax
import numpy as np
import pytest

from dcse_jax.data import tokens as tokens_lib
from dcse_jax.hub import folder as folder_lib
from dcse_jax.objective import mined
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from tests import models
from tests.recipes import from_files
from tests.runtime import test_processes


def cache(folder, *columns):
  """Tokenises sentences of numbers, "3 4", as these numbers."""
  return tokens_lib.build_token_cache(
    folder,
    columns,
    tokenize=lambda rows: [[int(word) for word in row.split()] for row in rows],
    tokenizer_state="",
    max_length=4,
    pad_token_id=0,
    vocab_size=400,
  )


def embed(sentences):
  """The first number of a sentence is where it points, in degrees."""
  angle = np.radians([float(ids[0]) for ids in sentences])
  return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


# The first anchor has two positives, and the third's is the second itself.
ROWS = ["10", "10", "30", "50"], ["20", "21 1", "41 1", "30"]
MORE = ["22 1 1 1", "60", "75"]
DEGREES = (20, 21, 41, 30, 22, 60, 75)  # Where the documents point, in their order.


def miner(folder, margin=0.0):
  settings = mined.Mining(2, 1, margin)
  return mined.Miner(settings, cache(folder, *ROWS), cache(folder, MORE))


def test_negatives_are_the_nearest_that_are_further_than_every_positive(tmp_path):
  found = miner(tmp_path).mine(embed)["negatives"]
  # 10 has a positive 11 degrees off, and so has 30, which is a document itself; 50 has
  # one 20 degrees off.
  expected = [[22, 30], [60, 75], [75, 22]]
  assert [[DEGREES[i] for i in row] for row in found] == expected
  # Nothing is at an angle whose cosine is a tenth of these.
  assert (miner(tmp_path, margin=0.9).mine(embed)["negatives"] == -1).all()


def test_a_batch_leaves_out_what_would_be_false_negatives_and_counts_tokens(tmp_path):
  mining, tokens = miner(tmp_path), cache(tmp_path, *ROWS)
  every = np.asarray([0, 2])
  batch = tokens.gather(every) | {"batch_ids": every}
  # The document 1 is a positive of the first row's anchor, though not that row's.
  negatives = np.asarray([[4, 3], [1, 4], [4, 5]], np.int32)
  joined = mining.join(batch, negatives, groups=1, host=0)
  assert joined["input_ids"][:, 2].tolist() == [[22, 1, 1, 1], [22, 1, 1, 1]]
  assert joined["has_negative"].all() and "batch_ids" not in joined
  assert joined["num_tokens"] == (1 + 1 + 4) + (1 + 2 + 4)
  negatives[1] = [1, 3]  # The document 3 is the second row's anchor.
  joined = mining.join(batch, negatives, groups=2, host=0)
  assert joined["has_negative"].tolist() == [[True], [False]]
  # One token stands where there is no negative.
  assert joined["attention_mask"][1, 2].tolist() == [True, False, False, False]
  assert joined["num_tokens"] == max(1 + 1 + 4, 1 + 2 + 1)
  # Each process has its rows of the same batch.
  for host in (0, 1):
    part = tokens.gather(every[host : host + 1]) | {"batch_ids": every}
    found = mining.join(part, negatives, groups=2, host=host)
    for name in ("input_ids", "attention_mask", "has_negative"):
      np.testing.assert_array_equal(found[name], joined[name][host : host + 1])
    assert found["num_tokens"] == joined["num_tokens"]


@pytest.fixture
def pairs(files):
  """A text of pairs, a corpus, and a config that mines in both."""
  sentences = models.SENTENCES
  rows = ["a\tb", *(f"{s}\t{s} the" for s in sentences[:40])]
  (files / "pairs.tsv").write_text("\n".join(rows) + "\n")
  (files / "corpus.txt").write_text("\n".join(sentences[40:70]) + "\n")
  config = from_files(
    files,
    "simcse",
    text=str(files / "pairs.tsv"),
    columns=("a", "b"),
    mine_every=2,
    mine_num_negatives=2,
    mine_corpus=str(files / "corpus.txt"),
    learning_rate=0.01,
    sts="",  # The last parameters are kept.
    test=(),
  )
  config.rounds.simcse.update(seeds=(1,), eval_every=1)
  return config


def test_a_run_that_mines_goes_on_as_if_uninterrupted_even_without_its_files(
  files, pairs, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("dcse_jax"), "propagate", True)
  (whole,) = recipe_lib.run(pairs, str(files / "whole"))
  folder = files / "whole" / "simcse" / "1"
  first, second = (
    np.load(next(folder.glob(f"corpus-mined-{step}-*")))["negatives"] for step in (0, 2)
  )
  assert first.shape == (40, 4) and (first != second).any()
  calls, original = [], recipe_lib.round_lib.Round._evaluate

  def interrupt(self, seed, params):
    calls.append(seed)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return original(self, seed, params)

  monkeypatch.setattr(recipe_lib.round_lib.Round, "_evaluate", interrupt)
  with pytest.raises(KeyboardInterrupt):
    recipe_lib.run(pairs, str(files / "cut"))
  # It goes on from step 3, with the negatives of step 2.
  for path in (files / "cut" / "simcse" / "1").glob("corpus-mined-*"):
    path.unlink()
  assert recipe_lib.run(pairs, str(files / "cut")) == [whole]
  read = lambda run: (files / run / "simcse/1/model/model.safetensors").read_bytes()
  assert read("cut") == read("whole")
  assert "made anew, by the model as it was" in caplog.text


def test_a_text_that_cannot_be_mined_for_is_refused(files, pairs):
  for fields, said in (
    ({"columns": ("a",)}, "finds the hard negatives of pairs, and .* has 1 columns"),
    ({"mine_num_negatives": 70}, "=70, and there are 70 documents in all"),
    ({"mine_corpus": str(files / "none.txt")}, "none.txt: no such file"),
  ):
    config = pairs.copy_and_resolve_references()
    config.update(fields)
    with pytest.raises(UserError, match=said):
      recipe_lib.run(config, str(files / "run"))


@pytest.mark.slow
def test_two_processes_mine_and_train_as_one_of_eight_devices_does(files, pairs):
  recipe_lib.run(pairs, str(files / "one"))
  fields = {
    **{f"encoder.{name}": value for name, value in pairs.encoder.items()},
    **{n: pairs[n] for n in pairs if n.startswith("mine_")},
    **{n: pairs[n] for n in ("model", "text", "columns", "learning_rate", "test")},
    **{n: pairs[n] for n in ("batch_size", "max_length")},
    **dict(num_train_steps=4, eval_every=1, log_every=2, warmup_steps=0),
    "rounds.simcse.seeds": (1,),
  }
  with contextlib.ExitStack() as stack:
    both = test_processes.start(
      stack,
      *("--config=configs/simcse.py", f"--workdir={files / 'two'}"),
      *(f"--config.{name}={value}" for name, value in fields.items()),
    )
    ends = [process.wait(900) for process in both]
    assert ends == [0, 0], both[0].stderr() + both[1].stderr()
  of = lambda run: (files / run).glob("simcse/1/corpus-mined-*")
  negatives = {path.name: np.load(path)["negatives"] for path in of("one")}
  assert {path.name for path in of("two")} == set(negatives) and len(negatives) == 2
  for path in of("two"):
    np.testing.assert_array_equal(np.load(path)["negatives"], negatives[path.name])
  read = lambda run: folder_lib.load(str(files / run / "simcse/1/model")).params
  params, theirs = read("one"), read("two")
  for each in (params, theirs):
    del each["layers"]["key"]["bias"]  # Its gradient is rounding.
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
  jax.tree.map(close, params, theirs)

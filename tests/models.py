"""Tiny models for tests, made on the spot."""

import json
import pathlib

import jax
import numpy as np

from dcse_jax import losses
from dcse_jax.data import synthetic
from dcse_jax.hub import folder
from dcse_jax.hub import wordpiece
from dcse_jax.model import bert
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.objective.inputs import StepInputs
from dcse_jax.objective.objective import Objective
from dcse_jax.runtime import digests as digests_lib

SENTENCES = synthetic.sentences(300, seed=0)


def tiny_model(seed=0, *, pooling="mean", num_layers=2, **shape):
  """Makes a random BERT with a trained tokenizer, as `folder.load` would return it."""
  tokenizer = wordpiece.train_wordpiece(SENTENCES, vocab_size=200)
  config = bert.EncoderConfig(
    **dict(
      model_type="bert",
      vocab_size=len(tokenizer),
      hidden_size=16,
      num_layers=num_layers,
      num_heads=2,
      intermediate_size=32,
      max_positions=64,
      type_vocab_size=2,
      # It is large enough for unlike sentences to get unlike embeddings.
      initializer_range=0.2,
    )
    | shape
  )
  params = encoder_lib.init_params(config, jax.random.key(seed))
  return model_lib.Model(
    config=config,
    params=jax.device_get(params),
    tokenizer=tokenizer,
    pooling=pooling,
    normalize=False,
    max_length=32,
  )


def write_tiny_folder(path, seed=0, **kwargs) -> str:
  """Saves a tiny model without digests, as if from elsewhere; returns its path."""
  folder.save(tiny_model(seed, **kwargs), path, overwrite=True)
  (pathlib.Path(path) / digests_lib.NAME).unlink()
  return str(path)


def write_sts(path: pathlib.Path, name: str, num_pairs: int = 60) -> None:
  """Writes a graded set NAME.tsv into a folder."""
  path.mkdir(parents=True, exist_ok=True)
  pairs = synthetic.graded_pairs(num_pairs, seed=1)
  lines = [f"{score}\t{a}\t{b}\n" for score, a, b in pairs]
  (path / f"{name}.tsv").write_text("".join(lines))


def random_batch(seed, *, batch=8, columns=1, length=12, vocab_size=150):
  """Draws a batch with sentences of unlike lengths, [B, C, S]."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(3, length + 1, (batch, columns, 1))
  mask = np.arange(length) < lengths
  ids = rng.integers(5, vocab_size, (batch, columns, length))
  return {
    "input_ids": np.where(mask, ids, 0).astype(np.int32),
    "attention_mask": mask,
    "example_id": np.arange(batch, dtype=np.int32),
  }


def read_jsonl(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


SPEEDS = {
  f"train/{name}"
  for name in (
    "sentences_per_second",
    "step_seconds",
    "tokens_per_second",
    "model_tflops_per_second",
  )
}


def read_metrics(path: pathlib.Path) -> list[dict]:
  """Reads the rows of metrics.jsonl, without values that differ between equal runs."""
  rows = read_jsonl(path)
  return [{k: v for k, v in row.items() if k not in SPEEDS} for row in rows]


def called(loss_fn):
  """Spreads a loss function's inputs into arguments, to be compiled and derived."""

  def call(params, batch, rng, frozen=None, packing=None, carry=None, progress=0.0):
    inputs = StepInputs(batch, rng, frozen or {}, packing, carry or {}, progress)
    return loss_fn(params, inputs)

  return call


def language_model_loss(model: model_lib.Model) -> Objective:
  """Makes the objective of pretraining a model."""
  return Objective(
    losses.parse("masked_language_model"),
    config=model.config,
    pooling="mean",
    mask_token_id=model.tokenizer.mask_token_id,
    special_token_ids=tuple(model.tokenizer.all_special_ids),
  )

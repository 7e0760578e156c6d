"""Prompts of a text's columns: in training, in what is exported, and of teachers."""

import dataclasses
import json

import numpy as np
import pytest
import sentence_transformers

from dcse_jax import SentenceEncoder
from dcse_jax import config as config_lib
from dcse_jax.hub import folder
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.recipe import reading
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from tests import models
from tests.recipes import from_files

A, B = models.SENTENCES[:30], models.SENTENCES[30:60]
PROMPTS = ("the query: ", "a passage: ")
CARD = "config_sentence_transformers.json"


def write_model(path, **fields):
  model = dataclasses.replace(models.tiny_model(num_layers=1), **fields)
  folder.save(model, path, overwrite=True)
  return str(path)


def pairs(files, rows=None, **fields):
  """Returns a config for a text of pairs."""
  rows = rows or list(zip(A, B))
  (files / "pairs.tsv").write_text(
    "".join(f"{a}\t{b}\n" for a, b in [("a", "b"), *rows])
  )
  fields = {"test": (), "columns": ("a", "b"), "prompts": PROMPTS, **fields}
  return from_files(files, "simcse", text=str(files / "pairs.tsv"), **fields)


def read(config, files):
  rounds = {name: config_lib.of_round(config, name) for name in config.recipe}
  inputs = reading.read(config, rounds, files / "run")
  return inputs, rounds[config.recipe[-1]]


def columns_of(tokens):
  """Lists the token ids of each column, [columns][rows]."""
  batch = tokens.gather(np.arange(len(tokens)))
  ids, mask = batch["input_ids"], batch["attention_mask"].astype(bool)
  return [
    [row[there].tolist() for row, there in zip(ids[:, c], mask[:, c])]
    for c in range(ids.shape[1])
  ]


def theirs(path, sentences, prompt):
  """Tokenises as sentence-transformers' trainer does for a column with a prompt."""
  model = sentence_transformers.SentenceTransformer(str(path), device="cpu")
  found = model.preprocess(sentences, prompt=prompt)
  mask = found["attention_mask"].bool().numpy()
  ids = found["input_ids"].numpy()
  return [row[there].tolist() for row, there in zip(ids, mask)]


def test_columns_are_tokenised_after_their_prompts_as_sentence_transformers_does(files):
  inputs, round_config = read(pairs(files, max_length=32), files)
  found = columns_of(inputs.tokens(round_config))
  assert found[0] == theirs(files / "model", A, PROMPTS[0])
  assert found[1] == theirs(files / "model", B, PROMPTS[1])


def test_rows_that_share_a_sentence_never_meet_whatever_stands_before_it(files):
  rows = [*zip(A, B), (B[0], "Something else."), (A[1], A[2])]
  twins = {}
  for prompts in ((), PROMPTS, PROMPTS[:1]):
    config = pairs(files, rows, prompts=prompts, max_length=32)
    inputs, round_config = read(config, files)
    twins[prompts] = inputs.tokens(round_config).num_twins
  # The rows that hold B[0], A[1] or A[2].
  assert set(twins.values()) == {5}


def test_the_export_has_the_prompts_and_another_prompt_is_another_run(files):
  config = pairs(files)
  recipe_lib.run(config, str(files / "run"))
  card = json.loads((files / "run/export" / CARD).read_text())
  assert card["prompts"] == {"query": PROMPTS[0], "document": PROMPTS[1]}
  assert card["default_prompt_name"] is None
  readme = (files / "run/export/README.md").read_text()
  assert "a query after the prompt `the query: `, a document after the prompt" in readme
  there = sentence_transformers.SentenceTransformer(
    str(files / "run/export"), device="cpu"
  )
  ours = SentenceEncoder(files / "run/export")
  for name, expected in (
    ("query", there.encode_query(A)),
    ("document", there.encode_document(A)),
  ):
    found = ours.encode(A, prompt_name=name)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  with pytest.raises(UserError, match="comes from something else: another prompts"):
    recipe_lib.run(pairs(files, prompts=PROMPTS[:1]), str(files / "run"))


@pytest.mark.parametrize(
  "given, own, prompts, default, columns",
  [
    # Texts become the prompts for queries and documents; a single one is the default.
    (("q: ",), {}, {"query": "q: ", "document": "q: "}, "query", ["q: ", "q: "]),
    (("q: ", ""), {}, {"query": "q: ", "document": ""}, None, ["q: ", ""]),
    # Names are the model's own, which stay as they are.
    (("x", "y"), {"x": "X ", "y": "Y "}, {"x": "X ", "y": "Y "}, None, ["X ", "Y "]),
    (("x",), {"x": "X "}, {"x": "X "}, "x", ["X ", "X "]),
    (
      ("query", "p: "),
      {"query": "Q "},
      {"query": "Q ", "document": "p: "},
      None,
      ["Q ", "p: "],
    ),
  ],
  ids=str,
)
def test_prompts_are_texts_or_names_of_the_models_own(
  given, own, prompts, default, columns, files
):
  write_model(files / "model", prompts=own)
  inputs, _ = read(pairs(files, prompts=given), files)
  assert (inputs.start.prompts, inputs.start.default_prompt) == (prompts, default)
  assert [inputs.start.as_column(c).prompt for c in range(2)] == columns
  # The last prompt serves for hard negatives, too.
  assert inputs.start.as_column(2).prompt == columns[1]


def test_a_prompt_that_the_model_does_not_have_is_refused(files):
  with pytest.raises(UserError, match="names 'query', and the prompts of .* are none"):
    read(pairs(files, prompts=("query", "document")), files)


def test_a_prompt_that_is_not_pooled_is_seen_in_training_and_left_out(files):
  write_model(files / "model", include_prompt=False)
  inputs, round_config = read(pairs(files, max_length=32), files)
  tokens = inputs.tokens(round_config)
  batch = tokens.gather(np.arange(len(tokens)))
  there = sentence_transformers.SentenceTransformer(str(files / "model"), device="cpu")
  for column, (sentences, prompt) in enumerate(zip((A, B), PROMPTS)):
    found = encoder_lib.encode(
      inputs.start.params,
      inputs.start.config,
      batch["input_ids"][:, column],
      batch["attention_mask"][:, column],
      pooling=inputs.start.pooling,
    )
    np.testing.assert_allclose(found, there.encode(sentences, prompt=prompt), atol=1e-5)
    plain = there.encode(sentences)
    assert np.abs(found - plain).max() > 1e-3


def test_teachers_read_after_their_own_prompts(files):
  write_model(files / "named", prompts={"query": "ask ", "document": "say "})
  write_model(files / "default", prompts={"x": "do "}, default_prompt="x")
  teachers = tuple(str(files / name) for name in ("named", "default", "model"))
  write_model(files / "model", prompts={"query": "find "})
  config = from_files(files, recipe=("student",), prompts=("query",))
  config.rounds.student.teachers = teachers
  inputs, round_config = read(config, files)
  sentences = inputs.sentences(round_config, range(20))
  # The last is the student's own folder: it reads what the student does.
  for teacher, prompt in zip(teachers, ("ask ", "do ", "find ")):
    found = columns_of(inputs.teacher_tokens(teacher, round_config))[0][:20]
    assert found == inputs.start.after(prompt).tokenize(sentences, 16)

"""Tokenizers of every kind, by what AutoTokenizer makes of their folders."""

import json

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

from dcse_jax import SentenceEncoder
from dcse_jax.hub import folder
from dcse_jax.model import model as model_lib
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import workdir
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import recipes
from tests import vocabularies

TEXTS = [
  "",
  "A word, 7 \u2603.",
  *models.SENTENCES[:3],
  models.SENTENCES[3] * 9,
  "  Blanks \t" + " " * 9_000 + models.SENTENCES[4],
  "na\u00efve \u732b\U0001f600",
]
_SHAPE = dict(
  hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
_DECODER = dict(num_key_value_heads=1, head_dim=8)


def encoder(kind, vocab_size, **fields):
  config = {
    "bert": transformers.BertConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
    "roberta": transformers.RobertaConfig,
    "modernbert": transformers.ModernBertConfig,
    "gemma3_text": transformers.Gemma3TextConfig,
    "qwen3": transformers.Qwen3Config,
  }[kind]
  fields = {**_SHAPE, "max_position_embeddings": 64, **fields}
  if kind in ("gemma3_text", "qwen3"):
    fields |= _DECODER
  if kind == "gemma3_text":
    fields["use_bidirectional_attention"] = True
  config = config(vocab_size=vocab_size, initializer_range=0.2, **fields)
  torch.manual_seed(0)
  return transformers.AutoModel.from_config(config).eval()


# The encoder, the tokenizer, its name in transformers ("" for none of its own), the
# pooling, and how many tokens the encoder has more.
CASES = {
  "bert": ("bert", "bert", "BertTokenizer", "cls", 7),
  "multilingual MiniLM": ("bert", "xlm_roberta", "XLMRobertaTokenizer", "mean", 0),
  "xlm-roberta": ("xlm-roberta", "xlm_roberta", "XLMRobertaTokenizer", "mean", 2),
  "roberta": ("roberta", "roberta", "RobertaTokenizer", "cls", 0),
  "modernbert": ("modernbert", "modernbert", "", "cls", 5),
  "gemma": ("gemma3_text", "gemma", "GemmaTokenizer", "mean", 0),
  "qwen": ("qwen3", "qwen", "Qwen2Tokenizer", "lasttoken", 9),
  "bytes for bert": ("bert", "roberta", "", "mean", 0),
}

QUICK = ("multilingual MiniLM", "gemma", "qwen")


def made(path, case, *, spare=None):
  """A folder of sentence-transformers of a case."""
  kind, vocabulary, name, pooling, more = CASES[case]
  tokenizer = vocabularies.KINDS[vocabulary]()
  size = len(tokenizer) + (more if spare is None else spare)
  special = {
    f"{token}_token_id": getattr(tokenizer, f"{token}_token_id")
    for token in ("pad", "bos", "eos")
  }
  special = {key: value for key, value in special.items() if value is not None}
  encoder(kind, size, **special).save_pretrained(path / "encoder")
  tokenizer.save_pretrained(path / "encoder")
  if name:
    where = path / "encoder" / "tokenizer_config.json"
    settings = json.loads(where.read_text())
    where.write_text(json.dumps({**settings, "tokenizer_class": name}))
  model = folder.load(str(path / "encoder"), pooling=pooling, max_length=24)
  folder.save(model, path / "m")
  return path / "m"


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(case, marks=() if case in QUICK else pytest.mark.slow)
    for case in CASES
  ],
)
def test_texts_have_the_tokens_and_embeddings_of_sentence_transformers(case, tmp_path):
  path = made(tmp_path, case)
  ours = SentenceEncoder(path)
  theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
  whole = theirs.tokenizer(TEXTS, truncation=True, max_length=24)["input_ids"]
  assert ours.model.tokenize(TEXTS, 24) == whole
  assert max(map(len, whole)) == 24
  embeddings = ours.encode(TEXTS)
  # One by one: no padding, which BERT's positions would count on the left.
  for text, row in zip(TEXTS, embeddings):
    np.testing.assert_allclose(row, theirs.encode(text), atol=1e-5)
  np.testing.assert_allclose(embeddings, theirs.encode(TEXTS), atol=1e-5)
  again = ours.model.tokenizer
  saved = folder.load(str(path)).tokenizer
  assert again.padding_side == saved.padding_side == theirs.tokenizer.padding_side
  assert saved.pad_token_id == ours.model.config.pad_token_id


def test_the_end_of_a_text_stands_last_also_where_it_is_cut(tmp_path):
  model = folder.load(str(made(tmp_path, "qwen")))
  rows = model.tokenize(TEXTS, 8)
  end = model.tokenizer.eos_token_id
  assert [row.index(end) for row in rows] == [len(row) - 1 for row in rows]
  assert max(map(len, rows)) == 8 and rows[0] == [end]


def test_a_tokenizer_without_a_pad_token_embeds_as_with_one(tmp_path):
  path = made(tmp_path, "qwen")
  model = folder.load(str(path))
  model.tokenizer.pad_token = None
  folder.save(model, tmp_path / "bare")
  bare = SentenceEncoder(tmp_path / "bare")
  assert bare.model.tokenizer.pad_token is None
  expected = SentenceEncoder(path).encode(TEXTS)
  np.testing.assert_array_equal(bare.encode(TEXTS), expected)


def test_a_text_that_spells_the_pad_token_is_embedded_as_transformers_does(tmp_path):
  path = made(tmp_path, "roberta")
  text = "A word <pad> and <pad><pad> more."
  assert folder.load(str(path)).tokenize([text], 24)[0].count(1) == 3
  theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
  ours = SentenceEncoder(path).encode(text)
  np.testing.assert_allclose(ours, theirs.encode(text), atol=1e-5)


def test_an_added_token_without_a_row_is_refused_in_the_texts_that_spell_it(tmp_path):
  model = folder.load(str(made(tmp_path, "modernbert", spare=0)))
  size = model.config.vocab_size
  model.tokenizer.add_tokens(["<image>"])
  folder.save(model, tmp_path / "more")
  encoder = SentenceEncoder(tmp_path / "more")
  assert len(encoder.model.tokenizer) == size + 1
  expected = SentenceEncoder(tmp_path / "m").encode(TEXTS)
  np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
  message = f"'An <image>.' has the token <image>, number {size}, and .* has {size}"
  with pytest.raises(UserError, match=message):
    encoder.encode(["A word.", "An <image>."])


def test_a_vocabulary_larger_than_the_encoders_is_refused_with_both_numbers(tmp_path):
  message = f"tokenizer has {400} tokens and its encoder {399}; they belong to"
  with pytest.raises(UserError, match=message):
    made(tmp_path, "bytes for bert", spare=-1)


@pytest.mark.slow
def test_a_recipe_trains_on_the_ids_of_a_tokenizer_that_pads_on_the_left(files):
  path = made(files, "qwen")
  config = recipes.from_files(
    files, "simcse", model=str(path), pooling="lasttoken", max_length=16
  )
  recipe = recipe_lib.read(config, workdir.Workdir(str(files / "run")))
  model = folder.load(str(path))
  tokens = recipe.inputs.tokens(recipe.rounds["simcse"])
  sentences = recipe.inputs.sentences(config, range(8))
  batch = tokens.gather(np.arange(8))
  rows = model_lib.tokenize(model.tokenizer, sentences, 16)
  for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], rows):
    # Tokens first, whichever side the tokenizer pads on.
    assert mask[0].tolist() == [True] * len(row) + [False] * (16 - len(row))
    assert ids[0][mask[0]].tolist() == row
  recipe_lib.train(recipe)
  theirs = sentence_transformers.SentenceTransformer(
    str(files / "run" / "export"), device="cpu"
  )
  ours = SentenceEncoder(files / "run" / "export").encode(TEXTS)
  np.testing.assert_allclose(ours, theirs.encode(TEXTS), atol=1e-5)


def test_a_decoder_is_not_trained_by_its_first_token_which_sees_no_other(files):
  path = made(files, "qwen")
  encoder = files / "encoder"  # It says nothing of its pooling.
  message = r"cls pools the first token, .* qwen3 sees no other: use lasttoken or mean"
  config = recipes.from_files(files, "simcse", model=str(encoder), pooling="cls")
  with pytest.raises(UserError, match=f"round simcse: .*encoder: {message}"):
    recipe_lib.read(config, workdir.Workdir(str(files / "run")))
  config = recipes.from_files(files, recipe=("student",), model=str(path))
  config.rounds.student.teachers = (str(encoder),)
  with pytest.raises(UserError, match=f"teacher .*encoder: {message}"):
    recipe_lib.read(config, workdir.Workdir(str(files / "other")))


def test_a_tokenizer_without_a_mask_token_guesses_no_words(files):
  path = made(files, "qwen")
  config = recipes.from_files(
    files, "simcse", model=str(path), objective="masked_language_model"
  )
  with pytest.raises(UserError, match="round simcse: .*mask"):
    recipe_lib.read(config, workdir.Workdir(str(files / "run")))

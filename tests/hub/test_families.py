"""Folders of every family: written and read, by us, transformers and others."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.sentence_transformer import modules
import torch
import transformers

from dcse_jax import SentenceEncoder
from dcse_jax import config as config_lib
from dcse_jax import convert
from dcse_jax.hub import folder
from dcse_jax.hub import huggingface
from dcse_jax.hub import wordpiece
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import model as model_lib
from dcse_jax.model.family import has_dropout
from dcse_jax.recipe import reading
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.recipe import start as start_lib
from dcse_jax.runtime.errors import UserError
from tests import families
from tests import models
from tests.recipes import TINY
from tests.recipes import from_files
from tests.recipes import load_config
from tests.recipes import tiny

TOKENIZER = wordpiece.train_wordpiece(models.SENTENCES, vocab_size=200)
VOCABULARY = dict(vocab_size=len(TOKENIZER))


def write_folder(path, kind, shape=0, **arguments):
  """Writes a random model as transformers saves it, with a tokenizer."""
  families.make_torch(kind, shape, **arguments, **VOCABULARY).save_pretrained(path)
  TOKENIZER.save_pretrained(path)
  return str(path)


@pytest.mark.parametrize("kind", families.SHAPES)
def test_an_exported_folder_embeds_the_same_in_sentence_transformers(kind, tmp_path):
  loaded = folder.load(write_folder(tmp_path / "theirs", kind), default_pooling="mean")
  folder.save(dataclasses.replace(loaded, max_length=48), tmp_path / "ours")
  # Longer than the window.
  sentences = [*models.SENTENCES[:3], " ".join(models.SENTENCES[:8])]
  ours = SentenceEncoder(tmp_path / "ours").encode(sentences)
  theirs = sentence_transformers.SentenceTransformer(
    str(tmp_path / "ours"), device="cpu"
  )
  np.testing.assert_allclose(ours, theirs.encode(sentences), atol=1e-5)
  _, info = transformers.AutoModel.from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  again = folder.load(str(tmp_path / "ours"))
  assert model_lib.digest(again) == model_lib.digest(loaded)


@pytest.mark.parametrize("kind", families.ENCODERS)
def test_a_masked_language_model_keeps_its_head(kind, tmp_path):
  make = families.ENCODERS[kind]._from_config
  loaded = folder.load(write_folder(tmp_path / "theirs", kind, 1, make=make))
  assert loaded.language_model is not None
  folder.save(loaded, tmp_path / "ours")
  again = folder.load(str(tmp_path / "ours"))
  np.testing.assert_array_equal(
    again.language_model["dense"]["kernel"], loaded.language_model["dense"]["kernel"]
  )
  _, info = families.ENCODERS[kind].from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]


UNTIED = {
  **dict.fromkeys(("bert", "roberta", "mpnet", "nomic_bert", "modernbert"), {}),
  "distilbert": {"hidden_dim": 40},
  "electra": {"embedding_size": 12},
  "albert": {"embedding_size": 12},
}


@pytest.mark.parametrize("kind", UNTIED)
def test_a_matrix_of_scores_of_its_own_is_read_and_written_bitwise(kind, tmp_path):
  config = transformers.AutoConfig.for_model(
    kind,
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    **UNTIED[kind] | ({} if kind == "distilbert" else {"intermediate_size": 40}),
    **VOCABULARY,
    pad_token_id=1 if kind in ("roberta", "mpnet") else 0,
    tie_word_embeddings=False,
  )
  torch.manual_seed(0)
  theirs = transformers.AutoModelForMaskedLM.from_config(config).eval()
  with torch.no_grad():
    # Biases that tied models share are two here.
    for parameter in theirs.parameters():
      parameter.normal_(0.0, 0.2)
  theirs.save_pretrained(tmp_path / "theirs")
  TOKENIZER.save_pretrained(tmp_path / "theirs")
  loaded = folder.load(str(tmp_path / "theirs"))
  words = loaded.params["embeddings"]["word"]["embedding"]
  assert loaded.language_model["decoder"]["embedding"].shape == words.shape
  folder.save(loaded, tmp_path / "ours")
  again, info = type(theirs).from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  ids = torch.arange(5, 15)[None]
  with torch.no_grad():
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits, rtol=0, atol=0)
  # Without the flag the words' matrix takes its place, as in transformers.
  path = tmp_path / "theirs" / "config.json"
  path.write_text(path.read_text().replace('embeddings": false', 'embeddings": true'))
  assert "decoder" not in folder.load(str(tmp_path / "theirs")).language_model


def write_decoder(path, kind):
  """A folder as Qwen3-Embedding's or EmbeddingGemma's: bfloat16, in shards."""
  model = families.make_torch(kind, **VOCABULARY).to(torch.bfloat16)
  model.save_pretrained(path / "shards", max_shard_size="20KB")
  TOKENIZER.save_pretrained(path / "shards")
  encoder = modules.Transformer(str(path / "shards"))
  if kind == "qwen3":
    encoder.tokenizer.padding_side = "left"
    after = [modules.Pooling(24, pooling_mode="lasttoken")]
  else:
    linear = dict(bias=False, activation_function=torch.nn.Identity())
    after = [modules.Pooling(24, pooling_mode="mean")]
    after += [modules.Dense(24, 48, **linear), modules.Dense(48, 24, **linear)]
  folder_ = sentence_transformers.SentenceTransformer(
    modules=[encoder, *after, modules.Normalize()],
    prompts={"query": "the query: ", "document": ""},
    device="cpu",
  )
  folder_.save(str(path / "model"))
  (path / "model" / "model.safetensors").unlink()
  for file in (path / "shards").glob("model*"):
    file.rename(path / "model" / file.name)
  return str(path / "model")


def in_float32(path):
  return sentence_transformers.SentenceTransformer(
    path, device="cpu", model_kwargs={"dtype": torch.float32}
  )


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_a_decoders_folder_in_bfloat16_shards_embeds_as_in_sentence_transformers(
  kind, tmp_path
):
  path = write_decoder(tmp_path, kind)
  assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
  sentences = [*models.SENTENCES[:3], " ".join(models.SENTENCES[:8])]
  ours = SentenceEncoder(path).encode(sentences)
  np.testing.assert_allclose(ours, in_float32(path).encode(sentences), atol=1e-5)
  loaded = folder.load(path)
  assert loaded.language_model is None
  assert loaded.prompts == {"query": "the query: ", "document": ""}
  folder.save(loaded, tmp_path / "ours")
  theirs = in_float32(str(tmp_path / "ours"))
  np.testing.assert_allclose(ours, theirs.encode(sentences), atol=1e-5)


@pytest.mark.slow
def test_a_decoder_learns_from_another_and_has_no_words_to_guess(files, tmp_path):
  student = write_decoder(tmp_path / "student", "qwen3")
  write_folder(tmp_path / "teacher", "gemma3_text", 1)
  config = from_files(
    files,
    model=student,
    recipe=("student",),
    objective="info_nce + distillation",
    teacher_cache="",
  )
  config.rounds.student.update(seeds=(1,), teachers=(str(tmp_path / "teacher"),))
  (trained,) = recipe_lib.run(config, str(tmp_path / "run"))
  assert np.isfinite(trained["test"])
  again = folder.load(str(tmp_path / "run" / "export"))
  before = folder.load(student)
  assert (again.pooling, again.config) == ("lasttoken", before.config)
  moved = np.abs(again.params["norm"]["scale"] - before.params["norm"]["scale"])
  assert moved.max() > 0
  config.rounds.student.objective = "info_nce + distillation + masked_language_model"
  with pytest.raises(UserError, match="is a qwen3, a family without a masked-lang"):
    recipe_lib.run(config, str(tmp_path / "refused"))


def few(kinds, *quick):
  """Marks all but a few as slow."""
  slow = pytest.mark.slow
  return [k if k in quick else pytest.param(k, marks=slow) for k in kinds]


@pytest.mark.parametrize("kind", few(encoder_lib.NEW, "mpnet", "qwen3"))
def test_a_new_encoder_of_every_family_embeds_the_same_in_sentence_transformers(
  kind, tmp_path
):
  config = config_lib.default()
  config.encoder.update(TINY, num_layers=2, family=kind)
  shape = start_lib.new_shape(config, vocab_size=len(TOKENIZER), pad_token_id=0)
  model = model_lib.Model(
    config=shape,
    params=jax.device_get(encoder_lib.init_params(shape, jax.random.key(0))),
    tokenizer=TOKENIZER,
    pooling="mean",
    normalize=False,
    max_length=48,
  )
  assert has_dropout(shape) and shape.max_tokens >= 512
  folder.save(model, tmp_path / "new", convert.verify)
  assert folder.load(str(tmp_path / "new")).config == shape


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind", [k for k in encoder_lib.NEW if k not in ("qwen3", "gemma3_text")]
)
def test_a_new_encoder_is_pretrained_contrasted_and_exported(kind, tmp_path):
  config = tiny(load_config("quickstart"))
  config.encoder = dict(TINY, num_layers=3, family=kind)
  config.synthetic_sentences, config.synthetic_pairs = 200, 60
  words = tmp_path / "words.txt"
  words.write_text("\n".join(models.SENTENCES[:30]))
  config.dev = ("dev", f"masked_words:{words}")
  results = recipe_lib.run(config, str(tmp_path / "run"))
  assert [each["name"] for each in results][-1] == "distilled"
  path = str(tmp_path / "run" / "export")
  assert folder.load(path).config.model_type == kind
  theirs = sentence_transformers.SentenceTransformer(path, device="cpu")
  ours = SentenceEncoder(path).encode(models.SENTENCES[:5])
  np.testing.assert_allclose(ours, theirs.encode(models.SENTENCES[:5]), atol=1e-5)


def test_views_without_dropout_are_warned_of(files, tmp_path, caplog):
  model = write_folder(tmp_path / "modernbert", "modernbert", 1)
  config = from_files(files, model=model)
  rounds = {"base": config_lib.of_round(config, "base")}
  with caplog.at_level(logging.WARNING):
    reading.read(config, rounds, tmp_path / "run")
  assert "has no dropout, so that both views of a sentence are the same" in caplog.text


# What transformers 4 wrote of the published models, but for what changes nothing.
MODERNBERT = dict(
  model_type="modernbert",
  vocab_size=50368,
  hidden_size=768,
  num_hidden_layers=22,
  num_attention_heads=12,
  intermediate_size=1152,
  max_position_embeddings=8192,
  global_attn_every_n_layers=3,
  global_rope_theta=160000.0,
  local_rope_theta=10000.0,
  local_attention=128,
  norm_eps=1e-05,
  layer_norm_eps=1e-05,
  position_embedding_type="absolute",
  pad_token_id=50283,
)
QWEN3 = dict(
  model_type="qwen3",
  vocab_size=151669,
  hidden_size=1024,
  num_hidden_layers=28,
  num_attention_heads=16,
  num_key_value_heads=8,
  head_dim=128,
  intermediate_size=3072,
  max_position_embeddings=32768,
  max_window_layers=28,
  rms_norm_eps=1e-06,
  rope_scaling=None,
  rope_theta=1000000,
  sliding_window=None,
  use_sliding_window=False,
)
GEMMA3 = dict(
  model_type="gemma3_text",
  vocab_size=262144,
  hidden_size=768,
  num_hidden_layers=24,
  num_attention_heads=3,
  num_key_value_heads=1,
  head_dim=256,
  intermediate_size=1152,
  max_position_embeddings=2048,
  _sliding_window_pattern=6,
  attn_logit_softcapping=None,
  final_logit_softcapping=None,
  query_pre_attn_scalar=256,
  rms_norm_eps=1e-06,
  rope_local_base_freq=10000.0,
  rope_scaling=None,
  rope_theta=1000000.0,
  sliding_window=512,
  use_bidirectional_attention=True,
)
NOMIC = dict(
  model_type="nomic_bert",
  vocab_size=30528,
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  head_dim=64,
  intermediate_size=3072,
  max_position_embeddings=2048,
  type_vocab_size=2,
  rope_parameters={"rope_theta": 1000, "rope_type": "default"},
)


def read(tmp_path, fields):
  (tmp_path / "config.json").write_text(json.dumps(fields))
  return huggingface.read_config(tmp_path)


@pytest.mark.parametrize("fields", [MODERNBERT, QWEN3, GEMMA3, NOMIC])
def test_a_config_of_transformers_4_says_what_transformers_5_makes_of_it(
  fields, tmp_path
):
  ours = read(tmp_path, fields)
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  (tmp_path / "5").mkdir()
  theirs.save_pretrained(tmp_path / "5")
  again = huggingface.read_config(tmp_path / "5")
  # transformers keeps half of the window, and writes twice that.
  assert dataclasses.replace(again, pad_token_id=ours.pad_token_id) == ours
  if fields is not NOMIC:
    kinds = theirs.layer_types
    assert [k.reach.before is not None and k.reach.before > 0 for k in ours.kinds] == [
      kind == "sliding_attention" for kind in kinds
    ]


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      dict(MODERNBERT, layer_types=["full_attention"] * 3),
      "layer_types is .*list of 22",
    ),
    (dict(MODERNBERT, layer_types=["chunked"] * 22), "layer_types has 'chunked'"),
    (
      dict(MODERNBERT, rope_parameters={"full_attention": YARN}),
      "full_attention.rope_t",
    ),
    (dict(MODERNBERT, rope_parameters={"other": {}}), "rope_parameters.other"),
    (dict(MODERNBERT, local_rope_theta="a"), "local_rope_theta is 'a'"),
    (dict(MODERNBERT, hidden_activation="xielu"), "hidden_activation is 'xielu'"),
    (dict(MODERNBERT, mlp_bias="no"), "mlp_bias is 'no', not true or false"),
    (dict(MODERNBERT, num_attention_heads=7), "num_attention_heads is 7"),
    (dict(MODERNBERT, unheard_of=1), "unheard_of is 1"),
    (dict(QWEN3, rope_scaling=YARN), "rope_scaling.rope_type is 'yarn'"),
    (dict(QWEN3, num_key_value_heads=5), "num_key_value_heads is 5"),
    (
      dict(QWEN3, rope_parameters={"rope_theta": 1e6, "partial_rotary_factor": 0.5}),
      "rope_parameters.partial_rotary_factor is 0.5",
    ),
    (dict(GEMMA3, attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
    (dict(GEMMA3, model_type="gemma3"), "unknown architecture 'gemma3'.*gemma3_text"),
    (dict(NOMIC, auto_map={"AutoModel": "x"}), "auto_map.*nomic_bert from 5.24 on"),
    (dict(NOMIC, head_dim=32), "head_dim is 32, not 64"),
  ],
)
def test_what_a_config_says_and_nobody_knows_is_refused_by_its_field(
  fields, message, tmp_path
):
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path, fields)
  assert "\n" not in str(error.value)

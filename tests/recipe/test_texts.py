"""What a config says of its text, and embeddings of several files."""

import sys

from absl import flags
from ml_collections import config_flags
import numpy as np
import pytest

from dcse_jax import config as config_lib
from dcse_jax.data import text as text_lib
from dcse_jax.recipe import texts
from dcse_jax.recipe import validate
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers.embeddings import Embeddings

SEVERAL = ("a.txt", "b.parquet*0.3")


@pytest.mark.parametrize(
  "written, text",
  [
    ("my.txt", "my.txt"),
    ("data/*.txt", "data/*.txt"),
    ("hf:a/b:train[:10%]:q", "hf:a/b:train[:10%]:q"),
    ("('a.txt','b.parquet*0.3')", SEVERAL),
    ("['a.txt','b.parquet*0.3']", SEVERAL),
  ],
)
def test_a_command_line_names_one_text_or_several(monkeypatch, written, text):
  arguments = ["main", f"--config.text={written}", "--config.split=sentences:de"]
  # The fields are taken from there when the flag is defined.
  monkeypatch.setattr(sys, "argv", arguments)
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict("config", config_lib.default(), flag_values=values)
  values(arguments)
  config = values.config
  with config.unlocked():
    validate.check(_with_round(config))
  assert texts.source_of(config) == texts.Source(text, split="sentences:de")


def _with_round(config):
  config.recipe = ("base",)
  config.rounds.base = config_lib.round_config((0,))
  return config


@pytest.mark.parametrize(
  "field, value", [("text", 5), ("text", ("a", 5)), ("split", "words"), ("split", 1)]
)
def test_a_text_that_is_no_name_is_refused(field, value):
  config = _with_round(config_lib.default())
  with config.ignore_type():
    config[field] = value
  with pytest.raises(UserError, match=f"config.{field}=.*must"):
    validate.check(config)


def test_a_round_may_have_several_texts_where_its_recipe_has_one():
  config = config_lib.default()
  config.text = "a.txt"
  config.rounds.base = config_lib.round_config((0,), text=SEVERAL)
  assert config_lib.of_round(config, "base").text == SEVERAL


def test_embeddings_have_a_row_for_each_row_of_each_file(tmp_path):
  for name in ("a.txt", "b.txt"):
    (tmp_path / name).write_text("".join(f"{name} {i}\n\n" for i in range(50)))
  names = (f"{tmp_path}/a.txt", f"{tmp_path}/b.txt*0.5")
  values = np.arange(1, 201, dtype=np.float32)[:, None]
  embeddings = Embeddings("t.npy", (values.shape,), values.dtype, lambda: (values,))
  text = text_lib.read_text(names)
  rows = texts.match(embeddings, text, texts.Source(names))
  # Every other line is blank; those of the second file follow 100 of the first.
  expected = {f"a.txt {i}": 2 * i for i in range(50)}
  expected |= {f"b.txt {i}": 100 + 2 * i for i in range(50)}
  assert rows.tolist() == [expected[sentence] for sentence in text.columns[0]]
  assert 50 < len(rows) < 100
  with pytest.raises(UserError, match="t.npy has 200 rows and .* has 100: give"):
    one = text_lib.read_text(names[0])
    texts.match(embeddings, one, texts.Source(names[0]))
  # Sentences of documents are other rows.
  with pytest.raises(UserError, match="split='sentences' makes others of them"):
    texts.match(embeddings, text, texts.Source(names, split="sentences"))

"""Evaluators by their names in a config, while a model trains and after."""

import dataclasses

import jax
import numpy as np
import pytest

from dcse_jax.eval import offline
from dcse_jax.eval import registry
from dcse_jax.eval.evaluator import Evaluator
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.masked_words import MaskedWords
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.recipe import monitor
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from tests import models
from tests.recipes import from_files


@pytest.fixture
def files(tmp_path):
  """A text, held-out sentences, a model and STS sets."""
  (tmp_path / "text.txt").write_text("\n".join(models.SENTENCES[:60]) + "\n")
  (tmp_path / "held.txt").write_text("\n".join(models.SENTENCES[60:90]) + "\n")
  models.write_tiny_folder(tmp_path / "model", num_layers=1)
  for name in ("STSB-dev", "X-test"):
    models.write_sts(tmp_path / "sts", name)
  return tmp_path


def with_head(model, token=None):
  """Gives the model a language-model head that guesses one token, or at random."""
  head = encoder_lib.init_params(
    model.config, jax.random.key(1), heads.LanguageModelHead
  )
  head = jax.device_get(head)
  if token is not None:
    head["bias"] = np.eye(model.config.vocab_size, dtype=np.float32)[token] * 1e6
  return dataclasses.replace(model, language_model=head)


def test_who_always_guesses_one_word_is_right_where_it_is_masked(tmp_path):
  model = models.tiny_model()
  word = model.tokenizer("the")["input_ids"][1]
  # Six words, of which round(0.15 * 6) = 1 is masked: always the one, or never.
  (tmp_path / "all.txt").write_text("the the the the the the\n" * 3)
  (tmp_path / "none.txt").write_text("xx\n")
  places = [str(tmp_path / f"{name}.txt") for name in ("all", "none")]
  evaluator = MaskedWords.read(places, Options())
  scores = offline.score(None, [evaluator], with_head(model, word))
  assert scores["masked_words"] == {"all": 100.0, "none": 0.0, "avg": 50.0}
  with pytest.raises(UserError, match="m has no language_model, which masked_words"):
    offline.score(None, [evaluator], model, "m")


def test_training_chooses_by_what_is_named_and_writes_it_under_its_name(files):
  """Both kinds together: the score is the mean over the names."""
  name = f"masked_words:{files / 'held.txt'}"
  dev = registry.read_named(("STSB-dev", name), str(files / "sts"), dev=True)
  model = with_head(models.tiny_model())
  params = {"encoder": model.params, "language_model": model.language_model}
  scorer = monitor.Scorer(model, dev)
  metrics = scorer.metrics(params)
  assert list(metrics) == [
    "eval/stsb-dev_spearman",
    "eval/alignment",
    "eval/uniformity",
    "eval/masked_words_held",
    "score",
  ]
  both = metrics["eval/stsb-dev_spearman"], metrics["eval/masked_words_held"]
  assert metrics["score"] == pytest.approx(np.mean(both))
  # A round without the head is measured by the others.
  assert "eval/masked_words_held" not in scorer.metrics({"encoder": model.params})
  assert scorer.scores(params) == [{"STSB-dev": both[0]}, {name: both[1]}]
  offline_scores = offline.score(
    None, [MaskedWords.read([str(files / "held.txt")], Options())], model
  )
  assert offline_scores["masked_words"]["held"] == both[1]


@dataclasses.dataclass(frozen=True)
class Letters(Evaluator):
  """An evaluator such as a user might add: it sums a sentence's embedding."""

  kind, form, about, measure = "letters", "DIR", "help", "length"
  place: str

  @classmethod
  def read(cls, places, options):
    return cls(places[0])

  @property
  def columns(self):
    return (self.place,)

  @property
  def sentences(self):
    return (self.place,)

  def score(self, subject):
    value = float(subject.embed([self.place]).sum())
    return {self.place: value, "avg": value}

  def digest(self, column):
    return self.place

  def describe(self):
    return {"title": "Letters", "averaged": [self.place]}


def test_a_kind_of_ones_own_is_one_class_and_one_line(monkeypatch):
  monkeypatch.setitem(registry.EVALUATORS, "letters", Letters)
  (named,) = dev = registry.read_named(("letters:Abc",), "", dev=True)
  model = models.tiny_model()
  metrics = monitor.Scorer(model, dev).metrics({"encoder": model.params})
  embed = monitor.embedder(model, ["Abc"], model.max_length)
  total = float(embed({"encoder": model.params}).sum())
  assert metrics == {"eval/letters_abc": total, "score": total}
  assert named.digests == {"letters:Abc": "Abc"}
  assert offline.score(lambda s: np.ones((1, 3)), [named.evaluator])["letters"] == {
    "Abc": 3.0,
    "avg": 3.0,
  }
  with pytest.raises(UserError, match="would both be eval/letters_abc"):
    registry.read_named(("letters:Abc", "letters:abc"), "", dev=True)


def test_a_name_that_nothing_yields_is_refused_with_what_there_is(files):
  for name in ("nowhere:x", "masked_words:"):
    with pytest.raises(
      UserError, match=f"'{name}': use a set .*transfer:DIR or masked"
    ):
      registry.read_named((name,), "", dev=True)
  with pytest.raises(
    UserError, match="'x:y': .* holds STSB-dev, X-test; or use .*FILE"
  ):
    registry.read_named(("x:y",), str(files / "sts"), dev=True)


def test_masked_words_without_a_round_that_trains_a_head_are_refused(files):
  config = from_files(files, "simcse", dev=(f"masked_words:{files / 'held.txt'}",))
  with pytest.raises(UserError, match="held.txt is measured by a language-model head"):
    recipe_lib.run(config, str(files / "run"))


def test_a_round_is_chosen_by_masked_words_and_says_so_in_its_table(files, capsys):
  name = f"masked_words:{files / 'held.txt'}"
  config = from_files(files, "simcse", sts="", dev=(name,), test=())
  config.objective = "masked_language_model"
  config.rounds.simcse.seeds = (1,)
  (model,) = recipe_lib.run(config, str(files / "run"))
  lines = models.read_jsonl(files / "run/simcse/1/metrics.jsonl")
  found = [x["eval/masked_words_held"] for x in lines if "eval/masked_words_held" in x]
  assert len(found) == 2 and model["dev"] == pytest.approx(max(found))
  assert "accuracy x 100\nmodel" in capsys.readouterr().out

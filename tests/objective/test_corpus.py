"""Clusters, neighbours, switched case and sparsity: what a run does besides losses."""

import dataclasses
import itertools
import logging

import jax
import numpy as np
import pytest
import torch
import transformers

from dcse_jax import config as config_lib
from dcse_jax import losses
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.data.cropping import crop
from dcse_jax.data.switch_case import switch_case
from dcse_jax.hub import folder
from dcse_jax.hub import huggingface
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import heads
from dcse_jax.model import model as model_lib
from dcse_jax.model.family import with_pooler
from dcse_jax.objective import corpus as corpus_lib
from dcse_jax.objective.objective import Objective
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime.errors import UserError
from dcse_jax.train import pruning
from tests import models
from tests.recipes import from_files


@pytest.fixture
def files(tmp_path):
  models.write_tiny_folder(tmp_path / "model", num_layers=1)
  models.write_sts(tmp_path / "sts", "STSB-dev")
  models.write_sts(tmp_path / "sts", "X-test")
  (tmp_path / "text.txt").write_text("\n".join(models.SENTENCES[:60]) + "\n")
  return tmp_path


def directions(degrees):
  angle = np.radians(degrees)
  return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_clusters_hold_what_points_the_same_way_and_are_ranked_by_certainty():
  # Two bundles; 40 degrees is the least sure, nearest to the other bundle.
  embeddings = directions([0, 2, -2, 40, 180, 182, 178]) * 3
  found = corpus_lib.cluster(embeddings, (2, 100), seed=0)
  labels = found["clusters"][:, 0]
  assert len(set(labels[:4])) == 1 and len(set(labels[4:])) == 1
  assert labels[0] != labels[4]
  confidence = found["confidence"][:, 0]
  assert confidence[3] == confidence.min() == 0.0 and confidence.max() <= 1.0
  # No more clusters than sentences.
  assert found["clusters"].shape == (7, 2)


def test_neighbours_are_the_nearest_others_even_among_equals():
  found = corpus_lib.neighbours(directions([0, 0, 0, 10, 90]), 2)["neighbours"]
  assert all(row not in near for row, near in enumerate(found.tolist()))
  assert set(found[0]) == {1, 2} and set(found[1]) == {0, 2}
  assert found[4].tolist()[0] == 3


def contrast(logits, dropped=()):
  kept = [x for i, x in enumerate(logits) if i not in dropped]
  return np.log(np.sum(np.exp(kept))) - logits[0]


def without_false_negatives(anchors, clusters, confidence, progress, **settings):
  return losses.TERMS["incremental_false_negatives"].fn(
    *(anchors, anchors, clusters, clusters, confidence, confidence, progress),
    temperature=0.5,
    **settings,
  )


@pytest.mark.parametrize("progress, dropped", [(0.0, ()), (0.5, (1,)), (1.0, (1, 2))])
def test_more_of_the_anchors_like_are_no_negatives_as_training_goes_on(
  progress, dropped
):
  # Sentences 0 to 2 share a cluster, and 2 is the least sure.
  anchors = directions([0, 30, 60, 90])
  clusters = np.asarray([[1], [1], [1], [2]])
  confidence = np.asarray([[0.9], [0.5], [0.1], [0.2]])
  values = without_false_negatives(anchors, clusters, confidence, progress)
  logits = np.cos(np.radians([0, 30, 60, 90])) / 0.5
  # At 0 only a sentence surer than all others would be sure: there is none.
  assert float(values[0]) == pytest.approx(contrast(logits, dropped), rel=1e-5)


def test_attracted_false_negatives_are_positives_too():
  anchors = directions([0, 30, 60])
  clusters = np.asarray([[1], [1], [2]])
  confidence = np.ones((3, 1))
  values = without_false_negatives(anchors, clusters, confidence, 1.0, mode="attract")
  logits = np.cos(np.radians([0, 30, 60])) / 0.5
  share = logits - np.log(np.sum(np.exp(logits)))
  assert float(values[0]) == pytest.approx(-(share[0] + share[1]) / 2, rel=1e-5)


def test_retrieved_sentences_are_negatives_of_all_but_of_themselves():
  anchors, retrieved = directions([0, 90]), directions([20, 70])
  # What was retrieved for the second is the first's own sentence.
  values = losses.TERMS["retrieved_negatives"].fn(
    anchors,
    anchors,
    np.asarray([7, 8]),
    retrieved,
    np.asarray([3, 7]),
    temperature=0.5,
  )
  cosines = np.cos(np.radians([[0, 90, 20, 70], [0, 90, 70, 20]])) / 0.5
  assert float(values[0]) == pytest.approx(contrast(cosines[0], (3,)), rel=1e-5)
  assert float(values[1]) == pytest.approx(contrast(cosines[1]), rel=1e-5)


@pytest.mark.parametrize("name", ["incremental_false_negatives", "retrieved_negatives"])
def test_terms_of_the_corpus_have_finite_gradients(name):
  rng = np.random.default_rng(0)
  x = np.concatenate([np.zeros((1, 4)), rng.normal(size=(3, 4))]).astype(np.float32)
  ids = np.arange(4)
  rest = {
    "incremental_false_negatives": (ids[:, None] // 2,) * 2 + (np.ones((4, 1)),) * 2,
    "retrieved_negatives": (ids, x, ids[::-1].copy()),
  }[name]
  rest += (1.0,) if name == "incremental_false_negatives" else ()
  gradient = jax.grad(lambda a: losses.TERMS[name].fn(a, a, *rest).sum())(x)
  assert np.isfinite(gradient).all()


# `test_mined` has one whose files are kept, and found again, in the same way.
@pytest.mark.slow
def test_a_run_with_clusters_and_neighbours_goes_on_as_if_uninterrupted(
  files, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("dcse_jax"), "propagate", True)
  config = from_files(
    files,
    "simcse",
    objective="incremental_false_negatives + 0.5 * retrieved_negatives",
  )
  config.rounds.simcse.seeds = (1,)
  config.incremental_false_negatives.update(num_clusters=(2, 4), refresh_every=2)
  config.retrieved_negatives.num_neighbours = 3
  (whole,) = recipe_lib.run(config, str(files / "whole"))
  folder = files / "whole" / "simcse" / "1"
  names = {path.stem.rpartition("-")[0] for path in folder.glob("corpus-*")}
  assert names == {"corpus-clusters-0", "corpus-clusters-2", "corpus-retrieved-0"}
  calls = []
  original = recipe_lib.round_lib.Round._evaluate

  def interrupt(self, seed, params):
    calls.append(seed)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return original(self, seed, params)

  monkeypatch.setattr(recipe_lib.round_lib.Round, "_evaluate", interrupt)
  with pytest.raises(KeyboardInterrupt):
    recipe_lib.run(config, str(files / "cut"))
  assert recipe_lib.run(config, str(files / "cut")) == [whole]
  read = lambda run: (files / run / "simcse/1/model/model.safetensors").read_bytes()
  assert read("cut") == read("whole")
  assert "made anew" not in caplog.text


# --- Switched case and sparsity ---------------------------------------------------


def test_switched_case_changes_first_letters_alone_and_as_many_as_told():
  sentences = ["Alpha beta gamma"] * 1000
  switched = list(switch_case(sentences, 0.2, seed=0))
  assert list(switch_case(sentences, 0.2, seed=0)) == switched
  words = [word for sentence in switched for word in sentence.split(" ")]
  assert {word.lower() for word in words} == {"alpha", "beta", "gamma"}
  changed = sum(word in ("alpha", "Beta", "Gamma") for word in words)
  # 3,000 words at 20 %: 600, sd 22.
  assert abs(changed - 600) < 5 * 22
  assert list(switch_case(["(a) b"], 0.999, seed=1)) == ["(a) B"]


def test_anchor_and_positive_are_spans_of_a_share_of_the_sentence():
  words = [f"w{i}" for i in range(20)]
  pairs = list(crop([" ".join(words)] * 500, 0.4, 0.8))
  assert list(crop([" ".join(words)] * 500, 0.4, 0.8)) == pairs
  starts, lengths = set(), set()
  for span in itertools.chain(*pairs):
    start = words.index(span.split()[0])
    lengths.add(len(span.split()))
    starts.add(start)
    assert span.split() == words[start : start + len(span.split())]
  # Shares of 20 words: 8 to 16, and every place where one of 8 fits.
  assert lengths == set(range(8, 17)) and starts == set(range(13))
  # Both are drawn by themselves: few pairs are alike, of 117 places and lengths.
  assert sum(first == second for first, second in pairs) < 30


def test_short_sentences_keep_four_words_and_writing_without_spaces_is_cut_anywhere():
  assert list(crop(["one two three", ""], 0.2, 0.5)) == [
    ("one two three",) * 2,
    ("", ""),
  ]
  ((first, second),) = crop(["一二三四五六七八九十" * 2], 0.5, 0.5)
  assert len(first) == len(second) == 10 and first in "一二三四五六七八九十" * 2


def test_a_run_on_spans_has_the_loss_of_the_pairs_that_they_are(files):
  """The same spans in two columns of a table train the same model, bit for bit."""
  sentences = (files / "text.txt").read_text().splitlines()
  pairs = ["a\tb", *("\t".join(pair) for pair in crop(sentences, 0.4, 0.8))]
  (files / "pairs.tsv").write_text("\n".join(pairs) + "\n")
  cropped = from_files(files, "simcse", crop=(0.4, 0.8))
  paired = from_files(files, "simcse", columns=("a", "b"))
  paired.text = str(files / "pairs.tsv")
  models = []
  for name, config in (("cropped", cropped), ("paired", paired)):
    recipe_lib.run(config, str(files / name))
    (seed,) = config.rounds.simcse.seeds
    models.append(folder.load(str(files / name / f"simcse/{seed}/model")).params)
  jax.tree.map(np.testing.assert_array_equal, *models)


def test_spans_are_refused_where_there_are_pairs_or_a_teachers_file(files):
  (files / "pairs.tsv").write_text("a\tb\none two\tthree four\n")
  config = from_files(files, "simcse", crop=(0.4, 0.8), columns=("a", "b"))
  config.text = str(files / "pairs.tsv")
  with pytest.raises(UserError, match="a single column, and .* has 2: set crop="):
    recipe_lib.run(config, str(files / "run"))
  config = from_files(files, "simcse", crop=(0.4, 0.8), switch_case=0.1)
  with pytest.raises(UserError, match="both make the positives: set one"):
    recipe_lib.run(config, str(files / "run"))
  rows = len((files / "text.txt").read_text().splitlines())
  np.save(files / "teacher.npy", np.ones((rows, 3), np.float32))
  config = from_files(
    files, "simcse", crop=(0.4, 0.8), objective="embedding_distillation"
  )
  config.rounds.simcse.teachers = (str(files / "teacher.npy"),)
  with pytest.raises(UserError, match="is of whole sentences .* set crop="):
    recipe_lib.run(config, str(files / "run"))


def test_switched_case_is_refused_where_it_would_do_nothing(files):
  config = from_files(files, "simcse", switch_case=0.15)
  with pytest.raises(UserError, match="uncased and would undo it"):
    recipe_lib.run(config, str(files / "run"))


def test_the_least_of_all_matrices_become_zero():
  kernel = lambda *values: {"kernel": np.asarray([values], np.float32)}
  params = {
    "embeddings": kernel(5, 6),
    "layers": {"a": kernel(1, 2), "b": kernel(3, 4)},
  }
  params["layers"]["a"]["bias"] = np.ones(2, np.float32)
  scores = {
    "embeddings": kernel(0, 0),
    "layers": {"a": kernel(9, 1), "b": kernel(2, 8)},
  }
  scores["layers"]["a"]["bias"] = np.zeros(2, np.float32)
  pruned = pruning.prune(params, scores, 0.5)
  assert pruned["layers"]["a"]["kernel"].tolist() == [[1, 0]]
  assert pruned["layers"]["b"]["kernel"].tolist() == [[0, 4]]
  assert pruned["layers"]["a"]["bias"].tolist() == [1, 1]
  assert pruned["embeddings"]["kernel"].tolist() == [[5, 6]]


def test_a_sparse_run_keeps_its_zeros_and_a_later_seed_has_the_same(files):
  config = from_files(files, "simcse", sparsity=0.3)
  zeros = []
  for seeds in ((1,), (1, 2)):
    config.rounds.simcse.seeds = seeds
    recipe_lib.run(config, str(files / "run"))
    params = folder.load(str(files / f"run/simcse/{seeds[-1]}/model")).params
    kernels = [
      leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(params["layers"])
      if path[-1].key == "kernel"
    ]
    zeros.append(np.concatenate([kernel.ravel() == 0 for kernel in kernels]))
  assert zeros[0].sum() == int(0.3 * len(zeros[0]))
  np.testing.assert_array_equal(*zeros)


def test_alignment_and_uniformity_of_a_square():
  # Four corners, each a quarter turn from two others and a half from one.
  anchors = directions([0, 90, 180, 270])
  positives = directions([60, 90, 180, 270])
  values = losses.TERMS["alignment_uniformity"].fn(anchors, positives)
  # A turn by t is a squared distance of 2 - 2 cos t: 2 for a quarter, 4 for a half.
  of_anchors = np.log((2 * np.exp(-2 * 2) + np.exp(-2 * 4)) / 3)
  turns = np.radians([30, 120, 150, 90, 180, 90])
  of_positives = np.log(np.exp(-2 * (2 - 2 * np.cos(turns))).mean())
  # 60 degrees apart is a distance of 1.
  expected = np.asarray([1.0, 0, 0, 0]) + (of_anchors + of_positives) / 2
  np.testing.assert_allclose(values, expected, atol=1e-5)


# --- Replaced tokens ----------------------------------------------------------------


def test_detection_of_replaced_tokens_leaves_padding_out():
  logits = np.asarray([[2.0, -1.0, 50.0]])
  values = losses.TERMS["replaced_token_detection"].fn(
    logits, np.asarray([[True, False, False]]), np.asarray([[True, True, False]])
  )
  expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
  assert float(values[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_words_are_filled_in_by_the_pretrained_round_and_detected(files):
  config = from_files(
    files, "simcse", objective="info_nce + 0.5 * replaced_token_detection"
  )
  config.rounds.simcse.seeds = (1,)
  with pytest.raises(UserError, match="round simcse: replaced_token_detection .*lacks"):
    recipe_lib.run(config, str(files / "run"))
  config.rounds.words = config_lib.round_config(
    (0,), objective="masked_language_model", num_train_steps=4, eval_every=2
  )
  config.rounds.simcse.start = "words"
  config.recipe = ("words", "simcse")
  recipe_lib.run(config, str(files / "run"))
  lines = models.read_jsonl(files / "run/simcse/1/metrics.jsonl")
  # A coin's entropy: little is known after four steps.
  key = "train/replaced_token_detection"
  found = [line[key] for line in lines if key in line]
  assert found[-1] == pytest.approx(np.log(2), abs=0.3)
  # The discriminator is not part of the model, nor is a head that was not trained.
  model = folder.load(str(files / "run/simcse/1/model"))
  assert model.language_model is None
  words = folder.load(str(files / "run/words/0/model"))
  assert words.language_model["bias"].shape == (words.config.vocab_size,)


def test_the_published_form_edits_both_views_wherever_the_language_model_errs(
  monkeypatch,
):
  model = models.tiny_model(0)
  loss_fn = Objective(
    losses.parse(
      "info_nce + replaced_token_detection",
      {"replaced_token_detection": {"edits": "published"}},
    ),
    config=model.config,
    pooling="cls",
    mask_token_id=4,
    special_token_ids=(0, 1, 2, 3, 4),
  )
  head = encoder_lib.init_params(
    model.config, jax.random.key(1), heads.LanguageModelHead
  )
  params = loss_fn.init_params(model.params, jax.random.key(0))
  frozen = loss_fn.frozen_params(model.params, head)
  shown, told = {}, {}
  detect = encoder_lib.detect_replaced

  def spy(params, config, ids, mask, embeddings, **kwargs):
    shown.update(ids=ids, mask=mask, embeddings=embeddings)
    return detect(params, config, ids, mask, embeddings, **kwargs)

  monkeypatch.setattr(encoder_lib, "detect_replaced", spy)
  term = losses.TERMS["replaced_token_detection"]

  def listen(**arguments):
    told.update({name: arguments[name] for name in ("is_replaced", "is_token")})
    return term.fn(**arguments)

  weighted = dataclasses.replace(
    loss_fn.terms[1], term=dataclasses.replace(term, fn=listen)
  )
  loss_fn = dataclasses.replace(loss_fn, terms=(loss_fn.terms[0], weighted))
  batch = models.random_batch(0)

  @jax.jit
  def run(params, batch):
    models.called(loss_fn)(params, batch, jax.random.key(2), frozen)
    return shown, told

  shown, told = jax.device_get(run(params, batch))
  words, mask = (
    np.repeat(batch[n], 2, axis=1) for n in ("input_ids", "attention_mask")
  )
  ids = shown["ids"].reshape(words.shape)
  np.testing.assert_array_equal(shown["mask"].reshape(words.shape), mask)
  # The first token stays, padding is padding, and what a random head says is seldom
  # the word, in all other places and not at the chosen 30 % alone.
  np.testing.assert_array_equal(ids[:, :, 0], words[:, :, 0])
  assert (ids[~mask] == 0).all()
  changed = (ids != words) & mask
  assert changed[:, :, 1:].sum() > 0.9 * mask[:, :, 1:].sum()
  assert (ids[:, 0] != ids[:, 1]).any()  # The views are masked differently.
  # Both views side by side, and padding counts as not replaced.
  np.testing.assert_array_equal(told["is_replaced"], changed.reshape(8, -1))
  assert told["is_token"].all() and told["is_token"].shape == (8, 2 * 12)
  assert shown["embeddings"].shape == (16, 16)


@pytest.mark.parametrize("search_pooling, pooling", [("model", None), ("mean", "mean")])
def test_neighbours_are_searched_by_the_models_pooling_or_by_the_mean(
  tmp_path, search_pooling, pooling
):
  tokens = tokens_lib.build_token_cache(
    tmp_path / "cache",
    [models.SENTENCES[:9]],
    tokenize=lambda s: model_lib.tokenize(models.tiny_model().tokenizer, s, 12),
    tokenizer_state="",
    max_length=12,
    pad_token_id=0,
    vocab_size=200,
  )
  asked = []

  def embed(params, sentences, pooling):
    asked.append((params, len(sentences), pooling))
    return directions(range(0, 90, 10))

  settings = {"num_neighbours": 2, "search_pooling": search_pooling}
  corpus = corpus_lib.Corpus(
    tmp_path, tokens, embed, {"retrieved": settings}, lambda: None, seed=0
  )
  joined = corpus.join({"example_id": np.arange(9)}, 0, lambda: "parameters")
  assert asked == [("parameters", 9, pooling)]
  assert joined["retrieved_input_ids"].shape == (9, 12)


def test_weights_are_judged_before_a_projection_that_is_new(files, monkeypatch):
  models.write_tiny_folder(files / "cls", num_layers=1, pooling="cls")
  config = from_files(files, "simcse", model=str(files / "cls"), sparsity=0.3)
  config.rounds.simcse.seeds = (1,)
  judged = []
  original = pruning.contributions

  def contributions(loss_fn, encoder, batches, rng):
    judged.append(sorted(loss_fn.init_params(encoder, rng)))
    return original(loss_fn, encoder, batches, rng)

  monkeypatch.setattr(pruning, "contributions", contributions)
  recipe_lib.run(config, str(files / "run"))
  assert judged == [["encoder"]]


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_language_models_head_comes_from_transformers_and_goes_back(tmp_path, kind):
  shape = dict(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=40,
  )
  torch.manual_seed(0)
  config = getattr(transformers, f"{kind}Config")(**shape)
  theirs = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
  torch.nn.init.normal_(
    theirs.cls.predictions.bias if kind == "Bert" else theirs.lm_head.bias
  )
  theirs.save_pretrained(tmp_path)
  # A model with this head has no pooler.
  ours = with_pooler(huggingface.read_config(tmp_path), False)
  tensors = read_tensors(tmp_path)
  head = huggingface.language_model_from_tensors(tensors, ours)
  params = huggingface.from_tensors(tensors, ours)
  ids = np.arange(5, 15)[None]
  with torch.no_grad():
    expected = theirs(torch.tensor(ids), torch.ones(1, 10)).logits.numpy()
  hidden = encoder_lib.hidden_states(params, ours, ids, np.ones((1, 10), bool))[-1]
  logits = encoder_lib.score_tokens(head, params, ours, hidden)
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  back = huggingface.language_model_to_tensors(head, ours)
  for name, tensor in back.items():
    np.testing.assert_array_equal(tensor, tensors[name])

"""BERT's kin against transformers: states, gradients, folders, heads, training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import sentence_transformers
import torch
import transformers
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from dcse_jax import SentenceEncoder
from dcse_jax import convert
from dcse_jax.ahead import abstract_step
from dcse_jax.hub import folder
from dcse_jax.hub import huggingface
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.model import albert
from dcse_jax.model import bert
from dcse_jax.model import electra
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import flops
from dcse_jax.model import mpnet
from dcse_jax.model.packing import Packing
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import backend
from dcse_jax.runtime import mesh as mesh_lib
from tests import models
from tests import recipes
from tests import vocabularies

# Width, layers, heads and the feed-forward layer's width.
SHAPE, *OTHERS = (24, 3, 4, 40), (16, 1, 2, 64), (36, 2, 3, 20)
LENGTHS = np.asarray([16, 9, 2, 1])


@dataclasses.dataclass(frozen=True)
class Family:
  """A family as transformers has it.

  Attributes:
    config: from a shape, vocab_size and the rest.
    vocabulary: a key of `vocabularies.KINDS`.
    fields: fields of its config besides the shape.
    names: what it calls the four numbers of a shape.
  """

  config: type
  vocabulary: str
  fields: dict = dataclasses.field(default_factory=dict)
  names: tuple = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
  )

  def make(self, shape, vocab_size=120):
    shape = dict(zip(self.names, shape))
    fields = {"max_position_embeddings": 40, **self.fields}
    return self.config(vocab_size=vocab_size, **shape, **fields)


FAMILIES = {
  "mpnet": Family(transformers.MPNetConfig, "roberta"),
  "distilbert": Family(
    transformers.DistilBertConfig,
    "bert",
    {"activation": "relu"},
    ("dim", "n_layers", "n_heads", "hidden_dim"),
  ),
  "electra": Family(transformers.ElectraConfig, "bert", {"embedding_size": 12}),
  "albert": Family(transformers.AlbertConfig, "bert", {"embedding_size": 12}),
}

SLOW = pytest.mark.slow
EACH = [pytest.param(name, marks=() if name == "mpnet" else SLOW) for name in FAMILIES]


def random_torch(config, kind=transformers.AutoModel):
  """A PyTorch model whose biases and LayerNorm weights are random too."""
  torch.manual_seed(0)
  model = kind.from_config(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "norm" in name.lower() and name.endswith("weight"):
        parameter.uniform_(0.5, 1.5)
      else:
        parameter.normal_(0.0, 0.2)
  return model


def read(path):
  config = huggingface.read_config(path)
  return huggingface.from_tensors(read_tensors(path), config), config


def rows(lengths, pad_token_id, *, side="right"):
  mask = np.arange(16) < np.asarray(lengths)[:, None]
  mask = mask[:, ::-1] if side == "left" else mask
  ids = np.random.default_rng(0).integers(5, 120, mask.shape)
  return np.where(mask, ids, pad_token_id), mask


def states_of(model, ids, mask):
  with torch.no_grad():
    states = model(
      input_ids=torch.tensor(ids),
      attention_mask=torch.tensor(mask.astype(int)),
      output_hidden_states=True,
    ).hidden_states
  return [state.numpy() for state in states]


@pytest.fixture(scope="module", params=EACH)
def saved(request, tmp_path_factory):
  """A family with a PyTorch model of the first shape and the folder of it."""
  family = FAMILIES[request.param]
  model = random_torch(family.make(SHAPE))
  path = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(path)
  return family, model, path


@pytest.mark.parametrize(
  "shape", [SHAPE, *(pytest.param(shape, marks=SLOW) for shape in OTHERS)], ids=str
)
@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_transformers_of_three_shapes_padded_packed_and_full(
  name, shape, tmp_path
):
  model = random_torch(FAMILIES[name].make(shape))
  model.save_pretrained(tmp_path)
  params, config = read(tmp_path)
  compute = functools.partial(encoder_lib.hidden_states, params, config)
  compute = jax.jit(compute, static_argnames="packing")
  packing = Packing(int(LENGTHS.sum()) + 1)
  for lengths, side, packings in (
    (LENGTHS, "right", (None, packing)),
    (LENGTHS, "left", (None,)),
    ([16] * 4, "right", (None,)),
  ):
    ids, mask = rows(lengths, config.pad_token_id, side=side)
    theirs = states_of(model, ids, mask)
    for form in packings:
      ours = compute(ids, mask, packing=form)
      for one, other in zip(ours, (theirs[0], theirs[-2], theirs[-1])):
        np.testing.assert_allclose(np.asarray(one)[mask], other[mask], atol=1e-5)


def test_distances_fall_into_transformers_buckets_at_any_length():
  place = torch.arange(512)
  distances = place[None] - place[:, None]
  theirs = MPNetEncoder.relative_position_bucket(distances)
  np.testing.assert_array_equal(mpnet.buckets(512), theirs.numpy())


def test_single_tokens_and_bfloat16_give_the_states_of_all_in_float32(saved):
  _, model, path = saved
  params, config = read(path)
  ids, mask = rows(LENGTHS, config.pad_token_id)
  theirs = states_of(model, ids, mask)[-1]
  places = np.asarray([[3, 15], [8, 0], [1, 0], [0, 0]])
  compute = functools.partial(encoder_lib.states_at, params, config, ids, mask)
  compute = jax.jit(compute, static_argnames="dtype")
  some = compute(places)
  expected = np.take_along_axis(theirs, places[..., None], axis=1)
  np.testing.assert_allclose(some, expected, atol=1e-5)
  rough = np.asarray(compute(places, dtype=jnp.bfloat16), np.float32)
  # Eight bits of a state of size 1, through three layers.
  np.testing.assert_allclose(rough, expected, atol=0.15)
  assert np.abs(rough - expected).mean() < 0.02


def test_gradients_of_all_parameters_are_pytorchs(saved):
  _, model, path = saved
  params, config = read(path)
  ids, mask = rows(LENGTHS, config.pad_token_id)
  weights = np.random.default_rng(1).normal(size=(*mask.shape, config.hidden_size))
  weights = (weights * mask[..., None]).astype(np.float32)

  def loss(params):
    *_, states = encoder_lib.hidden_states(params, config, ids, mask)
    return (states * weights).sum()

  on_cpu = huggingface.to_tensors(jax.jit(jax.grad(loss))(params), config)
  # Layers in a loop. The loss is traced anew.
  with backend.traced_for("gpu"):
    in_loop = jax.jit(jax.grad(lambda params: loss(params)))(params)
  in_loop = huggingface.to_tensors(in_loop, config)
  model.zero_grad()
  states = model(torch.tensor(ids), torch.tensor(mask.astype(int))).last_hidden_state
  (states * torch.tensor(weights)).sum().backward()
  # The pooler takes no part.
  theirs = {k: p.grad for k, p in model.named_parameters() if "pooler" not in k}
  assert theirs.keys() == {k for k in on_cpu if "pooler" not in k}
  for name, gradient in theirs.items():
    gradient = gradient.numpy()
    atol = 2e-5 * max(np.abs(gradient).max(), 1)
    for ours in (on_cpu, in_loop):
      np.testing.assert_allclose(ours[name], gradient, atol=atol, err_msg=name)


def test_weights_come_back_bitwise_and_a_cut_model_is_the_first_layers(saved):
  _, model, path = saved
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  params, config = read(path)
  back = huggingface.to_tensors(params, config)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)
  ids, mask = rows(LENGTHS, config.pad_token_id)
  theirs = states_of(model, ids, mask)[2]
  params, config = encoder_lib.keep_layers(params, config, 2)
  compute = jax.jit(lambda p: encoder_lib.hidden_states(p, config, ids, mask))
  *_, last = compute(params)
  np.testing.assert_allclose(np.asarray(last)[mask], theirs[mask], atol=1e-5)


@pytest.mark.parametrize(
  "name, is_tied", [*((name, True) for name in FAMILIES), ("albert", False)]
)
def test_a_masked_language_models_head_is_read_scores_alike_and_is_written(
  name, is_tied, tmp_path
):
  family = FAMILIES[name]
  tokenizer = vocabularies.KINDS[family.vocabulary]()
  config = family.make(SHAPE, len(tokenizer))
  config.tie_word_embeddings = is_tied
  model = random_torch(config, transformers.AutoModelForMaskedLM)
  model.save_pretrained(tmp_path / "theirs")
  tokenizer.save_pretrained(tmp_path / "theirs")
  read = folder.load(str(tmp_path / "theirs"))
  ids, mask = rows(LENGTHS, read.config.pad_token_id)

  @jax.jit
  def score(params, head):
    *_, states = encoder_lib.hidden_states(params, read.config, ids, mask)
    return encoder_lib.score_tokens(head, params, read.config, states)

  scores = score(read.params, read.language_model)
  feed = torch.tensor(ids), torch.tensor(mask.astype(int))
  with torch.no_grad():
    expected = model(*feed).logits.numpy()
  np.testing.assert_allclose(np.asarray(scores)[mask], expected[mask], atol=1e-4)
  folder.save(read, tmp_path / "ours")
  again = transformers.AutoModelForMaskedLM.from_pretrained(
    tmp_path / "ours", architectures=model.config.architectures
  )
  with torch.no_grad():
    np.testing.assert_array_equal(again.eval()(*feed).logits.numpy(), expected)


@pytest.mark.parametrize("name", EACH)
def test_an_export_embeds_the_same_in_both_libraries_and_round_trips_bitwise(
  name, tmp_path
):
  family = FAMILIES[name]
  tokenizer = vocabularies.KINDS[family.vocabulary]()
  random_torch(family.make(SHAPE, len(tokenizer))).save_pretrained(tmp_path / "m")
  tokenizer.save_pretrained(tmp_path / "m")
  model = folder.load(str(tmp_path / "m"), pooling="mean")
  folder.save(model, tmp_path / "export", convert.verify)
  sentences = [*models.SENTENCES[:5], "A word.", "", models.SENTENCES[0] * 9]
  ours = SentenceEncoder(tmp_path / "export").encode(sentences)
  theirs = sentence_transformers.SentenceTransformer(
    str(tmp_path / "export"), device="cpu"
  )
  np.testing.assert_allclose(ours, theirs.encode(sentences), atol=1e-5)
  _, info = transformers.AutoModel.from_pretrained(
    tmp_path / "export", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  folder.save(folder.load(str(tmp_path / "export")), tmp_path / "again")
  read = lambda which: (tmp_path / which / "model.safetensors").read_bytes()
  assert read("again") == read("export")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_model_is_compiled_ahead_trained_and_exported(name, files):
  family = FAMILIES[name]
  tokenizer = vocabularies.KINDS[family.vocabulary]()
  theirs = random_torch(
    family.make(SHAPE, len(tokenizer)), transformers.AutoModelForMaskedLM
  )
  theirs.save_pretrained(files / "theirs")
  tokenizer.save_pretrained(files / "theirs")
  config = recipes.from_files(
    files,
    "simcse",
    model=str(files / "theirs"),
    num_layers=2,
    pooling="mean",
    objective="info_nce + 0.1 * masked_language_model",
  )
  recipe_lib.run(config, str(files / "run"))
  start = folder.load(str(files / "theirs"), num_layers=2)
  trained = folder.load(str(files / "run" / "export"))
  assert convert.verify(files / "run" / "export") <= 1e-5
  assert trained.config.num_layers == 2
  for path, leaf in jax.tree.leaves_with_path(trained.params):
    before = functools.reduce(lambda tree, key: tree[key.key], path, start.params)
    assert leaf.shape == before.shape
    if "pooler" not in jax.tree_util.keystr(path):
      assert np.abs(leaf - before).max() > 0, path
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  step = abstract_step.make_abstract_step(config, "simcse", mesh)
  state = step.arguments[0]
  shapes = lambda tree: {
    jax.tree_util.keystr(path): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(tree)
    if "pooler" not in jax.tree_util.keystr(path)
  }
  assert shapes(state.params["encoder"]) == shapes(trained.params)
  assert step.step_fn.lower(*step.arguments, None).as_text()


def test_flops_are_berts_and_those_of_the_layer_between():
  lengths = dict(sentences=4, length=10, squared_length=110)
  shape = dict(
    vocab_size=50,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    intermediate_size=40,
    max_positions=40,
    type_vocab_size=2,
  )
  count = lambda module, **fields: flops.encoder_flops(
    module.EncoderConfig(model_type="", **shape, **fields), **lengths
  )
  plain = count(bert)
  assert count(mpnet) == plain
  # One product of [12] with [12, 24] a token, two FLOPs a multiplication.
  assert count(electra, embedding_size=12) - plain == 40 * 2 * 12 * 24
  assert count(electra, embedding_size=24) == plain
  assert count(albert, embedding_size=24) - plain == 40 * 2 * 24 * 24

"""Teachers with dense layers, truncated embeddings and prompts."""

import dataclasses

import numpy as np
import pytest
import sentence_transformers

from dcse_jax.hub import folder
from dcse_jax.model.heads import Head
from dcse_jax.model.vectors import unit_length
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.runtime import workdir
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.teachers import teaching as teaching_lib
from tests import models
from tests.recipes import from_files


def write_teacher(path, activations, truncate_dim, normalize):
  """A folder of a teacher whose dense layers are 16 to 24 to 12 wide; its path."""
  rng, head = np.random.default_rng(0), None
  sizes = [(16, 24), (24, 12)][: len(activations)]
  for (d_in, d_out), activation in reversed(list(zip(sizes, activations))):
    kernel = rng.normal(size=(d_in, d_out), scale=0.3).astype(np.float32)
    bias = rng.normal(size=d_out).astype(np.float32)
    head = Head(kernel, bias, activation, then=head)
  model = dataclasses.replace(
    models.tiny_model(3, num_layers=1),
    head=head,
    truncate_dim=truncate_dim,
    normalize=normalize,
    prompts={"query": "the query: "},
    default_prompt="query",
  )
  folder.save(model, path, overwrite=True)
  return str(path)


@pytest.mark.parametrize(
  "activations, truncate_dim, normalize",
  [
    (("Tanh", "Identity"), 7, True),
    (("Sigmoid", "ReLU"), None, False),
    (("Identity",), None, True),
    ((), 5, True),
  ],
)
def test_a_teacher_says_what_sentence_transformers_says_of_it(
  files, activations, truncate_dim, normalize
):
  path = write_teacher(files / "t", activations, truncate_dim, normalize)
  config = from_files(files, recipe=("student",), max_length=32)
  config.rounds.student.update(teachers=(path,), seeds=(1,))
  recipe = recipe_lib.read(config, workdir.Workdir(str(files / "run")))
  student = recipe.rounds["student"]
  model, tokens = (
    recipe.inputs.outside[path],
    recipe.inputs.teacher_tokens(path, student),
  )
  wanted = np.arange(8)
  theirs = sentence_transformers.SentenceTransformer(path, device="cpu")
  expected = unit_length(theirs.encode(recipe.inputs.sentences(student, wanted)))
  teacher = teaching_lib.Teacher("t", model, 1.0, tokens)
  online = teaching_lib.online([teacher], recipe.inputs.tokens(student), "float32")
  cached = teaching_lib.cached(
    [teacher], files / "cache", dtype="float32", compute_dtype="float32"
  )
  for teaching in (online, cached):
    batch = recipe.inputs.tokens(student).gather(wanted)
    for source in teaching.sources:
      batch |= source.gather(wanted)
    found = stacks_lib.teacher_embeddings(
      teaching.params, teaching.stacks, batch, dtype=np.float32
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(stack.size for stack in teaching.stacks) == expected.shape[1]


@pytest.mark.slow
def test_a_student_of_a_teacher_with_dense_layers_and_of_a_round_that_keeps_its_own(
  files,
):
  path = write_teacher(files / "t", ("Tanh", "Identity"), None, True)
  config = from_files(files, recipe=("student", "second"), keep_head=True)
  with config.unlocked():
    config.objective = "embedding_distillation"
    config.rounds.student.update(
      teachers=(path,), seeds=(1,), objective="embedding_distillation"
    )
    config.rounds.second.update(
      teachers=("student",), seeds=(1,), objective="embedding_distillation"
    )
  recipe_lib.run(config, str(files / "run"))
  for name in ("student", "second"):
    # The teacher is 12 wide, and so is what its student serves.
    assert folder.load(str(files / "run" / name / "1/model")).embedding_size == 12

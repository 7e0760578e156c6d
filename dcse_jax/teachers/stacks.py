"""Frozen teachers: many in one jitted forward, and their averaged cosines.

Teachers of one shape that read the same token ids form one stack: a tree of
parameters with a leading axis. Others form stacks of their own. Teachers whose
embeddings are in a cache need no forward pass: these come with the batch.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax import losses
from dcse_jax.data.tokens import TokenCache
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import pooling as pooling_lib
from dcse_jax.model.chunks import Chunks
from dcse_jax.model.model import Model
from dcse_jax.model.packing import Packing
from dcse_jax.runtime import backend

# The activations of dense layers, as in `heads.Head`.
_ACTIVATIONS = {
  "Tanh": jnp.tanh,
  "Identity": lambda x: x,
  "ReLU": jax.nn.relu,
  "Sigmoid": jax.nn.sigmoid,
}

# How a stack runs on a backend, by measurement (benchmarks/teachers.py): "scan"
# is one teacher after the other in a compiled loop, "vmap" all in each matrix
# product, "unrolled" one after the other in straight-line code. Where nothing
# was measured it is "scan": it needs the memory of one teacher's activations.
_FORMS = {"cpu": "scan"}


@dataclasses.dataclass(frozen=True)
class TeacherStack:
  """The static description of teachers of one shape.

  Attributes:
    weights: each teacher's in the average; over all stacks they sum to 1.
    tokens: which of the batch's `teacher_tokens` they read; None for the student's
      own.
    activations: those of the dense layers after the pooling, in order.
    width: how many leading numbers of what comes out are kept; None keeps what the
      pooling gives.
  """

  config: encoder_lib.EncoderConfig
  pooling: str
  weights: tuple[float, ...]
  tokens: int | None = None
  activations: tuple[str, ...] = ()
  width: int | None = None

  @property
  def size(self) -> int:
    """The width of the teachers' embeddings, side by side."""
    pooled = pooling_lib.embedding_size(self.config, self.pooling)
    return len(self.weights) * (self.width or pooled)


@dataclasses.dataclass(frozen=True)
class CachedTeachers:
  """Teachers whose embeddings are the batch's `teacher_embeddings`, side by side.

  Attributes:
    widths: the width of each teacher's embeddings.
    weights: each teacher's in the average; they sum to 1.
  """

  widths: tuple[int, ...]
  weights: tuple[float, ...]

  @property
  def size(self) -> int:
    """The width of the teachers' embeddings, side by side."""
    return sum(self.widths)


class TeacherTokens:
  """The token ids of teachers with tokenizers of their own.

  Args:
    caches: token caches of the student's sentences, with the same example ids.
  """

  def __init__(self, caches: Sequence[TokenCache]):
    self._caches = caches

  def gather(self, rows: np.ndarray) -> dict[str, Any]:
    """Returns `teacher_tokens`: each cache's ids and mask, by name, [B, 1, S]."""
    batches = (cache.gather(rows) for cache in self._caches)
    names = ("input_ids", "attention_mask")
    return {"teacher_tokens": tuple({name: b[name] for name in names} for b in batches)}


def stack_teachers(
  models: Sequence[Model],
  weights: Sequence[float],
  tokens: Sequence[int | None] | None = None,
  *,
  total: float | None = None,
  dtype: Any = jnp.float32,
) -> tuple[tuple[TeacherStack, ...], tuple[encoder_lib.Params, ...]]:
  """Groups teachers by shape and by what they read.

  Args:
    models: the teachers.
    weights: one for each teacher, in any unit.
    tokens: for each teacher `TeacherStack.tokens`; None if all read the student's.
    total: the sum of all weights where other teachers have some; None for that of
      these.
    dtype: that of the parameters. The dtype of the matrix products loses nothing;
      bfloat16 takes half the memory of float32.

  Returns:
    The stacks and, in the same order, their parameters with a leading axis of
    teachers.
  """
  tokens = tokens or [None] * len(models)
  total = sum(weights) if total is None else total
  groups: dict[tuple, list[int]] = {}
  for i, model in enumerate(models):
    layers = tuple((each.kernel.shape, each.activation) for each in model.dense_layers)
    shape = (model.config, model.pooling, tokens[i], layers, model.truncate_dim)
    groups.setdefault(shape, []).append(i)
  stacks, params = [], []
  for (config, pooling, source, layers, _), members in groups.items():
    shares = tuple(float(weights[i] / total) for i in members)
    activations = tuple(activation for _, activation in layers)
    width = models[members[0]].embedding_size
    stacks.append(TeacherStack(config, pooling, shares, source, activations, width))
    params.append(
      jax.tree.map(
        lambda *x: np.stack(x).astype(dtype), *(_params(models[i]) for i in members)
      )
    )
  return tuple(stacks), tuple(params)


def _params(model: Model) -> encoder_lib.Params:
  """Returns an encoder's parameters, with those of dense layers as `head`."""
  if not model.head:
    return model.params
  layers = [{"kernel": e.kernel, "bias": e.bias} for e in model.dense_layers]
  return {**model.params, "head": layers}


def _finish(
  stack: TeacherStack, layers: Sequence[Mapping[str, jax.Array]], pooled: jax.Array
) -> jax.Array:
  """Computes what follows the pooling, as `Model.finish` does, without normalising."""
  for layer, activation in zip(layers, stack.activations):
    kernel, bias = (layer[name].astype(jnp.float32) for name in ("kernel", "bias"))
    pooled = _ACTIVATIONS[activation](pooled @ kernel + bias)
  return pooled[:, : stack.width]


def run_stack(
  embed: Callable[[encoder_lib.Params], jax.Array],
  params: encoder_lib.Params,
  form: str | None = None,
) -> jax.Array:
  """Computes embeddings by every teacher of a stack, [T, B, D].

  Args:
    embed: computes embeddings from one teacher's parameters, [B, D].
    params: the stack's.
    form: "scan", "vmap" or "unrolled"; None takes what suits the backend.
  """
  form = form or _FORMS.get(backend.current(), "scan")
  size = jax.tree.leaves(params)[0].shape[0]
  if form == "vmap":
    return jax.vmap(embed)(params)
  if form == "unrolled" or size == 1:
    return jnp.stack(
      [embed(jax.tree.map(lambda x, i=i: x[i], params)) for i in range(size)]
    )
  return jax.lax.map(embed, params)


def teacher_embeddings(
  params: Sequence[encoder_lib.Params],
  stacks: Sequence[TeacherStack | CachedTeachers],
  batch: Mapping[str, Any],
  *,
  column: int = 0,
  dtype,
  packing: Packing | None = None,
  microbatches: Chunks = Chunks(),
) -> jax.Array:
  """Computes the teachers' joint embeddings of one column of a batch.

  Args:
    params: those of each stack; anything for cached teachers.
    stacks: from `stack_teachers`, or `CachedTeachers`.
    batch: `input_ids` and `attention_mask`, [B, C, S]; and, where a stack asks
      for them, `teacher_tokens` or `teacher_embeddings`.
    column: the column; `teacher_tokens` and `teacher_embeddings` have the first alone.
    dtype: that of the matrix products.
    packing: that of a microbatch's first column, or of all columns; `teacher_tokens`
      keep their padding.
    microbatches: how the batch is encoded.

  Returns:
    [B, sum of D_t] float32, of unit length, without dropout, projection or
    gradient: its cosines are the weighted mean of the teachers' raw cosines.
  """
  embeddings, weights = [], []
  for stack_params, stack in zip(params, stacks):
    weights.extend(stack.weights)
    if isinstance(stack, CachedTeachers):
      side_by_side = batch["teacher_embeddings"].astype(jnp.float32)
      ends = np.cumsum(stack.widths[:-1]).tolist()
      embeddings.extend(jnp.split(side_by_side, ends, axis=1))
      continue
    read = batch if stack.tokens is None else batch["teacher_tokens"][stack.tokens]

    def embed(teacher, stack=stack, read=read):
      encoder = {name: part for name, part in teacher.items() if name != "head"}
      encode = lambda rows, numbers: encoder_lib.encode(
        encoder,
        stack.config,
        rows["input_ids"],
        rows["attention_mask"],
        pooling=stack.pooling,
        dtype=dtype,
        packing=packing if stack.tokens is None else None,
      )
      first = {name: read[name][:, column] for name in ("input_ids", "attention_mask")}
      return _finish(stack, teacher.get("head", ()), microbatches.map(encode, first))

    embeddings.extend(run_stack(embed, stack_params))
  return jax.lax.stop_gradient(losses.join_teachers(embeddings, weights))

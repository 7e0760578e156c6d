"""Kernels against the plain forms that they stand for, with dropout: errors and times."""

from collections.abc import Callable
import types

import jax
import jax.numpy as jnp

from benchmarks.accelerator import checks
from benchmarks.accelerator import device
from dcse_jax.model import attention_kernel
from dcse_jax.model import bert
from dcse_jax.model import norm_kernel
from dcse_jax.model import ops
from dcse_jax.model.dropout import dropout

_LENGTH, _HEADS, _WIDTH, _RATE, _EPS = 32, 12, 768, 0.1, 1e-12


def measure(sentences: int) -> dict[str, float]:
  """Runs each kernel and its plain form on random states, forward and backward.

  Returns:
    Of each the relative errors of results and gradients in bfloat16, against the plain
    form in float32, and the ms of both passes.
  """
  keys = jax.random.split(jax.random.key(0), 5)
  shape = (sentences, _LENGTH, _WIDTH)
  states = lambda key, *s: jax.random.normal(key, s or shape, jnp.bfloat16)
  rows = jnp.arange(sentences * _LENGTH, dtype=jnp.int32).reshape(shape[:2])
  qkv = states(keys[0], *shape[:2], 3 * _WIDTH)
  bias = 0.1 * jax.random.normal(keys[2], (3 * _WIDTH,))
  found = _compare("attention", *_attention(rows), (qkv, bias), states(keys[1]))
  flat = lambda x: x.reshape(-1, _WIDTH)
  weight = 1.0 + 0.1 * jax.random.normal(keys[2], (_WIDTH,))
  branch = (flat(states(keys[4])), weight - 1.0)
  arguments = (flat(states(keys[3])), *branch, weight, weight - 1.0)
  plain, kernel = _norm(rows.reshape(-1))
  return found | _compare("norm", plain, kernel, arguments, flat(states(keys[1])))


def _attention(rows) -> tuple[Callable, Callable]:
  settings = {"num_heads": _HEADS, "attention_dropout": _RATE}
  layer = types.SimpleNamespace(config=types.SimpleNamespace(**settings))
  mask = jnp.arange(_LENGTH) < 8 + rows[:, :1] % 25
  key = jnp.asarray([1, 2], jnp.uint32)

  def plain(qkv, bias):
    parts = jnp.split(qkv + bias.astype(qkv.dtype), 3, axis=-1)
    return bert.Layer._attend(layer, *parts, mask, rows, key, None)

  def kernel(qkv, bias):
    return attention_kernel.self_attend(
      qkv, bias, mask, rows, heads=_HEADS, rate=_RATE, key=key
    )

  return plain, kernel


def _norm(rows) -> tuple[Callable, Callable]:
  key = jnp.asarray([1, 2], jnp.uint32)

  def plain(x, branch, branch_bias, weight, bias):
    branch = branch + branch_bias.astype(branch.dtype)
    return ops.layer_norm(x + dropout(branch, _RATE, key, rows), weight, bias, _EPS)

  def kernel(*arrays):
    (normed,) = norm_kernel.add_and_norm(*arrays, rows, key, _RATE, _EPS, 1, False)
    return normed

  return plain, kernel


def _compare(name, plain, kernel, arguments, g) -> dict[str, float]:
  def both(fn, dtype):
    def run(arguments, g):
      cast = lambda x: x.astype(dtype) if x.dtype == jnp.bfloat16 else x
      out, pull = jax.vjp(fn, *map(cast, arguments))
      return out, pull(g.astype(dtype))

    return jax.jit(run)

  with jax.default_matmul_precision("highest"):
    exact = jax.device_get(both(plain, jnp.float32)(arguments, g))
  found = {}
  for kind, fn in (("plain", plain), ("kernel", kernel)):
    run = both(fn, jnp.bfloat16)
    out, gradients = jax.device_get(run(arguments, g))
    found[f"{name} {kind} error"] = checks.relative(out, exact[0])
    errors = map(checks.relative, gradients, exact[1])
    found[f"{name} {kind} gradient error"] = max(errors)
    found[f"{name} {kind} ms"] = 1e3 * device.seconds(run, arguments, g)
  return found

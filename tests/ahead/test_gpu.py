"""GPUs that are not there, and what their programs move, by who asked for it."""

import importlib.util
import json
import pathlib
import re

import jax
import pytest

from dcse_jax.ahead import abstract_step
from dcse_jax.ahead import hlo
from dcse_jax.model.packing import Packing
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError
from tests import processes
from tests.recipes import load_config
from tests.recipes import tiny


def test_movers_are_named_by_the_code_that_asked_and_count_as_often_as_a_loop_runs():
  """jax 0.10.2 compiled three turns of a linear layer and attention for an H100."""
  text = pathlib.Path(__file__).with_name("h100.hlo.txt").read_text()
  program = hlo.Program(text, 1)
  movers = program.movers()
  # x [64, 32], kernel [32, 96], bias [96] to [64, 96], bfloat16, by a Triton fusion.
  linear = 2 * (64 * 32 + 32 * 96 + 96 + 64 * 96)
  assert movers["model/ops.py linear, dot_general"] == hlo.Mover(3, 3 * linear)
  # Queries, keys and values are one array, given three times and read once; with it a
  # bias, float32, the mask, each head's rows, and the key; out come 64 rows of 32.
  kernel = 2 * 64 * 96 + 4 * 96 + 64 + 4 * 4 * 2 * 16 + 4 * 2 + 2 * 64 * 32
  name = "model/attention_kernel.py _forward, pallas_call"
  assert movers[name] == hlo.Mover(3, 3 * kernel)
  # Code of others is nobody's here; the two copies before the loop are the compiler's.
  assert movers["elsewhere, add"].count == 2 * 3
  assert movers["the compiler"] == hlo.Mover(2, 2 * 4 + 2 * 2 * 64 * 32)
  assert [m.bytes for m in movers.values()] == sorted(
    (m.bytes for m in movers.values()), reverse=True
  )
  assert program.memory_bytes() == sum(m.bytes for m in movers.values())
  assert program.kernels() == sum(m.count for m in movers.values()) == 3 * 7 + 3


def test_a_librarys_product_moves_its_matrices_and_not_its_workspace():
  text = """
ENTRY %main (a: bf16[64,32], b: bf16[32,16]) -> bf16[64,16] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %product = (bf16[64,16]{1,0}, s8[33554432]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/dot_general"}
  ROOT %out = bf16[64,16]{1,0} get-tuple-element(%product), index=0
}
"""
  assert hlo.Program(text, 1).memory_bytes() == 2 * (64 * 32 + 32 * 16 + 64 * 16)


def test_of_a_stack_that_is_cast_and_sliced_only_what_is_taken_is_read():
  """Three of twelve layers are cut out and cast, and one of these is joined with x."""
  text = """
%fused (stack: f32[12,8,16], x: bf16[1,8,16]) -> bf16[2,8,16] {
  %stack = f32[12,8,16]{2,1,0} parameter(0)
  %x = bf16[1,8,16]{2,1,0} parameter(1)
  %some = f32[3,8,16]{2,1,0} slice(%stack), slice={[0:3], [0:8], [0:16]}
  %cast = bf16[3,8,16]{2,1,0} convert(%some)
  %same = bf16[3,8,16]{2,1,0} bitcast(%cast)
  %layer = bf16[1,8,16]{2,1,0} slice(%same), slice={[2:3], [0:8], [0:16]}
  ROOT %joined = bf16[2,8,16]{2,1,0} concatenate(%layer, %x), dimensions={0}
}

ENTRY %main (a: f32[12,8,16], b: bf16[1,8,16]) -> bf16[2,8,16] {
  %a = f32[12,8,16]{2,1,0} parameter(0)
  %b = bf16[1,8,16]{2,1,0} parameter(1)
  ROOT %out = bf16[2,8,16]{2,1,0} fusion(%a, %b), kind=kLoop, calls=%fused
}
"""
  layer = 8 * 16
  # The layer is read in float32, x in bfloat16, and both are written in bfloat16.
  assert hlo.Program(text, 1).memory_bytes() == layer * (4 + 2 + 2 * 2)


def recipe(**fields):
  config = tiny(load_config("distillcse"))
  config.update(model="", **fields)
  return config


def test_a_packed_step_has_groups_as_full_as_the_mean_says():
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  make = lambda mean: abstract_step.make_abstract_step(
    recipe(microbatches=2, batch_size=64), "base", mesh, mean_length=mean
  )
  # 64 sentences of 9.5 tokens in two parts on each of two devices, up to 32s.
  assert make(9.5).packing == Packing(160, groups=4)
  assert make(None).packing is None
  assert make(9.5).flops < make(None).flops
  with pytest.raises(UserError, match="17 tokens in the mean, .* max_length=16"):
    make(17)


HAS_CUDA = importlib.util.find_spec("jax_cuda13_plugin") is not None


def compile_command(*arguments):
  tiny_encoder = dict(num_layers=2, hidden_size=128, intermediate_size=256, num_heads=2)
  return processes.run(
    "dcse_jax.compile",
    "--config=configs/distillcse.py",
    "--config.model=",
    "--config.max_length=16",
    "--config.dtype=bfloat16",
    *(f"--config.encoder.{name}={size}" for name, size in tiny_encoder.items()),
    *arguments,
  )


@pytest.mark.skipif(HAS_CUDA, reason="JAX's plugin for CUDA is installed")
@pytest.mark.parametrize(
  "topology, message",
  [
    ("h100:8", r"pip install 'dcse_jax\[cuda\]', on any machine"),
    ("h100:9", "give 1 to 8 GPUs of a host, as in h100:8"),
  ],
)
def test_what_no_gpu_can_be_compiled_for_is_said_in_one_line(topology, message):
  result = compile_command(f"--topology={topology}")
  assert result.returncode == 2
  assert re.fullmatch(rf"error: .*{message}.*\n", result.stderr)


@pytest.mark.slow
@pytest.mark.skipif(
  not HAS_CUDA, reason="JAX's plugin for CUDA is not installed: pip install '.[cuda]'"
)
def test_a_packed_step_is_compiled_for_gpus_that_are_not_there(tmp_path):
  path = tmp_path / "report.json"
  result = compile_command(
    "--topology=h100:2", "--batch_per_chip=16", "--packed=9", f"--json={path}"
  )
  assert result.returncode == 0, result.stderr
  report = json.loads(path.read_text())
  assert report["device_kind"] == "NVIDIA H100 80GB HBM3"
  assert (report["chips"], report["batch_size"], report["packed"]) == (2, 32, 9.0)
  assert 0 < report["memory"]["total"] < report["memory"]["chip"]
  assert report["collectives"]["all-reduce"]["count"] > 0
  assert 0 < report["kernels"] and len(report["movers"]) == 10
  moved = [mover["bytes"] for mover in report["movers"].values()]
  assert 0 < sum(moved) <= report["moved"]
  assert "bytes moved" in result.stdout and "model/layers.py" in result.stdout

"""Differences of our states and gradients from PyTorch's: `python -m benchmarks.parity`.

For each family three small shapes with random weights, norms and biases among them,
float32, the worst of them in the table that it prints.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from dcse_jax.hub import huggingface
from dcse_jax.hub.tensors import read_tensors
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.family import with_pooler
from dcse_jax.model.packing import Packing

_BERT = dict(
  hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40
)
_OTHER = (
  dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
  dict(hidden_size=36, num_hidden_layers=2, num_attention_heads=3, hidden_act="relu"),
)
_BERTS = (_BERT, *({**_BERT, **other} for other in _OTHER))
_DECODER = dict(_BERT, num_key_value_heads=2, head_dim=8)
_LOCAL = ["full_attention", "sliding_attention", "sliding_attention"]
# Three shapes of each family.
_SHAPES = {
  "bert": _BERTS,
  "roberta": _BERTS,
  "mpnet": _BERTS,
  "distilbert": tuple(
    dict(dim=dim, n_layers=layers, n_heads=heads, hidden_dim=40)
    for dim, layers, heads in ((24, 3, 4), (16, 1, 2), (36, 2, 3))
  ),
  "electra": tuple(dict(shape, embedding_size=12) for shape in _BERTS),
  "albert": tuple(dict(shape, embedding_size=12) for shape in _BERTS),
  "modernbert": (
    dict(_BERT, local_attention=8),
    dict(_BERT, local_attention=8, num_attention_heads=2, hidden_activation="silu"),
    dict(
      _BERT,
      local_attention=8,
      layer_types=_LOCAL[::-1],
      attention_bias=True,
      mlp_bias=True,
      norm_bias=True,
    ),
  ),
  "nomic_bert": (_BERT, dict(_BERT, hidden_act="gelu"), dict(_BERT, type_vocab_size=1)),
  "qwen3": (
    _DECODER,
    dict(_DECODER, num_key_value_heads=4, head_dim=6),
    dict(
      _DECODER,
      attention_bias=True,
      use_sliding_window=True,
      sliding_window=5,
      max_window_layers=1,
    ),
  ),
  "gemma3_text": tuple(
    dict(
      _DECODER,
      layer_types=_LOCAL,
      sliding_window=8,
      query_pre_attn_scalar=16,
      **changes,
    )
    for changes in (
      dict(use_bidirectional_attention=True),
      dict(use_bidirectional_attention=True, num_key_value_heads=1),
      dict(use_bidirectional_attention=False, attention_bias=True),
    )
  ),
}
_LENGTH, _LONG = 24, 600


def _make(kind: str, fields: dict) -> torch.nn.Module:
  """Makes a PyTorch model whose biases and norms are random, too."""
  pad = 1 if kind in ("roberta", "mpnet") else 0
  config = transformers.AutoConfig.for_model(
    kind, vocab_size=120, max_position_embeddings=_LONG + 2, pad_token_id=pad, **fields
  )
  torch.manual_seed(0)
  model = transformers.AutoModel.from_config(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "norm" in name.lower() and name.endswith("weight"):
        # Gemma's weights are less one.
        low = -0.5 if kind == "gemma3_text" else 0.5
        parameter.uniform_(low, low + 1)
      else:
        parameter.normal_(0.0, 0.1)
  return model


def _rows(length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
  mask = np.arange(length) < np.asarray([length, length // 2, 2, 1])[:, None]
  ids = np.random.default_rng(0).integers(5, 120, mask.shape)
  return np.where(mask, ids, pad), mask


def _theirs(model, ids, mask) -> torch.Tensor:
  feed = torch.tensor(ids), torch.tensor(mask.astype(int))
  return model(input_ids=feed[0], attention_mask=feed[1]).last_hidden_state


def _gradient_error(model, params, config) -> float:
  """Returns the largest difference, relative to each parameter's largest, or to 1."""
  ids, mask = _rows(_LENGTH, config.pad_token_id)
  weights = np.random.default_rng(1).normal(size=(*ids.shape, config.hidden_size))
  weights = np.float32(weights * mask[:, :, None])

  @jax.jit
  @jax.grad
  def gradients(params):
    return jnp.sum(encoder_lib.hidden_states(params, config, ids, mask)[2] * weights)

  ours = huggingface.to_tensors(jax.device_get(gradients(params)), config)
  (_theirs(model, ids, mask) * torch.tensor(weights)).sum().backward()
  worst = 0.0
  for name, parameter in model.named_parameters():
    if parameter.grad is None or name not in ours:
      continue
    theirs, mine = parameter.grad.numpy(), ours[name]
    # PyTorch leaves the padding's row out.
    seen = np.ones(len(theirs), bool)
    seen[config.pad_token_id] = len(theirs) != 120
    # That of a key's bias is 0 but for rounding.
    scale = max(np.abs(theirs).max(), 1.0)
    worst = max(worst, np.abs(theirs - mine)[seen].max() / scale)
  return worst


def measure(kind: str, fields: dict) -> dict[str, float]:
  """Compares one model; differences are relative to the largest state, or to 1."""
  model = _make(kind, fields)
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    path = pathlib.Path(folder)
    tensors = read_tensors(path)
    has_pooler = any("pooler" in name for name in tensors)
    config = with_pooler(huggingface.read_config(path), has_pooler)
  params = huggingface.from_tensors(tensors, config)

  def states(length, packed=False, dtype=jnp.float32):
    ids, mask = _rows(length, config.pad_token_id)
    packing = Packing(int(mask.sum()) + 3) if packed else None
    run = lambda params: encoder_lib.hidden_states(
      params, config, ids, mask, packing=packing, dtype=dtype
    )
    with torch.no_grad():
      theirs = _theirs(model, ids, mask).numpy()[mask]
    return np.asarray(jax.jit(run)(params)[2], np.float32)[mask], theirs

  def error(*arguments, **options):
    ours, theirs = states(*arguments, **options)
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1.0)

  ours, theirs = states(_LENGTH, dtype=jnp.bfloat16)
  return {
    "padded": error(_LENGTH),
    "packed": error(_LENGTH, packed=True),
    f"{_LONG} tokens": error(_LONG, packed=True),
    "bfloat16, mean": np.abs(ours - theirs).mean() / np.abs(theirs).mean(),
    "gradients": _gradient_error(model, params, config),
  }


def main() -> None:
  for i, (kind, shapes) in enumerate(_SHAPES.items()):
    found = [measure(kind, fields) for fields in shapes]
    if not i:
      print("| | " + " | ".join(found[0]) + " |")
      print("| --- " * (1 + len(found[0])) + "|")
    worst = [max(each[name] for each in found) for name in found[0]]
    cells = " | ".join(f"{value:.1e}" for value in worst)
    print(f"| `{kind}` | {cells} |", flush=True)


if __name__ == "__main__":
  main()

"""A model folder as ONNX: written by way of PyTorch, and run by onnxruntime.

The folder is read by sentence-transformers, whose modules torch.onnx traces: the
encoder, the pooling, dense layers and the normalising. optimum's exporter was not
taken: its newest release, 0.1, refuses transformers 5, which this project needs.
"""

from collections.abc import Sequence
import importlib.util
import logging
import pathlib
from typing import Any
import warnings

import numpy as np

from dcse_jax.model.model import Model
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# The names of sentence-transformers' backend, in the folder's subfolder "onnx".
FLOAT, INT8 = "onnx/model.onnx", "onnx/model_int8.onnx"

_PACKAGES = ("onnx", "onnxruntime", "onnxscript", "sentence_transformers", "torch")
# A file of protocol buffers holds less than 2 GiB; larger weights lie beside it.
_MOST_BYTES = 1_900_000_000
# What the graph is traced with: sizes that are no model's, so that none is taken for
# fixed, and padding, so that the mask counts.
_EXAMPLE = (3, 13)


def check_installed() -> None:
  """Raises a UserError that names what is missing for ONNX."""
  if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
    raise UserError(
      f"--onnx needs {', '.join(missing)}, which is not installed: pip install "
      "'dcse_jax[onnx]'"
    )


def write(folder: pathlib.Path, model: Model) -> None:
  """Writes `FLOAT` into a model folder.

  Its inputs are input_ids, attention_mask and, for encoders that have them,
  token_type_ids, [B, S] int64. Its outputs are last_hidden_state, [B, S, H], which
  sentence-transformers pools by itself, and sentence_embedding, [B, D].

  Args:
    folder: what `folder.save` wrote.
    model: the same model.

  Raises:
    UserError: torch cannot trace the model.
  """
  import sentence_transformers
  import torch

  theirs = sentence_transformers.SentenceTransformer(
    str(folder), device="cpu", trust_remote_code=False
  )
  theirs.eval()
  encoder = theirs[0].auto_model
  encoder.set_attn_implementation("eager")
  names = ["input_ids", "attention_mask", "token_type_ids"]
  names = names[: 2 + bool(getattr(encoder.config, "type_vocab_size", 0))]

  class Whole(torch.nn.Module):
    """The folder's modules from token ids to embeddings."""

    def __init__(self):
      super().__init__()
      self.encoder, self.others = encoder, torch.nn.ModuleList(list(theirs)[1:])

    def forward(self, *inputs):
      given = dict(zip(names, inputs))
      found = self.encoder(**given)
      features = {
        "token_embeddings": found.last_hidden_state,
        "all_layer_embeddings": found.get("hidden_states"),
        "attention_mask": given["attention_mask"],
      }
      for module in self.others:
        features = module(features)
      embeddings = features["sentence_embedding"][:, : model.truncate_dim]
      return found.last_hidden_state, embeddings

  path = folder / FLOAT
  path.parent.mkdir(exist_ok=True)
  ids, mask = torch.full(_EXAMPLE, 5), torch.ones(_EXAMPLE, dtype=torch.int64)
  mask[1, 7:] = 0
  inputs = (ids, mask, torch.zeros_like(ids))[: len(names)]
  batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
  bytes_of = lambda tensor: tensor.numel() * tensor.element_size()
  # It warns of packages that no text encoder needs.
  logging.getLogger("torch.onnx").setLevel(logging.ERROR)
  try:
    with torch.no_grad(), warnings.catch_warnings():
      warnings.simplefilter("ignore")  # They concern the exporter's own code.
      torch.onnx.export(
        Whole().eval(),
        inputs,
        path,
        input_names=names,
        output_names=["last_hidden_state", "sentence_embedding"],
        dynamic_shapes=(({0: batch, 1: length},) * len(names),),
        external_data=sum(map(bytes_of, theirs.parameters())) > _MOST_BYTES,
        verbose=False,
      )
  except Exception as error:  # The exporter fails in as many ways as models differ.
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise UserError(
      f"torch cannot export this {model.config.model_type} to ONNX ({reason}): leave "
      "out --onnx"
    ) from error


def write_int8(folder: pathlib.Path) -> None:
  """Writes `INT8`: `FLOAT` with weights of eight bits, and products of such numbers.

  Weights are rounded once, activations as they come ("dynamic quantisation"). Weights
  have signs, which is fast and exact on CPUs that add such products in one instruction
  (VNNI, and Arm's); older ones with AVX2 alone may cut off sums that are too large.
  """
  from onnxruntime import quantization

  # The root logger is told what quantising might be preceded by.
  logging.getLogger().addFilter(_is_not_advice)
  try:
    # A scale for each column: with one for a matrix cosines with the float model's
    # embeddings were 0.955 on average, of MiniLM, and are 0.990 so.
    quantization.quantize_dynamic(
      folder / FLOAT,
      folder / INT8,
      weight_type=quantization.QuantType.QInt8,
      per_channel=True,
    )
  finally:
    logging.getLogger().removeFilter(_is_not_advice)


def _is_not_advice(record: logging.LogRecord) -> bool:
  return "pre-process" not in record.getMessage()


class OnnxEncoder:
  """An ONNX file of a model folder, run by onnxruntime on the CPU.

  Args:
    path: the file, which `write` or `write_int8` wrote.
    model: the folder's model, whose tokenizer and prompt serve.
  """

  def __init__(self, path: pathlib.Path, model: Model):
    import onnxruntime

    self._session = onnxruntime.InferenceSession(
      str(path), providers=["CPUExecutionProvider"]
    )
    self._names = [each.name for each in self._session.get_inputs()]
    self._model = model

  def encode(self, sentences: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
    """Computes embeddings, [n, D] float32, in batches of sentences of similar length."""
    model = self._model
    ids = model.tokenize(sentences, model.max_length)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = np.zeros((len(ids), model.embedding_size), np.float32)
    for start in range(0, len(order), batch_size):
      rows = order[start : start + batch_size]
      given = self._padded([ids[i] for i in rows])
      (found[rows],) = self._session.run(["sentence_embedding"], given)
    return found

  def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    lengths = np.asarray([len(each) for each in ids])
    mask = np.arange(max(lengths)) < lengths[:, None]
    padded = np.full(mask.shape, self._model.tokenizer.pad_token_id, np.int64)
    padded[mask] = np.concatenate(ids)
    given = {
      "input_ids": padded,
      "attention_mask": mask.astype(np.int64),
      "token_type_ids": np.zeros_like(padded),
    }
    return {name: given[name] for name in self._names}

"""An encoder for MTEB: `mteb.evaluate(MtebEncoder(DIR), mteb.get_tasks(...))`.

It needs the package mteb (tested: 2.26), and imports it when an encoder is made.
"""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model import model as model_lib
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError


class MtebEncoder:
  """A model as MTEB's EncoderProtocol.

  A text follows the prompt that the model's folder has for its task, as MTEB chooses it:
  for the task's name and query or document, for its name, for its type and either, for
  its type, for query or document; without any of these the folder's default prompt.

  Args:
    model: a model folder or hub id, perhaps ID@REVISION, or an encoder made from one.
    name: the name under which MTEB keeps the results, ORGANISATION/NAME; a NAME alone
      means local/NAME. None takes it from the folder or id.
    batch_size: sentences in a compiled batch; None takes MTEB's, which
      `mteb.evaluate(..., encode_kwargs={"batch_size": 64})` sets.

  Attributes:
    encoder: the SentenceEncoder that computes the embeddings.
    mteb_model_meta: what MTEB writes about the model beside its results. Its revision
      is a digest of the model, so MTEB never takes the results of an earlier model in
      the same folder for this one's.

  Raises:
    UserError: mteb is not installed, the model cannot be loaded, or has no name.
  """

  def __init__(
    self,
    model: str | SentenceEncoder,
    *,
    name: str | None = None,
    batch_size: int | None = None,
  ):
    try:
      from mteb.models import ModelMeta
      from mteb.models.abs_encoder import get_prompt_name
    except ImportError as error:
      raise UserError(f"MTEB cannot be used ({error}): pip install mteb") from error
    if isinstance(model, SentenceEncoder):
      if name is None:
        raise UserError("an encoder has no name: give MtebEncoder(encoder, name=NAME)")
      self.encoder = model
    else:
      path = files.user_path(model)
      hub_id = str(model).partition("@")[0]
      name = name or (path.resolve().name if path.is_dir() else hub_id)
      self.encoder = SentenceEncoder(str(model))
    self._batch_size, self._prompt_name = batch_size, get_prompt_name
    model = self.encoder.model
    arrays = jax.tree.leaves(model.params)
    for layer in model.dense_layers:
      arrays += [layer.kernel, layer.bias]
    numel = sum(array.size for array in arrays)
    self.mteb_model_meta = ModelMeta(
      loader=None,
      name=name if "/" in name else f"local/{name}",
      revision=_revision(model),
      release_date=None,
      languages=None,
      n_parameters=numel,
      n_embedding_parameters=model.params["embeddings"]["word"]["embedding"].size,
      memory_usage_mb=numel * 4 / 2**20,
      max_tokens=model.max_length,
      embed_dim=model.embedding_size,
      license=None,
      open_weights=None,
      public_training_code=None,
      public_training_data=None,
      framework=["JAX"],
      similarity_fn_name="cosine",
      use_instructions=any(model.prompts.values()),
      training_datasets=None,
    )

  def encode(
    self,
    inputs: Any,
    *,
    task_metadata: Any,
    hf_split: str,
    hf_subset: str,
    prompt_type: Any = None,
    **kwargs: Any,
  ) -> np.ndarray:
    """Computes embeddings of a task's texts.

    Args:
      inputs: batches, each with its texts under "text".
      task_metadata: the task's, which chooses the prompt: see the class.
      hf_split: not used.
      hf_subset: not used.
      prompt_type: query or document.
      **kwargs: mteb.evaluate's encode_kwargs; only batch_size and show_progress_bar
        are used.

    Returns:
      [n, D] float32.

    Raises:
      UserError: encode_kwargs ask for another precision.
    """
    precision = kwargs.get("precision") or "float32"
    if precision != "float32":
      raise UserError(f"precision={precision!r}: only float32 is supported")
    return self.encoder.encode(
      [text for batch in inputs for text in batch["text"]],
      prompt_name=self._prompt_name(
        self.encoder.model.prompts, task_metadata, prompt_type
      ),
      batch_size=self._batch_size or kwargs.get("batch_size", 64),
      show_progress_bar=kwargs.get("show_progress_bar", False),
    )

  def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Computes cosines of all rows, [n, D] and [m, D], as a torch tensor [n, m]."""
    from mteb.similarity_functions import cos_sim

    return cos_sim(embeddings1, embeddings2)

  def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Computes cosines of row i with row i, [n, D] each, as a torch tensor [n]."""
    from mteb.similarity_functions import pairwise_cos_sim

    return pairwise_cos_sim(embeddings1, embeddings2)


def _revision(model: model_lib.Model) -> str:
  """Digests all that MTEB's results depend on: the model, and its prompts by name."""
  prompts = {name: text for name, text in model.prompts.items() if text}
  identity = model_lib.identity(model)
  if not prompts:
    return identity
  about = json.dumps([identity, prompts], sort_keys=True)
  return hashlib.blake2b(about.encode(), digest_size=16).hexdigest()

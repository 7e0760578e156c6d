"""The class that turns sentences into embeddings, and searches among them.

Where it does what sentence-transformers' SentenceTransformer does, it has its names.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import logging
from typing import Any

import jax
import numpy as np
import tqdm

from dcse_jax.data.sentences import checked
from dcse_jax.embed import searchable
from dcse_jax.embed.devices import ahead
from dcse_jax.embed.devices import make_mesh
from dcse_jax.embed.precision import check_precision
from dcse_jax.embed.precision import quantize
from dcse_jax.hub import folder
from dcse_jax.hub.model_card import make_card
from dcse_jax.model.inference import chunks
from dcse_jax.model.inference import encode_tokens
from dcse_jax.model.model import ROLES
from dcse_jax.model.vectors import similarities
from dcse_jax.runtime import files
from dcse_jax.runtime import mesh as mesh_lib
from dcse_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)


class SentenceEncoder:
  """A model folder or hub id, ready to turn sentences into embeddings.

  Args:
    name: a folder that this project, transformers or sentence-transformers
      wrote; or a hub id, perhaps ID@REVISION.
    pooling: replaces the folder's own; a name that `pooling.get` knows.
    num_layers: how many of the first layers are kept; None keeps all.
    max_length: where sentences are cut, in tokens; replaces the folder's own.
    truncate_dim: how many first numbers of embeddings are kept; likewise.
    default_prompt_name: the prompt before every sentence; replaces the folder's own.
    devices: how many of this host's devices divide each batch among them; None takes all
      accelerators.

  Attributes:
    model: the model, as `folder.load` returns it.

  Raises:
    UserError: the folder cannot be read or understood.
  """

  def __init__(
    self,
    name: str,
    *,
    pooling: str | None = None,
    num_layers: int | None = None,
    max_length: int | None = None,
    truncate_dim: int | None = None,
    default_prompt_name: str | None = None,
    devices: int | None = None,
  ):
    self._mesh = make_mesh(devices)
    self.model = folder.load(
      str(name),
      pooling=pooling,
      num_layers=num_layers,
      max_length=max_length,
    ).truncated(truncate_dim)
    self._name = str(name)
    self.model = self.model.with_prompt(default_prompt_name)
    self._params = self._put(self.model.params)
    self._searchable: searchable.Searchable | None = None

  def _put(self, params: Any) -> Any:
    """Copies parameters to every device."""
    if self._mesh is None:
      return jax.device_put(params)
    return mesh_lib.put_params(jax.device_get(params), self._mesh)

  def __repr__(self) -> str:
    model = self.model
    return (
      f"SentenceEncoder({self._name!r}: {model.config.model_type}, "
      f"{model.config.num_layers} x {model.config.hidden_size}, pooling "
      f"{model.pooling!r}, {model.embedding_size} numbers, {model.max_length} tokens)"
    )

  @property
  def tokenizer(self) -> Any:
    """The tokenizer, one of transformers'."""
    return self.model.tokenizer

  @property
  def prompts(self) -> dict[str, str]:
    """The texts that may stand before a sentence, by name."""
    return {**dict.fromkeys(ROLES, ""), **self.model.prompts}

  @property
  def default_prompt_name(self) -> str | None:
    """The name of the prompt that stands before every sentence unless told."""
    return self.model.default_prompt

  @property
  def query_prompt_name(self) -> str | None:
    """The name of the prompt for queries, if there is one."""
    return "query" if self.prompts.get("query") else None

  @property
  def document_prompt_name(self) -> str | None:
    """The name of the prompt for what is searched in, if there is one."""
    names = ("document", "passage", "corpus")
    return next((name for name in names if self.prompts.get(name)), None)

  @property
  def similarity_fn_name(self) -> str:
    """How `similarity` compares: cosine, dot, euclidean or manhattan."""
    return self.model.similarity

  @property
  def max_seq_length(self) -> int:
    """Where sentences are cut, in tokens; may be set."""
    return self.model.max_length

  @max_seq_length.setter
  def max_seq_length(self, tokens: int) -> None:
    most = self.model.config.max_tokens
    if type(tokens) is not int or not 0 < tokens <= most:
      raise UserError(f"max_seq_length={tokens!r}: must be a whole number up to {most}")
    self.model = dataclasses.replace(self.model, max_length=tokens)

  def get_sentence_embedding_dimension(self) -> int:
    """Returns the width of an embedding."""
    return self.model.embedding_size

  def save(self, path: str, *, overwrite: bool = False) -> None:
    """Writes the model as a folder that sentence-transformers loads.

    Args:
      path: the folder.
      overwrite: whether to also replace files that are not ours, or were changed.

    Raises:
      UserError: it cannot be written, or would replace what must not be.
    """
    path = files.user_path(path)
    card = make_card(self.model, path.name, None)
    write_card = lambda new: files.write_text(new / "README.md", card)
    folder.save(self.model, path, write_card, overwrite=overwrite)

  def encode(
    self,
    sentences: str | Iterable[str],
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = 64,
    show_progress_bar: bool = False,
    precision: str = "float32",
    convert_to_numpy: bool = True,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
  ) -> np.ndarray | list[np.ndarray]:
    """Computes embeddings of sentences.

    Args:
      sentences: any number of strings, from a list or as they come; or one.
      prompt_name: the prompt put before them, as `Model.with_prompt` takes it.
      prompt: a text to put there in place of any of the folder's.
      batch_size: sentences in a compiled batch.
      show_progress_bar: whether to show a bar on the terminal.
      precision: one of `precision.PRECISIONS`.
      convert_to_numpy: whether to return one array; otherwise a list of rows.
      normalize_embeddings: scales to unit length; otherwise only if the folder does.
      truncate_dim: how many leading numbers are kept; None does as the folder says.

    Returns:
      [n, D], float32 unless another precision is asked for, in the order given; [D]
      for a single string.

    Raises:
      UserTypeError: a sentence is no string; the error names its position.
      UserError: there is no such prompt, or an argument is out of its range.
    """
    check_precision(precision)
    is_one = isinstance(sentences, str)
    sentences = [sentences] if is_one else sentences
    total = len(sentences) if isinstance(sentences, Sequence) else None
    with tqdm.tqdm(total=total, unit="sentence", disable=not show_progress_bar) as bar:
      parts = []
      for part in self.encode_stream(
        sentences,
        prompt_name=prompt_name,
        prompt=prompt,
        batch_size=batch_size,
        normalize_embeddings=normalize_embeddings,
        truncate_dim=truncate_dim,
      ):
        parts.append(part)
        bar.update(len(part))
    if not parts:
      parts.append(np.zeros((0, truncate_dim or self.model.embedding_size), np.float32))
    embeddings = quantize(np.concatenate(parts), precision)
    if is_one:
      return embeddings[0]
    return embeddings if convert_to_numpy else list(embeddings)

  def encode_stream(
    self,
    sentences: Iterable[str],
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = 64,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
  ) -> Iterator[np.ndarray]:
    """Yields the embeddings [m, D] of the next sentences, some thousands at a time.

    Memory does not grow with the number of sentences. A thread tokenises the next ones
    while the devices embed. See `encode`.
    """
    model = self.model.with_prompt(prompt_name if prompt is None else None)
    if prompt is not None:
      model = model.after(prompt)
    model = model.truncated(truncate_dim)
    tokenize = functools.partial(model.tokenize, max_length=model.max_length)
    for tokens in ahead(tokenize, chunks(checked(sentences))):
      embeddings = encode_tokens(
        self._params,
        model.config,
        tokens,
        pooling=model.pooling,
        batch_size=batch_size * (self._mesh.size if self._mesh else 1),
        left_out=model.left_out,
        mesh=self._mesh,
      )
      yield model.finish(embeddings, normalize_embeddings or None)

  def similarity(
    self,
    first: str | Sequence[str] | np.ndarray,
    second: str | Sequence[str] | np.ndarray,
  ) -> float | np.ndarray:
    """Compares every one of the first with every one of the second.

    The folder says whether by cosine, dot product, or the Euclidean or Manhattan
    distance times -1. Most say cosine.

    Args:
      first: n sentences, or their embeddings [n, D]; or one sentence.
      second: m sentences, or their embeddings [m, D]; or one sentence.

    Returns:
      [n, m] float32, cosines in [-1, 1]; a single sentence has no dimension.
    """
    first, second = (
      x if isinstance(x, np.ndarray) else self.encode(x) for x in (first, second)
    )
    scores = similarities(first, second, self.model.similarity)
    return float(scores) if np.ndim(scores) == 0 else scores

  def build_index(
    self,
    sentences: Sequence[str],
    *,
    embeddings: np.ndarray | None = None,
    ranges: np.ndarray | None = None,
    batch_size: int = 64,
    use_faiss: bool = False,
    rescore_multiplier: int = 4,
  ) -> None:
    """Makes sentences ready for `search` by cosine; they replace earlier ones.

    They follow the folder's prompt "document", "passage" or "corpus", if it has one.

    Args:
      sentences: what to search in, such as `data.lines.Lines`; if embeddings are
        given, only those that are found are read.
      embeddings: those of the sentences, [n, D], if they are at hand, memory-mapped or
        not, floats or another precision; None encodes them. Rows with NaN or infinity
        are never found; a warning counts them.
      ranges: those that "int8" and "uint8" embeddings were made with, [2, D].
      batch_size: sentences in a compiled batch.
      use_faiss: hands them to faiss, for a fast approximate search among
        millions. Otherwise the search is exact.
      rescore_multiplier: how many times top_k sentences are compared with the query
        itself, where embeddings are signs.

    Raises:
      UserError: embeddings are not those of the sentences; faiss is missing.
    """
    self._warn_of_cosine()
    if embeddings is None:
      embeddings = self.encode(
        sentences, prompt_name=self.document_prompt_name, batch_size=batch_size
      )
    self._searchable = searchable.of_embeddings(
      sentences,
      embeddings,
      self.model.embedding_size,
      ranges=ranges,
      use_faiss=use_faiss,
      rescore_multiplier=rescore_multiplier,
    )

  def load_index(self, path: str) -> Sequence[str]:
    """Opens an index that `dcse_jax.index` built, for `search`, in place of any other.

    Its files are read where a search looks, and need not fit into memory.

    Args:
      path: the folder.

    Returns:
      Its sentences, which are read when they are asked for.

    Raises:
      UserError: it is no index, or that of another model or of other settings.
    """
    self._warn_of_cosine()
    self._searchable = searchable.of_folder(path, self.model)
    return self._searchable.sentences

  def _warn_of_cosine(self) -> None:
    if self.model.similarity != "cosine":
      _log.warning("searching by cosine; the model says %r", self.model.similarity)

  def search(
    self,
    queries: str | Sequence[str],
    *,
    top_k: int = 5,
    threshold: float | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
  ) -> list[Any]:
    """Finds the sentences of the index that are most similar to each query.

    Args:
      queries: sentences, or one.
      top_k: how many at most.
      threshold: the smallest cosine, from -1 to 1; None leaves none out.
      prompt_name: as in `encode`; None takes "query" if the folder has that prompt.
      prompt: as in `encode`.

    Returns:
      A list of (sentence, cosine) for each query, the most similar first; only that
      list for a single string.

    Raises:
      UserError: there is no index yet, or top_k or threshold is out of its range,
        or the model yields NaN or infinity for a query.
    """
    if self._searchable is None:
      raise UserError(
        "there is nothing to search in: call build_index or load_index first"
      )
    embeddings = self.encode(
      [queries] if isinstance(queries, str) else queries,
      prompt_name=prompt_name or self.query_prompt_name,
      prompt=prompt,
    )
    found = self._searchable.search(embeddings, top_k, threshold)
    return found[0] if isinstance(queries, str) else found

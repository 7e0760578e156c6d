"""The models that embed parts: small values that travel, and load where they arrive."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
from typing import Any, Protocol

import numpy as np

from dcse_jax.data import text as text_lib
from dcse_jax.embed import bridge
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model import model as model_lib


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model that is ready.

  Attributes:
    origin: what its embeddings depend on, JSON.
    width: the numbers of an embedding, D.
    stream: yields the embeddings of sentences, [m, D] float32 at a time, in their order.
  """

  origin: dict[str, Any]
  width: int
  stream: Callable[[Iterable[str]], Iterator[np.ndarray]]


class Embedder(Protocol):
  """What travels to whoever embeds."""

  def load(self) -> Loaded:
    """Loads the model here, or raises a UserError."""


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A model of this library; the fields are those of `encode`'s flags."""

  model: str
  pooling: str | None = None
  max_length: int | None = None
  truncate_dim: int | None = None
  normalize: bool | None = None
  prompt_name: str | None = None
  prompt: str | None = None
  batch_size: int = 64
  devices: int | None = None

  def make(self) -> SentenceEncoder:
    """Loads the encoder alone, with `normalize` False taken into account."""
    encoder = SentenceEncoder(
      self.model,
      pooling=self.pooling,
      max_length=self.max_length,
      truncate_dim=self.truncate_dim,
      devices=self.devices,
    )
    if self.normalize is False:
      encoder.model = dataclasses.replace(encoder.model, normalize=False)
    return encoder

  def load(self) -> Loaded:
    """Loads the model on this process's devices."""
    encoder = self.make()
    prompts = {"prompt_name": self.prompt_name, "prompt": self.prompt}
    encoder.model.with_prompt(self.prompt_name if self.prompt is None else None)
    stream = functools.partial(
      encoder.encode_stream,
      batch_size=self.batch_size,
      normalize_embeddings=bool(self.normalize),
      **prompts,
    )
    origin = origin_of(encoder.model, bool(self.normalize), prompts)
    return Loaded(origin, encoder.model.embedding_size, stream)


def origin_of(
  model: model_lib.Model, normalize: bool, prompts: dict[str, str | None]
) -> dict[str, Any]:
  """Returns what the embeddings of a text depend on, JSON."""
  return {
    "model": model_lib.identity(model),
    "normalize": model.normalize or normalize,
    **{name: text for name, text in prompts.items() if text is not None},
  }


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model of sentence-transformers; the fields are those of `embed_with`'s flags."""

  model: str
  prompt: str | None = None
  prompt_text: str | None = None
  truncate_dim: int | None = None
  batch_size: int = 64
  devices: int | None = None

  def load(self) -> Loaded:
    """Loads the model; sentences are cleaned as training cleans them."""
    teacher = bridge.Teacher(**dataclasses.asdict(self))
    clean = lambda sentence: text_lib.cut(text_lib.clean(sentence))
    stream = lambda sentences: teacher.stream(map(clean, sentences))
    return Loaded(teacher.origin, teacher.width, stream)

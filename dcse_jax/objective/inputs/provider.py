"""A kind of input of terms: who needs it, and how it is computed.

An objective asks every provider in a fixed order. A new input is a file here with one
provider, and its name in `PROVIDERS`.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import TYPE_CHECKING, Any

import jax

from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.packing import Packing

if TYPE_CHECKING:
  from dcse_jax.objective.objective import Objective

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StepInputs:
  """The arguments of a loss function besides the parameters.

  Attributes:
    batch: `input_ids` and `attention_mask`, [B, C, S]. A single column is encoded twice
      under independent dropout; if there are more, the first is the anchor, the second
      the positive, the others are hard negatives. Providers may ask for more arrays.
    rng: the step's key.
    frozen: parameters that are read but not trained, by name: `teachers`, a tree for
      each stack, and what `Objective.frozen_params` gives.
    packing: that of the batch's first column, or of all columns if there are several;
      None leaves the padding in. The loss is the same.
    carry: what the previous step handed on; at first `Objective.init_carry`.
    progress: the share of the training that is done, in [0, 1].
  """

  batch: Mapping[str, Any]
  rng: jax.Array
  frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  packing: Packing | None = None
  carry: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
  progress: jax.Array | float = 0.0


@dataclasses.dataclass(frozen=True)
class Sentences:
  """One microbatch of a step.

  Attributes:
    params: everything that is trained.
    frozen: see `StepInputs.frozen`.
    rows: `input_ids` and `attention_mask`, [b, C, S], and what providers prepared.
    row_ids: the rows' numbers in the batch, [b]; None if they are the whole batch.
    rng: the step's key.
    packing: this microbatch's.
  """

  params: Any
  frozen: Mapping[str, Any]
  rows: Arrays
  row_ids: jax.Array | None
  rng: jax.Array
  packing: Packing | None


@dataclasses.dataclass(frozen=True)
class Start:
  """The facts about a round's start that are known before anything is trained.

  Attributes:
    name: what people call it.
    pooled_size: the width of what its pooling gives.
    has_mask_token: whether its tokenizer has a mask token.
    has_language_model: whether it comes with a language-model head.
    columns: how many columns the round's text has.
    has_scores: whether it says how well anchors and their candidates match.
  """

  name: str
  pooled_size: int
  has_mask_token: bool
  has_language_model: bool
  columns: int
  has_scores: bool = False


@dataclasses.dataclass(frozen=True)
class Size:
  """The size of a batch, for counting FLOPs.

  Attributes:
    batch: rows of the batch.
    columns: how many columns the text has.
    length: the mean number of tokens in a sentence.
    squared_length: the mean of its square.
    max_length: tokens that a row may have.
  """

  batch: int
  columns: int
  length: float
  squared_length: float
  max_length: int

  @property
  def lengths(self) -> dict[str, float]:
    """The two means, by name."""
    return {"length": self.length, "squared_length": self.squared_length}


class Provider:
  """A kind of input. Its methods are called in this order, if a term asks for it.

  Attributes:
    offers: names of arrays as terms ask for them. Unless `of_tokens`, they have a row
      for each sentence, and the name with "all_" before it stands for the whole batch.
    of_tokens: whether they concern single tokens: terms that ask for them are computed
      microbatch by microbatch, and the arrays are forgotten.
    of_step: those of `offers` that all rows share.
    needs_views: whether `Views` must be computed for it.
    needs_pairs: whether it also needs their positives.
    compared: those of `offers` that terms compare with every anchor, an embedding wide.
    embeddings: those of `offers` that are the student's embeddings, which Matryoshka
      cuts.
  """

  offers: tuple[str, ...] = ()
  of_tokens = False
  of_step: tuple[str, ...] = ()
  needs_views = False
  needs_pairs = False
  compared: tuple[str, ...] = ()
  embeddings: tuple[str, ...] = ()

  def is_asked(self, objective: "Objective") -> bool:
    """Returns whether any term, or another provider, needs it."""
    return objective.asks_for(self.offers)

  # Before training.

  def validate(self, objective: "Objective", start: Start) -> str:
    """Says why a round cannot have it, or ""."""
    del objective, start
    return ""

  def init_params(
    self,
    objective: "Objective",
    encoder: encoder_lib.Params,
    init: Callable[[str, type], encoder_lib.Params],
    language_model: encoder_lib.Params | None,
  ) -> Arrays:
    """Makes the parameters that are trained for it, by name.

    Args:
      objective: the one that asks.
      encoder: the one that training starts from.
      init: makes random parameters of a module, by the name that they will have.
      language_model: the start's head, if it has one.
    """
    del objective, encoder, init, language_model
    return {}

  def frozen_params(
    self,
    objective: "Objective",
    encoder: encoder_lib.Params,
    language_model: encoder_lib.Params | None,
  ) -> Arrays:
    """Returns parameters that are read but not trained, by name."""
    del objective, encoder, language_model
    return {}

  def init_carry(self, objective: "Objective") -> Arrays:
    """Makes what is handed to the first step, by name."""
    del objective
    return {}

  def corpus_settings(self, objective: "Objective") -> Arrays:
    """Returns the settings of what `corpus.Corpus` joins, by its name there."""
    del objective
    return {}

  def abstract_batch(
    self, objective: "Objective", batch: int, columns: int, length: int
  ) -> Arrays:
    """Returns the shapes of what it needs in a batch besides tokens and ids."""
    del objective, batch, columns, length
    return {}

  def flops(self, objective: "Objective", size: Size) -> tuple[float, float]:
    """Counts FLOPs of a forward pass through what is trained, and what is frozen."""
    del objective, size
    return 0.0, 0.0

  # In a step.

  def prepare(self, objective: "Objective", inputs: StepInputs) -> Arrays:
    """Makes what its microbatches need, with a row for each row of the batch."""
    del objective, inputs
    return {}

  def embed(
    self, objective: "Objective", sentences: Sentences, offered: Arrays
  ) -> Arrays:
    """Computes arrays of one microbatch; `offered` has those of earlier providers."""
    del objective, sentences, offered
    return {}

  def count(self, arrays: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Counts hits and trials in each row of its arrays of tokens, by metric."""
    del arrays
    return {}

  def join(
    self, objective: "Objective", params: Any, inputs: StepInputs, offered: Arrays
  ) -> Arrays:
    """Computes arrays of the whole batch from `offered`, or arrays of the step."""
    del objective, params, inputs, offered
    return {}

  def report(self, of_step: Arrays) -> dict[str, jax.Array]:
    """Returns scalars to be written beside the terms' values, from arrays of the step."""
    del of_step
    return {}

  def carry(self, inputs: StepInputs, offered: Arrays) -> Arrays:
    """Returns what is handed to the next step."""
    del inputs, offered
    return {}

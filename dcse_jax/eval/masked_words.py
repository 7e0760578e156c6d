"""An evaluator: how many masked words a language model guesses right."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from dcse_jax.data import text as text_lib
from dcse_jax.eval.evaluator import Evaluator
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.evaluator import Subject
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model.model import Model
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import user_path

_SHARE = 0.15  # A sentence's share of tokens, at least one, that show as [MASK].
_TOKENS = 2048  # A batch has about this many, so that few logits exist at once.
_ROUND_TO = 16  # Lengths are rounded up to this, so that few shapes are compiled.


@functools.partial(jax.jit, static_argnames="config")
def _guess(params, language_model, input_ids, mask, positions, *, config):
  """Returns the likeliest token at each position, [B, K]."""
  states = encoder_lib.states_at(params, config, input_ids, mask, positions)
  logits = encoder_lib.score_tokens(language_model, params, config, states)
  return jnp.argmax(logits, axis=-1)


def accuracy(model: Model, sentences: Sequence[str]) -> float:
  """Returns the share of masked tokens whose likeliest guess is right, in percent.

  The same tokens of a sentence are masked for every model with the same tokenizer.
  Training masks different ones at each step and shows some as they are or as another
  token, so its `train/accuracy` belongs to an easier task.

  Args:
    model: with parameters and a language-model head.
    sentences: one or more.

  Raises:
    UserError: the tokenizer has no mask token, or no sentence has a token to mask.
  """
  if (mask_id := model.tokenizer.mask_token_id) is None:
    raise UserError("masked_words: the tokenizer has no mask token: use another model")
  special, rng = set(model.tokenizer.all_special_ids), np.random.default_rng(0)
  rows: list[tuple[np.ndarray, np.ndarray]] = []
  for ids in model.tokenize(sentences, model.max_length):
    words = [i for i, token in enumerate(ids) if token not in special]
    if words:
      count = max(1, round(_SHARE * len(words)))
      rows.append((np.asarray(ids), rng.choice(words, count, replace=False)))
  if not rows:
    raise UserError("masked_words: no sentence has a token to mask")
  rows.sort(key=lambda row: len(row[0]))
  params, head = jax.device_put((model.params, model.language_model))
  right = total = 0
  while rows:
    longest = -(-len(rows[-1][0]) // _ROUND_TO) * _ROUND_TO
    length = min(longest, model.config.max_tokens)
    size, slots = max(1, _TOKENS // length), max(1, round(_SHARE * length))
    rows, part = rows[:-size], rows[-size:]
    input_ids = np.full((size, length), model.config.pad_token_id, np.int32)
    mask = np.zeros((size, length), bool)
    mask[:, 0] = True  # Unused rows must attend to something.
    positions = np.zeros((size, slots), np.int32)
    for i, (ids, chosen) in enumerate(part):
      input_ids[i, : len(ids)], mask[i, : len(ids)] = ids, True
      input_ids[i, chosen] = mask_id
      positions[i, : len(chosen)] = chosen
    guess = np.asarray(
      _guess(params, head, input_ids, mask, positions, config=model.config)
    )
    for i, (ids, chosen) in enumerate(part):
      right += int(np.sum(guess[i, : len(chosen)] == ids[chosen]))
      total += len(chosen)
  return 100.0 * right / total


@dataclasses.dataclass(frozen=True)
class MaskedWords(Evaluator):
  """Scores a masked-language model by `accuracy` on files of sentences.

  Attributes:
    texts: the sentences of each file, by its name without suffixes.
  """

  kind = "masked_words"
  form = "FILE"
  about = "File of sentences whose masked words are guessed, as config.text. Repeats."
  measure = "accuracy"
  required = ("language_model",)

  texts: dict[str, list[str]]

  @classmethod
  def read(cls, places: Sequence[str], options: Options) -> Self:
    """Reads files of sentences, in any form that `data.text.read_text` knows."""
    del options
    texts: dict[str, list[str]] = {}
    for place in places:
      path = user_path(place)
      name = pathlib.PurePath(path.name.removesuffix(".gz")).stem
      if name in texts:
        raise UserError(
          f"--masked_words {place}: there is a {name} already; rename one"
        )
      texts[name] = list(text_lib.read_text(str(path)).columns[0])
    return cls(texts)

  @property
  def columns(self) -> tuple[str, ...]:
    """The names of the files."""
    return tuple(self.texts)

  def score(self, subject: Subject) -> dict[str, float]:
    """Computes `accuracy` on each file, and the mean."""
    scores = {name: accuracy(subject.model, text) for name, text in self.texts.items()}
    return scores | {"avg": float(np.mean(list(scores.values())))}

  def digest(self, column: str) -> str:
    """Returns a digest of the sentences."""
    texts = self.texts if column == "avg" else {column: self.texts[column]}
    content = json.dumps(list(texts.values())).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()

  def describe(self) -> dict[str, Any]:
    """Returns the title, the files in the mean, and their numbers of sentences."""
    return {
      "title": "Masked words: accuracy x 100 of the likeliest guess",
      "averaged": list(self.texts),
      "sentences": {name: len(text) for name, text in self.texts.items()},
    }

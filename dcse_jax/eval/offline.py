"""Scores models side by side with any evaluators, and pools the seeds of a model."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any

import numpy as np

from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.eval import registry
from dcse_jax.eval import tables
from dcse_jax.eval.evaluator import Embed
from dcse_jax.eval.evaluator import Evaluator
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.evaluator import Stream
from dcse_jax.eval.evaluator import Subject
from dcse_jax.eval.evaluator import embed_once
from dcse_jax.hub import folder
from dcse_jax.hub import modules
from dcse_jax.model.model import Model
from dcse_jax.model.vectors import is_finite
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import make_folder
from dcse_jax.runtime.files import user_path
from dcse_jax.runtime.files import write_json

# How often the data are drawn anew, where there are models to compare.
_DRAWS = 1000

# The scores of drawings, [draws], by kind and column: see `Evaluator.score_drawn`.
Drawn = dict[str, dict[str, np.ndarray]]


def evaluate(
  models: Sequence[str],
  places: Mapping[str, Sequence[str]],
  options: Options,
  *,
  loading: Mapping[str, Any] | None = None,
  widths: Sequence[int] = (),
  output: str | None = None,
  markdown: str | None = None,
) -> dict[str, Any]:
  """Scores every model with every evaluator, prints the tables and writes files.

  Args:
    models: arguments of `find_models`.
    places: what each evaluator reads, by its kind; one without places is left out.
    options: the evaluators' options.
    loading: options of `SentenceEncoder`, such as another pooling; None keeps each
      model's own.
    widths: scores embeddings cut to each of these; a row is then NAME@WIDTH. () leaves
      them as the model's folder has them.
    output: a JSON file to write.
    markdown: a Markdown file to write.

  Returns:
    What `output` gets: "convention" and "dev"; what `Evaluator.describe` returns, by
    kind; "options", which is `loading`; "models", what `pool` returns by name; and
    "gains", what `gains` returns.

  Raises:
    UserError: anything is wrong; where possible, before the first sentence is encoded.
  """
  evaluators = [
    evaluator.read(places[kind], options)
    for kind, evaluator in registry.EVALUATORS.items()
    if places.get(kind)
  ]
  members = find_models(models)
  paths = [name and user_path(name) for name in (output, markdown)]
  for path in filter(None, paths):
    make_folder(path.parent)
    if path.is_dir():
      raise UserError(f"{path} is a folder: name a file to write")
  loading = {k: value for k, value in (loading or {}).items() if value is not None}
  pooled: dict[str, Any] = {}
  drawn: dict[str, list[Drawn]] = {}
  draws = _DRAWS if len(members) * max(len(widths), 1) > 1 else 0
  row = lambda name, width: f"{name}@{width}" if width else name
  for name, group in members.items():
    runs: dict[int | None, list[dict[str, Any]]] = {w: [] for w in widths or [None]}
    for place in group:
      start = time.monotonic()
      encoder = SentenceEncoder(place, **loading)
      stream = lambda texts, prompt, encoder=encoder: encoder.encode_stream(
        texts, prompt_name=prompt
      )
      if widths:
        encoder.model = dataclasses.replace(encoder.model, truncate_dim=None)
      # All widths are cut from one embedding of each sentence.
      embed = functools.cache(functools.partial(embed_once, encoder.encode, evaluators))
      whole = encoder.model
      for width, scored in runs.items():
        encoder.model = whole.truncated(width)
        encode = lambda sentences, n=width, embed=embed: embed()(sentences)[:, :n]
        scores, by_draw = score_drawn(
          encode, evaluators, encoder.model, place, stream, draws=draws
        )
        scored.append({"model": place, **scores})
        drawn.setdefault(row(name, width), []).append(by_draw)
      print(f"{place}: scored in {time.monotonic() - start:.0f} s", flush=True)
    for width, scored in runs.items():
      pooled[row(name, width)] = pool(scored)
  for each in evaluators:
    for name, scores in each.references().items():
      if name in pooled:
        raise UserError(f"--model {name}=...: is the name of a row of reference")
      pooled[name] = pool([{"model": name, each.kind: scores}])
  results = {
    "convention": options.convention,
    "dev": options.dev,
    **{each.kind: each.describe() for each in evaluators},
    # How many devices there were changes no score.
    "options": {name: each for name, each in loading.items() if name != "devices"},
    "models": pooled,
    "gains": gains(drawn),
  }
  print(tables.as_text(results))
  output, markdown = paths
  if output:
    write_json(output, results)
    print(f"written to {output}")
  if markdown:
    tables.write_markdown(markdown, results)
    print(f"written to {markdown}")
  return results


def find_models(arguments: Sequence[str]) -> dict[str, list[str]]:
  """Finds the model folders or hub ids behind each name.

  Args:
    arguments: PATH or NAME=PATH, where PATH is a model folder, a hub id, perhaps
      ID@REVISION, or ROUND or ROUND/SEED of a training run's workdir.

  Raises:
    UserError: a path is not a model, or is given twice under one name.
  """
  models: dict[str, list[str]] = {}
  for argument in arguments:
    name, equals, place = argument.partition("=")
    if not equals or user_path(argument).is_dir():
      name = place = argument
    if not name or not place:
      raise UserError(f"--model {argument}: expected PATH or NAME=PATH")
    members = models.setdefault(name, [])
    for member in _seeds(place) or [place]:
      modules.read(folder.locate(member))
      if member in members:
        raise UserError(f"--model {argument}: {member} is given twice")
      members.append(member)
  return models


def _seeds(place: str) -> list[str]:
  """Lists the finished models in a round's or a seed's folder; none elsewhere."""
  path = user_path(place)
  if (path / "results.json").exists():
    raise UserError(f"{place} is a whole run: name {place}/ROUND or {place}/export")
  results = [*path.glob("result.json"), *path.glob("*/result.json")]
  # Seed 10 comes after seed 2.
  seeds = sorted((r.parent for r in results), key=lambda s: (len(s.name), s.name))
  if (path / "origin.json").exists() and not seeds:
    raise UserError(f"{place} has no finished model yet: train on, or name another")
  return [str(seed / "model") for seed in seeds]


def score(
  encode: Embed,
  evaluators: Sequence[Evaluator],
  model: Model | None = None,
  name: str = "the model",
  stream: Stream | None = None,
) -> dict[str, dict[str, float]]:
  """Scores one model with each evaluator; each distinct sentence is encoded once.

  Args:
    encode: turns sentences into embeddings [n, D].
    evaluators: those that score it.
    model: the model itself, for evaluators that need more than embeddings.
    name: the model's, for errors.
    stream: encodes texts as they come, for evaluators that have too many to keep.

  Returns:
    What `Evaluator.score` returns, by kind.

  Raises:
    UserError: an embedding holds NaN or infinity, or the model lacks what an
      evaluator needs.
  """
  return score_drawn(encode, evaluators, model, name, stream, draws=0)[0]


def score_drawn(
  encode: Embed,
  evaluators: Sequence[Evaluator],
  model: Model | None,
  name: str,
  stream: Stream | None,
  *,
  draws: int,
) -> tuple[dict[str, dict[str, float]], Drawn]:
  """Does what `score` does, and returns the scores of drawings of the data besides.

  Args:
    encode: see `score`.
    evaluators: likewise.
    model: likewise.
    name: likewise.
    stream: likewise.
    draws: how many drawings, see `Evaluator.score_drawn`.
  """
  for each in evaluators:
    if lacking := [field for field in each.required if getattr(model, field) is None]:
      raise UserError(f"{name} has no {lacking[0]}, which {each.kind} is measured by")

  def check(embeddings):
    if not is_finite(embeddings).all():
      raise UserError(
        "the model yields NaN or infinity, which nothing can be scored by"
      )
    return embeddings

  embed = embed_once(lambda sentences: check(encode(sentences)), evaluators)
  subject = Subject(model, embed, lambda *texts: map(check, stream(*texts)))
  found = {each.kind: each.score_drawn(subject, draws) for each in evaluators}
  return (
    {kind: scores for kind, (scores, _) in found.items()},
    {kind: drawn for kind, (_, drawn) in found.items()},
  )


def gains(drawn: Mapping[str, Sequence[Drawn]]) -> dict[str, Any]:
  """Compares each model with the first: 95 % of the drawings lie between two gains.

  That is what other data of the same kind would show. What other seeds would show, it
  does not say.

  Args:
    drawn: what `score_drawn` returned for the seeds of each model, by its name.

  Returns:
    The 2.5th and the 97.5th percentile of the gain, [low, high], by name, kind and
    column; nothing for the first, whose name is "over".
  """
  mean = lambda runs, kind, column: np.mean([r[kind][column] for r in runs], axis=0)
  (first, start), *others = drawn.items()
  found: dict[str, Any] = {"over": first, "models": {}}
  for name, runs in others:
    found["models"][name] = {
      kind: {
        column: np.percentile(
          mean(runs, kind, column) - mean(start, kind, column), [2.5, 97.5]
        ).tolist()
        for column in columns
      }
      for kind, columns in start[0].items()
      if columns
    }
  return found


def pool(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Pools the seeds of one model: their mean and sample standard deviation.

  Args:
    runs: results of `score`, perhaps with more fields; at least one.

  Returns:
    "n", the number of runs; for each kind of evaluator "mean" and "sd" by column, the
    latter None for one run; and "runs".
  """
  pooled: dict[str, Any] = {"n": len(runs)}
  for part, scores in runs[0].items():
    if isinstance(scores, dict):
      values = {key: [run[part][key] for run in runs] for key in scores}
      mean = {key: float(np.mean(each)) for key, each in values.items()}
      sd = None
      if len(runs) > 1:
        sd = {key: float(np.std(each, ddof=1)) for key, each in values.items()}
      pooled[part] = {"mean": mean, "sd": sd}
  return pooled | {"runs": list(runs)}

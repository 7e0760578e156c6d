"""The README.md of an exported model, in the hub's form."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import huggingface_hub

from dcse_jax import losses
from dcse_jax.model import model as model_lib
from dcse_jax.model import pooling as pooling_lib

# Fields that say where a model came from; others are settings of the training.
_ORIGIN = ("model", "text", "columns", "start", "teachers")
# Settings that say nothing about the model, or that the card shows elsewhere.
_NOT_SHOWN = ("sts", "dev", "test", "rounds", "encoder", "log_every", "eval_every")
_OF_TEACHERS = ("teacher_cache", "teacher_weights")


@dataclasses.dataclass(frozen=True)
class Training:
  """The facts about a model's training.

  Attributes:
    name: its round and seed.
    config: its round's config, with `teachers` and `start` as the run resolved them.
    seed: the model's.
    scores: Spearman in percent by STS set; empty for a model not yet finished.
    step: the checkpoint's; None for a finished model.
  """

  name: str
  config: Mapping[str, Any]
  seed: int
  scores: Mapping[str, float]
  step: int | None = None


def make_card(model: model_lib.Model, name: str, training: Training | None) -> str:
  """Writes the text of a model card.

  Args:
    model: the model.
    name: what to call it, a hub id or a folder's name.
    training: None for a model that was not trained here.
  """
  scores = training.scores if training else {}
  results = [
    huggingface_hub.EvalResult(
      task_type="semantic-similarity",
      task_name="Semantic Similarity",
      dataset_type="unknown",  # No hub id is known; dataset_config tells sets apart.
      dataset_config=set_name,
      dataset_name=set_name,
      metric_type="spearman_cosine",
      metric_name="Spearman, cosine, x 100",
      metric_value=round(score, 2),
    )
    for set_name, score in scores.items()
    if set_name != "avg"
  ]
  data = huggingface_hub.ModelCardData(
    library_name="sentence-transformers",
    pipeline_tag="sentence-similarity",
    tags=["sentence-transformers", "sentence-similarity", "feature-extraction"],
    model_name=name.rpartition("/")[2],
    eval_results=results or None,
  )
  layers, width = model.config.num_layers, model.config.hidden_size
  size, whole = model.embedding_size, dataclasses.replace(model, truncate_dim=None)
  numbers = f"{size} numbers"
  if size < whole.embedding_size:
    numbers = f"the first {size} of {whole.embedding_size} numbers"
  widths = training.config.get("matryoshka") if training else None
  parts = [
    f"---\n{data.to_yaml()}\n---",
    f"# {name}",
    "A sentence encoder: sentences that mean alike get embeddings of a high cosine "
    f"similarity. {layers} layer{'s' * (layers > 1)} of width {width}, embeddings of "
    f"{numbers} by {_pooling(model)}, sentences of up to {model.max_length} tokens."
    + (f" Cut to its first {_cell(widths)} numbers it serves, too." if widths else ""),
    "## Use",
    f"""With sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
embeddings = model.encode(["A cat sleeps.", "A dog barks."])
print(model.similarity(embeddings, embeddings))
```

With dcse_jax, in JAX, on TPUs and GPUs:

```python
from dcse_jax import SentenceEncoder

model = SentenceEncoder("{name}")
embeddings = model.encode(["A cat sleeps.", "A dog barks."])
print(model.similarity(embeddings, embeddings))
```""",
  ]
  if training:
    parts += ["## Training", *_training(training)]
  if scores:
    parts += ["## Evaluation", *_evaluation(scores)]
  return "\n\n".join(parts) + "\n"


def _pooling(model: model_lib.Model) -> str:
  pooled = pooling_lib.get(model.pooling).summary
  layers = len(model.dense_layers)
  head = " and a dense layer" if layers == 1 else f" and {layers} dense layers"
  unit = ", of unit length" if model.normalize else ""
  return pooled + head * (layers > 0) + unit + _prompts(model)


def _prompts(model: model_lib.Model) -> str:
  if model.prompt:
    return f", each after the prompt `{model.prompt}`"
  roles = [role for role in model_lib.ROLES if model.prompts.get(role)]
  return "".join(
    f", a {role} after the prompt `{model.prompts[role]}`" for role in roles
  )


def _cell(value: Any) -> str:
  text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
  return text.replace("|", "\\|").replace("\n", " ") or "-"


def _table(rows: Mapping[str, Any], header: tuple[str, str]) -> str:
  lines = ["| {} | {} |".format(*header), "| --- | --- |"]
  return "\n".join(lines + [f"| {key} | {_cell(rows[key])} |" for key in rows])


def _training(training: Training) -> list[str]:
  config = training.config
  terms = losses.names(config["objective"])
  parts = [f"Round and seed `{training.name}`, objective `{config['objective']}`:"]
  parts.append("\n".join(f"- {_cite(term)}" for term in terms))
  if training.step is not None:
    parts.append(f"A checkpoint of a run under way: step {training.step}.")
  origin = {
    "text": _public(config["text"])
    or f"{config['synthetic_sentences']} made-up sentences",
    "columns": config["columns"],
    "start": [_member(m) for m in config["start"]]
    or _public(config["model"])
    or "new parameters",
    "teachers": [_member(m) for group in config["teachers"] for m in group],
  }
  parts.append(_table({k: v for k, v in origin.items() if v}, ("from", "")))
  skipped = {*_ORIGIN, *_NOT_SHOWN}
  if not config["teachers"]:
    skipped.update(_OF_TEACHERS)
  settings = {
    key: value
    for key, value in sorted(config.items())
    if key not in skipped and not key.startswith(("round ", "synthetic_"))
  }
  settings["seed of the model"] = training.seed
  return [*parts, _table(settings, ("setting", "value"))]


def _cite(name: str) -> str:
  if name not in losses.TERMS:
    return f"`{name}`: a term of the run's own config"
  term = losses.TERMS[name]
  links = [f"[arXiv:{p}](https://arxiv.org/abs/{p})" for p in term.papers]
  return f"`{name}`: {', '.join([term.summary or 'a term of its own', *links])}"


def _member(member: Any) -> str:
  """Names a model of another round, or an outside one."""
  return _public(member) if isinstance(member, str) else "/".join(map(str, member))


def _public(name: str) -> str:
  """Returns a hub id as it is, and the last part of a path: the rest is private."""
  hub_id = name.partition("@")[0]  # A revision may hold a slash.
  is_path = name.startswith(("/", ".", "~")) or hub_id.count("/") > 1
  return pathlib.PurePath(name).name if is_path else name


def _evaluation(scores: Mapping[str, float]) -> list[str]:
  return [
    "Spearman's correlation of cosine similarities with human scores, x 100, over "
    "all pairs of a file.",
    _table({name: f"{score:.2f}" for name, score in scores.items()}, ("set", "score")),
  ]

"""sentence-transformers' losses for distillation, by its own trainer.

Where that cannot run for want of accelerate or datasets, a loop of a few lines does what
it does by default: AdamW without decay, the rate falling to 0, gradients clipped at 1.
"""

import functools
import importlib.util
import tempfile
import time

import numpy as np
import sentence_transformers
from sentence_transformers import losses as losses_lib
import torch

# Candidates of a query, so that a batch holds as many sentences as everybody's.
_CANDIDATES = 7
_TEMPERATURE = 0.05


def _make_loss(name: str, model):
  if not hasattr(losses_lib, name):
    raise SystemExit(
      f"sentence-transformers {sentence_transformers.__version__} has no {name}"
    )
  if name != "DistillKLDivLoss":
    return getattr(losses_lib, name)(model)
  return losses_lib.DistillKLDivLoss(
    model,
    similarity_fct=sentence_transformers.util.pairwise_cos_sim,
    temperature=_TEMPERATURE,
  )


class Distiller:
  """Trains as `quality.Ours` does, one model after the other."""

  def __init__(self, task):
    self._task = task
    self._device = "cuda" if torch.cuda.is_available() else "cpu"
    needed = map(importlib.util.find_spec, ("accelerate", "datasets"))
    self._fit = self._by_trainer if all(needed) else self._by_loop
    if self._fit == self._by_loop:
      print("no accelerate or datasets: peers train by a loop of our own", flush=True)

  def train(self, contender: str, steps: int, runs: list[tuple[float, int]]):
    """Trains as `quality.Ours.train` does."""
    for rate, seed in runs:
      yield self._train(contender, steps, rate, seed)

  def _train(self, contender, steps, rate, seed):
    options = self._task.options
    torch.manual_seed(seed)
    model = sentence_transformers.SentenceTransformer(
      str(self._task.student_folder), device=self._device, local_files_only=True
    )
    longest, model.max_seq_length = model.max_seq_length, options.max_length
    sentences = 1 + _CANDIDATES * (contender == "DistillKLDivLoss")
    texts, labels = self._rows(sentences, steps, seed)
    loss = _make_loss(contender, model).to(self._device)
    begin = time.perf_counter()
    self._fit(model, loss, texts, labels, steps=steps, rate=rate, seed=seed)
    seconds = time.perf_counter() - begin
    model.max_seq_length = longest
    model.eval()
    encode = lambda texts: model.encode(texts, batch_size=256, show_progress_bar=False)
    return functools.partial(self._task.score, encode), seconds

  def _rows(self, sentences: int, steps: int, seed: int):
    """Columns of sentences, and labels: their embeddings, or a query's cosines."""
    rows = steps * (self._task.options.batch // sentences)
    rng, number = np.random.default_rng(seed), len(self._task.sentences)
    # Each epoch takes the whole text in another order.
    epochs = -(-rows * sentences // number)
    order = np.concatenate([rng.permutation(number) for _ in range(epochs)])
    chosen = order[: rows * sentences].reshape(rows, sentences)
    texts = [[self._task.sentences[i] for i in column] for column in chosen.T]
    teacher = np.asarray(self._task.teacher, np.float32)
    if sentences == 1:
      return texts, teacher[chosen[:, 0]]
    teacher = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    cosine = np.einsum("nd,nkd->nk", teacher[chosen[:, 0]], teacher[chosen[:, 1:]])
    return texts, cosine

  def _by_trainer(self, model, loss, texts, labels, *, steps, rate, seed) -> None:
    import datasets

    columns = {f"text_{c}": column for c, column in enumerate(texts)}
    with tempfile.TemporaryDirectory() as folder:
      sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
          output_dir=folder,
          per_device_train_batch_size=self._task.options.batch // len(texts),
          max_steps=steps,
          learning_rate=rate,
          seed=seed,
          use_cpu=self._device == "cpu",
          save_strategy="no",
          logging_strategy="no",
          report_to=[],
          disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({**columns, "label": list(labels)}),
        loss=loss,
      ).train()

  def _by_loop(self, model, loss, texts, labels, *, steps, rate, seed) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
      optimizer, lambda step: max(0.0, 1.0 - step / steps)
    )
    size = self._task.options.batch // len(texts)
    # Other releases call it otherwise.
    tokenize = getattr(model, "preprocess", None) or model.tokenize
    model.train()
    for step in range(steps):
      batch = slice(step * size, (step + 1) * size)
      features = [
        {
          name: value.to(self._device) if isinstance(value, torch.Tensor) else value
          for name, value in tokenize(column[batch]).items()
        }
        for column in texts
      ]
      target = torch.from_numpy(labels[batch]).to(self._device)
      value = loss(features, target)
      optimizer.zero_grad()
      value.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      schedule.step()

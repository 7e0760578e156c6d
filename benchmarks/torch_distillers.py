"""sentence-transformers' own trainer and its losses for distillation."""

import tempfile
import time

import datasets
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

  def train(self, contender: str, steps: int, runs: list[tuple[float, int]]):
    """Trains a model for each (rate, seed); yields each one's scores and seconds."""
    for rate, seed in runs:
      yield self._train(contender, steps, rate, seed)

  def _train(self, contender, steps, rate, seed):
    options = self._task.options
    torch.manual_seed(seed)
    model = sentence_transformers.SentenceTransformer(
      str(self._task.student_folder), device=self._device, local_files_only=True
    )
    longest, model.max_seq_length = model.max_seq_length, options.max_length
    sentences = 1
    if contender == "DistillKLDivLoss":
      sentences = 1 + _CANDIDATES
    with tempfile.TemporaryDirectory() as folder:
      trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
          output_dir=folder,
          per_device_train_batch_size=options.batch // sentences,
          max_steps=steps,
          learning_rate=rate,
          seed=seed,
          use_cpu=self._device == "cpu",
          save_strategy="no",
          logging_strategy="no",
          report_to=[],
          disable_tqdm=True,
        ),
        train_dataset=self._data(sentences, steps, seed),
        loss=_make_loss(contender, model),
      )
      begin = time.perf_counter()
      trainer.train()
      seconds = time.perf_counter() - begin
    model.max_seq_length = longest
    model.eval()
    encode = lambda texts: model.encode(texts, batch_size=256, show_progress_bar=False)
    return self._task.score(encode), seconds

  def _data(self, sentences: int, steps: int, seed: int) -> datasets.Dataset:
    """Sentences with the teacher's embeddings, or queries with its cosines."""
    rows = steps * (self._task.options.batch // sentences)
    rng = np.random.default_rng(seed)
    number = len(self._task.sentences)
    if sentences == 1:
      chosen = rng.permutation(number)[:rows]
      label = np.asarray(self._task.teacher[np.sort(chosen)], np.float32)
      texts = [self._task.sentences[i] for i in np.sort(chosen)]
      return datasets.Dataset.from_dict({"sentence": texts, "label": list(label)})
    # Each epoch of the whole text in another order.
    epochs = -(-rows * sentences // number)
    order = np.concatenate([rng.permutation(number) for _ in range(epochs)])
    chosen = order[: rows * sentences].reshape(rows, sentences)
    teacher = np.asarray(self._task.teacher, np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    cosine = np.einsum("nd,nkd->nk", teacher[chosen[:, 0]], teacher[chosen[:, 1:]])
    columns = {
      f"text_{c}": [self._task.sentences[i] for i in chosen[:, c]]
      for c in range(sentences)
    }
    return datasets.Dataset.from_dict({**columns, "label": list(cosine)})

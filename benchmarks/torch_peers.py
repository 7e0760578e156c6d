"""The training step in PyTorch: as published, tuned, and with our own tricks.

`published` follows the published code's way of working: padded to 32, eager
attention, one forward a teacher a step, Group-P one row after the other. `tuned`
is what a good PyTorch programmer makes of it without changing what is computed:
scaled_dot_product_attention, fused AdamW, a vectorised shuffle. `tricks` adds
the last layer for [CLS] alone and teachers from a cache. Further down is
sentence-transformers' own trainer.
"""

import functools
import pathlib

import numpy as np
import torch
from torch.nn import functional as F
import transformers

from benchmarks import prepare

_LEARNING_RATE, _GROUP_P = 3e-5, 0.1
_TEMPERATURE, _STUDENT_TEMPERATURE, _TEACHER_TEMPERATURE = 0.05, 0.025, 0.0125


def group_shuffle_by_rows(logits: torch.Tensor) -> torch.Tensor:
  """Group-P, one row and one group after the other; logits [B, B - 1]."""
  result = logits.clone()
  num_groups = int(1 / _GROUP_P)
  for i in range(len(logits)):
    values, order = torch.sort(logits[i], descending=True)
    total = torch.cumsum(torch.softmax(values, dim=0), dim=0)
    for g in range(num_groups):
      inside = total >= g * _GROUP_P
      if g < num_groups - 1:
        inside &= total < (g + 1) * _GROUP_P
      place = torch.nonzero(inside).flatten()
      if len(place) > 1:
        shuffled = place[torch.randperm(len(place))]
        result[i, order[place]] = values[shuffled]
  return result


def group_shuffle(logits: torch.Tensor) -> torch.Tensor:
  """Group-P, all rows at once; logits [B, B - 1]."""
  values, order = torch.sort(logits, dim=1, descending=True)
  total = torch.cumsum(torch.softmax(values, dim=1), dim=1)
  group = (total / _GROUP_P).floor().clamp(0, int(1 / _GROUP_P) - 1)
  shuffled = torch.argsort(group + torch.rand_like(group), dim=1)
  return torch.empty_like(logits).scatter_(1, order, values.gather(1, shuffled))


def off_diagonal(x: torch.Tensor) -> torch.Tensor:
  size = len(x)
  return x.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


class _FirstTokenOnly(torch.nn.Module):
  """BERT whose last layer computes [CLS] alone."""

  def __init__(self, bert):
    super().__init__()
    *layers, self.last = bert.encoder.layer
    bert.encoder.layer = torch.nn.ModuleList(layers)
    self.bert = bert

  def forward(self, input_ids, attention_mask):
    x = self.bert(input_ids=input_ids, attention_mask=attention_mask)
    x = x.last_hidden_state
    mine, attention = self.last.attention.self, self.last.attention
    heads = self.bert.config.num_attention_heads
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)
    attended = F.scaled_dot_product_attention(
      split(mine.query(x[:, :1])),
      split(mine.key(x)),
      split(mine.value(x)),
      attn_mask=attention_mask[:, None, None].bool(),
      dropout_p=mine.dropout.p if self.training else 0.0,
    )
    attended = attended.transpose(1, 2).flatten(-2)
    middle = attention.output(attended, x[:, :1])
    return self.last.output(self.last.intermediate(middle), middle)[:, 0]


class _FirstToken(torch.nn.Module):
  def __init__(self, bert):
    super().__init__()
    self.bert = bert

  def forward(self, input_ids, attention_mask):
    states = self.bert(input_ids=input_ids, attention_mask=attention_mask)
    return states.last_hidden_state[:, 0]


class _OnDevice:
  """What a contender that trains on a device tells of that device's memory."""

  _device: torch.device

  def free(self) -> None:
    """Gives a GPU's memory back until the next step."""
    torch.cuda.empty_cache()

  def peak(self) -> int:
    """The most bytes of a GPU's memory that were in use at once."""
    return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0


class Peer(_OnDevice):
  """A contender: `loss` without dropout or shuffle, `steps` of training."""

  def __init__(self, path: pathlib.Path, options):
    torch.manual_seed(0)
    self._tricks = options.name == "tricks"
    self._published = options.name == "published"
    self._batch_size = options.batch
    self._device = torch.device(options.device)
    self._autocast = functools.partial(
      torch.autocast, options.device, torch.bfloat16, enabled=options.bfloat16
    )
    if options.bfloat16:
      # What is left of float32 products takes TensorFloat-32, as JAX's do.
      torch.set_float32_matmul_precision("high")
    self._ids, self._mask = prepare.read_tokens(path)
    self._encoder = self._load(path / "model")
    weights = np.load(path / "projection.npz")
    width = len(weights["bias"])
    self._projection = torch.nn.Linear(width, width)
    self._projection.weight.data = torch.tensor(weights["kernel"].T.copy())
    self._projection.bias.data = torch.tensor(weights["bias"])
    self._projection.to(self._device)
    self._cached, self._teachers = [], []
    if options.cached and self._tricks:
      self._cached = prepare.read_teacher_embeddings(path, options.teachers)
    else:
      self._teachers = [
        self._load(path / f"teacher-{i}").eval() for i in range(options.teachers)
      ]
    self._parameters = [*self._encoder.parameters(), *self._projection.parameters()]
    fused = {} if self._published else {"fused": True}
    self._optimizer = torch.optim.AdamW(
      self._parameters, lr=_LEARNING_RATE, weight_decay=0.0, **fused
    )
    if options.compile:
      self._encoder = torch.compile(self._encoder)
      self._teachers = [torch.compile(teacher) for teacher in self._teachers]

  def _load(self, path):
    attention = "eager" if self._published else "sdpa"
    kind = transformers.AutoConfig.from_pretrained(path).model_type
    without = {"add_pooling_layer": False} if kind == "bert" else {}
    bert = transformers.AutoModel.from_pretrained(
      path, attn_implementation=attention, **without
    )
    encoder = (_FirstTokenOnly if self._tricks else _FirstToken)(bert)
    return encoder.to(self._device)

  def _target(self, ids, mask, rows):
    with torch.inference_mode():
      with self._autocast():
        embeddings = [teacher(ids, mask) for teacher in self._teachers]
      if self._cached:
        embeddings = [torch.from_numpy(c[rows]) for c in self._cached]
      embeddings = [e.to(self._device).float() for e in embeddings]
      unit = [F.normalize(e, dim=-1) for e in embeddings]
      return torch.stack([u @ u.T for u in unit]).mean(dim=0)

  def _loss(self, rows, shuffles: bool):
    ids, mask = self._ids[rows], self._mask[rows]
    if not self._published:
      longest = mask.sum(axis=1).max()
      ids, mask = ids[:, :longest], mask[:, :longest]
    ids, mask = (torch.from_numpy(x).long().to(self._device) for x in (ids, mask))
    with self._autocast():
      embeddings = self._encoder(ids.repeat(2, 1), mask.repeat(2, 1))
    unit = F.normalize(torch.tanh(self._projection(embeddings.float())), dim=-1)
    anchors, positives = unit[: len(rows)], unit[len(rows) :]
    logits = anchors @ positives.T / _TEMPERATURE
    loss = F.cross_entropy(logits, torch.arange(len(rows), device=self._device))
    if not self._teachers and not self._cached:
      return loss
    target = off_diagonal(self._target(ids, mask, rows))
    if shuffles:
      shuffle = group_shuffle_by_rows if self._published else group_shuffle
      target = shuffle(target)
    student = off_diagonal(anchors @ anchors.T) / _STUDENT_TEMPERATURE
    target = torch.softmax(target / _TEACHER_TEMPERATURE, dim=1)
    return loss - (target * torch.log_softmax(student, dim=1)).sum(dim=1).mean()

  def _rows(self, step: int):
    first = step * self._batch_size + np.arange(self._batch_size)
    return first % len(self._ids)

  def loss(self) -> float:
    self._encoder.eval()
    with torch.no_grad():
      return self._loss(self._rows(0), shuffles=False).item()

  def steps(self, first: int, count: int) -> list[float]:
    self._encoder.train()
    losses = []
    for step in range(first, first + count):
      loss = self._loss(self._rows(step), shuffles=True)
      self._optimizer.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
      self._optimizer.step()
      losses.append(loss.detach())  # Not waited for, as in a loop that logs seldom.
    return [loss.item() for loss in losses]

  def free(self) -> None:
    self._optimizer.zero_grad()
    super().free()


class TrainerPeer(_OnDevice):
  """sentence-transformers' trainer; its steps come one at a time from a thread."""

  def __init__(self, path: pathlib.Path, options):
    import queue
    import threading

    import datasets
    import sentence_transformers
    from sentence_transformers import losses

    text = path.joinpath("text.txt").read_text().splitlines()
    data = datasets.Dataset.from_dict({"anchor": text, "positive": text})
    self._device = torch.device(options.device)
    model = sentence_transformers.SentenceTransformer(
      str(path / "model"), device=options.device
    )
    self._turns, self._done = queue.Queue(), queue.Queue()
    peer = self

    class Turns(transformers.TrainerCallback):
      def on_step_begin(self, args, state, control, **kwargs):
        peer._turns.get()

      def on_step_end(self, args, state, control, **kwargs):
        peer._done.put(None)

    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
      output_dir=str(path / "sentence-transformers"),
      per_device_train_batch_size=options.batch,
      max_steps=10_000,
      learning_rate=_LEARNING_RATE,
      use_cpu=options.device == "cpu",
      bf16=options.bfloat16,
      save_strategy="no",
      logging_strategy="no",
      report_to=[],
      disable_tqdm=True,
    )
    trainer = sentence_transformers.SentenceTransformerTrainer(
      model=model,
      args=arguments,
      train_dataset=data,
      loss=losses.MultipleNegativesRankingLoss(model),
      callbacks=[Turns()],
    )

    def train():
      try:
        trainer.train()
      except Exception as error:  # Whoever waits for a step gets it.
        self._done.put(error)

    threading.Thread(target=train, daemon=True).start()

  def loss(self) -> float:
    return float("nan")  # It has no projection: another loss by design.

  def steps(self, first: int, count: int) -> list[float]:
    for _ in range(count):
      self._turns.put(None)
      if error := self._done.get():
        raise error
    if self._device.type == "cuda":
      torch.cuda.synchronize()
    return [float("nan")] * count


class EncodePeer:
  """sentence-transformers' `encode`."""

  def __init__(self, path: pathlib.Path, options):
    import sentence_transformers

    if options.device != "cpu":
      # As JAX's products of float32 are on a GPU.
      torch.set_float32_matmul_precision("high")
    self._text = path.joinpath("text.txt").read_text().splitlines()
    self._batch_size = options.batch
    self._model = sentence_transformers.SentenceTransformer(
      str(path / "model"), device=options.device
    )

  def loss(self) -> float:
    return float(np.abs(self._encode(self._text[:256])).sum())

  def _encode(self, sentences):
    return self._model.encode(
      sentences, batch_size=self._batch_size, show_progress_bar=False
    )

  def steps(self, first: int, count: int) -> list[float]:
    self._encode(self._text)
    return []

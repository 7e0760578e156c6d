"""SentEval's protocol against the same steps in PyTorch."""

import numpy as np
import pytest

from dcse_jax.eval import senteval
from dcse_jax.eval import transfer
from dcse_jax.eval import transfer_tasks

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="needs dcse_jax[eval]")
from sklearn.model_selection import StratifiedKFold  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread():
  """Threads that wait for each other take many times as long on a busy machine."""
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)


PENALTIES = [1e-5, 1e-4, 1e-3, 1e-2]


def torch_fit(x, y, penalty, held_out=None):
  """Trains one classifier; returns its prediction function and held-out accuracy."""
  random = np.random.RandomState(1111)
  torch.manual_seed(1111)
  model = torch.nn.Linear(x.shape[1], len(set(y.tolist())))
  optimizer = torch.optim.Adam(model.parameters(), weight_decay=penalty)
  if held_out is None:
    order, cut = random.permutation(len(x)), int(0.05 * len(x))
    held_out = x[order[:cut]], y[order[:cut]]
    x, y = x[order[cut:]], y[order[cut:]]
  x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
  dev_x = torch.tensor(held_out[0], dtype=torch.float32)
  best, kept, without_gain = -1.0, None, 0
  for _ in range(51):  # Four passes each: 0, 4, ... 200 are at most 200.
    for _ in range(4):
      order = torch.from_numpy(random.permutation(len(x)))
      for rows in order.split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    told = model(dev_x).argmax(1).numpy()
    if (accuracy := np.mean(told == held_out[1])) > best:
      best, kept = accuracy, [p.detach().clone() for p in model.parameters()]
    elif (without_gain := without_gain + 1) == 6:
      break
  weight, bias = (p.numpy() for p in kept)
  return lambda rows: np.argmax(rows @ weight.T + bias, axis=1), best


def torch_folds(y, number):
  folds = StratifiedKFold(number, shuffle=True, random_state=1111)
  return list(folds.split(np.zeros(len(y)), y))


def torch_choose(x, y, number):
  means = []
  for penalty in PENALTIES:
    fits = [
      torch_fit(x[a], y[a], penalty, (x[b], y[b])) for a, b in torch_folds(y, number)
    ]
    means.append(round(100 * np.mean([accuracy for _, accuracy in fits]), 2))
  return PENALTIES[int(np.argmax(means))], max(means)


def torch_cross_validate(x, y, number):
  chosen, tested = [], []
  for a, b in torch_folds(y, number):
    penalty, accuracy = torch_choose(x[a], y[a], number)
    chosen.append(accuracy)
    predict, _ = torch_fit(x[a], y[a], penalty)
    tested.append(round(100 * np.mean(predict(x[b]) == y[b]), 2))
  return np.mean(chosen), np.mean(tested)


def made_up(seed, num, num_classes, num_features=12, noise=2.0):
  """Makes features, a few of which tell the class, badly."""
  rng = np.random.default_rng(seed)
  y = np.sort(rng.integers(num_classes, size=num))
  centres = np.random.default_rng(100).normal(size=(num_classes, num_features))
  x = centres[y] + noise * rng.normal(size=(num, num_features))
  return (0.3 * x).astype(np.float32), y


def check_cross_validation(number, num_rows):
  x, y = made_up(0, num_rows, 2)
  chosen, tested = torch_cross_validate(x, y, number)
  # These are the same steps except for rounding; a row near the border may differ.
  assert senteval.cross_validate(x, y) == pytest.approx(tested, abs=0.5)
  assert senteval.cross_validate(x, y, dev=True) == pytest.approx(chosen, abs=0.5)


def test_nested_folds_score_as_in_pytorch(monkeypatch):
  monkeypatch.setattr(senteval, "_FOLDS", 3)
  check_cross_validation(3, 120)


@pytest.mark.slow
def test_nested_folds_score_as_in_pytorch_with_ten_of_them():
  check_cross_validation(10, 64)


def check_six_classes(number):
  (x, y), (test_x, test_y) = made_up(1, 180, 6), made_up(2, 200, 6)
  penalty, accuracy = torch_choose(x, y, number)
  predict, _ = torch_fit(x, y, penalty)
  found, told = senteval.predict({"train": x, "test": test_x}, {"train": y})
  assert found == pytest.approx(accuracy, abs=0.5)
  assert np.mean(told == predict(test_x)) >= 0.995
  assert 25 < 100 * np.mean(told == test_y) < 95  # Neither chance nor all.


def test_six_classes_are_told_as_in_pytorch(monkeypatch):
  monkeypatch.setattr(senteval, "_FOLDS", 3)
  check_six_classes(3)


@pytest.mark.slow
def test_six_classes_are_told_as_in_pytorch_with_ten_folds():
  check_six_classes(10)


def test_a_dev_set_chooses_and_stops_as_in_pytorch():
  parts = {"train": (3, 300), "dev": (4, 100), "test": (5, 300)}
  data = {split: made_up(seed, num, 2) for split, (seed, num) in parts.items()}
  (x, y), held_out, (test_x, test_y) = (data[split] for split in parts)
  fits = [torch_fit(x, y, penalty, held_out) for penalty in PENALTIES]
  accuracies = [accuracy for _, accuracy in fits]
  predict, accuracy = fits[int(np.argmax(accuracies))]
  # Embeddings look their features up; the rows are in SentEval's order already: all of
  # one word, by class.
  every = np.concatenate([rows for rows, _ in data.values()])
  starts = dict(zip(parts, np.cumsum([0, 300, 100])))
  task = {
    split: transfer_tasks.Split(
      labels.astype(str), ([str(starts[split] + i) for i in range(len(labels))],)
    )
    for split, (_, labels) in data.items()
  }
  embed = lambda sentences: every[[int(s) for s in sentences]]
  score = lambda **kwargs: transfer.score_task(
    embed, task, classifier="senteval", **kwargs
  )["accuracy"]
  assert score() == pytest.approx(100 * np.mean(predict(test_x) == test_y), abs=0.5)
  assert score(dev=True) == pytest.approx(100 * accuracy, abs=0.5)


def test_pairs_are_ordered_by_words_then_class_and_told_as_in_pytorch(monkeypatch):
  monkeypatch.setattr(senteval, "_FOLDS", 3)
  rng = np.random.default_rng(6)
  table = rng.normal(size=(50, 8))

  def embed(sentences):
    words = [[int(w) for w in s.split()] for s in sentences]
    return np.stack([table[w].mean(axis=0) for w in words])

  def pairs(num):
    sentence = lambda: " ".join(map(str, rng.integers(50, size=rng.integers(1, 5))))
    first, other = [sentence() for _ in range(num)], [sentence() for _ in range(num)]
    labels = rng.integers(2, size=num)
    second = [
      f"{a} {b.split()[0]}" if y else b for a, b, y in zip(first, other, labels)
    ]
    return transfer_tasks.Split(labels.astype(str), (first, second))

  task = {"train": pairs(128), "test": pairs(150)}
  rows = {}
  for split, of_split in task.items():
    key = lambda row: (len(row[0].split()), len(row[1].split()), row[2])
    ordered = sorted(zip(*of_split.sentences, of_split.labels), key=key)
    u, v = embed([a for a, _, _ in ordered]), embed([b for _, b, _ in ordered])
    features = np.concatenate([np.abs(u - v), u * v], axis=1).astype(np.float32)
    rows[split] = features, np.asarray([int(y) for _, _, y in ordered])
  penalty, _ = torch_choose(*rows["train"], 3)
  predict, _ = torch_fit(*rows["train"], penalty)
  told, gold = predict(rows["test"][0]), rows["test"][1]
  scores = transfer.score_task(embed, task, classifier="senteval")
  assert scores["accuracy"] == pytest.approx(100 * np.mean(told == gold), abs=0.7)
  f1 = 200 * np.sum(told & gold) / np.sum(told + gold)
  assert scores["f1"] == pytest.approx(f1, abs=1.0)

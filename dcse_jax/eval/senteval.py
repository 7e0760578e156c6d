"""SentEval's own classifier, and how it chooses the classifier's L2 penalty.

It is logistic regression by Adam (rate 1e-3, batches of 64) on unscaled features. After
every four passes over the training rows it takes the accuracy on held-out rows and
keeps the best parameters so far; it stops at the sixth time without a gain, or after
204 passes. The penalty is one of 1e-5, 1e-4, 1e-3 and 1e-2, the first of equally good
ones, added to the gradient of weights and bias. Each classifier begins from seed 1111:
the weights that torch.nn.Linear draws, and NumPy's permutations for the order of rows.

While a penalty is chosen, the held-out rows are those that it is judged by. A task
without a dev set trains the classifier that is tested on 95 % of its rows and holds out
the rest. There are ten folds, stratified and shuffled by seed 1111.

The loss is the mean over a batch: SentEval's code asks torch for the sum, in a way that
torch has ignored since version 0.4.1. Classifiers that differ only by fold or penalty
are trained side by side.

References:
  Conneau and Kiela, SentEval, 2018 (arXiv:1803.05449), and its published code with
  SimCSE's settings for test scores: nhid 0, adam, batch 64, tenacity 5, epoch size 4,
  ten folds. Its option without a penalty is only for SNLI, which is not here.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
_SEED, _FOLDS = 1111, 10
_BATCH, _RATE = 64, 1e-3
_EPOCHS_A_LOOK, _MAX_EPOCHS, _TENACITY = 4, 200, 5
_HELD_OUT = 0.05


def _initial(num_features: int, num_classes: int) -> dict[str, np.ndarray]:
  """Draws the weights [F, K] and bias [K] that torch.nn.Linear does after seed 1111.

  Both are uniform within 1 / sqrt(F), from 24 bits of each Mersenne twister number.
  """
  draws = np.random.RandomState(_SEED).randint(
    2**32, size=(num_features + 1) * num_classes, dtype=np.uint32
  )
  bound = np.float32(1 / np.sqrt(num_features))
  numbers = (draws & (2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)
  numbers = numbers * (2 * bound) - bound
  weights = numbers[: num_features * num_classes]
  return {
    "weights": weights.reshape(num_classes, num_features).T,
    "bias": numbers[num_features * num_classes :],
  }


@functools.partial(jax.jit, donate_argnums=(0,))
def _train(state, penalties, x, y, batches):
  """Trains between two looks at the held-out rows.

  Args:
    state: parameters and Adam's state of each fold and penalty, [S, P, ...].
    penalties: [S, P].
    x: features of all rows, [n, F].
    y: their classes, [n].
    batches: numbers of rows, [T, S, B], -1 where there is none.
  """
  optimizer = optax.scale_by_adam()

  def loss(params, features, classes, is_row):
    logits = jnp.matmul(
      features, params["weights"], precision=jax.lax.Precision.HIGHEST
    )
    each = optax.softmax_cross_entropy_with_integer_labels(
      logits + params["bias"], classes
    )
    return jnp.sum(jnp.where(is_row, each, 0)) / jnp.maximum(is_row.sum(), 1)

  def step_one(state, penalty, *batch):
    params, moments = state
    gradient = jax.grad(loss)(params, *batch)
    gradient = jax.tree.map(lambda g, p: g + penalty * p, gradient, params)
    update, moments = optimizer.update(gradient, moments)
    return jax.tree.map(lambda p, u: p - _RATE * u, params, update), moments

  def step(state, rows):
    is_row = rows >= 0
    batch = x[rows], y[rows], is_row
    of_penalties = jax.vmap(step_one, in_axes=(0, 0, None, None, None))
    of_folds = jax.vmap(of_penalties, in_axes=0)
    new = of_folds(state, penalties, *batch)
    # A fold with fewer rows may have one batch less.
    some = is_row.any(axis=1)
    pick = lambda a, b: jnp.where(some.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, new, state), None

  return jax.lax.scan(step, state, batches)[0]


@jax.jit
def _classes(params, x):
  """Predicts each row's class with each fold's and penalty's parameters, [S, P, n]."""
  logits = jnp.einsum(
    "nf,spfk->spnk", x, params["weights"], precision=jax.lax.Precision.HIGHEST
  )
  return jnp.argmax(logits + params["bias"][:, :, None], axis=-1)


def _fit(
  x: np.ndarray,
  y: np.ndarray,
  trained: Sequence[np.ndarray],
  held_out: Sequence[np.ndarray],
  penalties: np.ndarray,
  randoms: Sequence[np.random.RandomState],
) -> tuple[np.ndarray, np.ndarray]:
  """Trains a classifier for each fold and penalty.

  Args:
    x: features of all rows, [n, F].
    y: their classes, [n], from 0.
    trained: the numbers of the rows to train on in each of S folds, in their order.
    held_out: those whose accuracy says when to stop.
    penalties: [S, P].
    randoms: draw each fold's order of rows.

  Returns:
    The classes of all rows, [S, P, n], and the accuracies on held-out rows, [S, P].
  """
  shape, num_classes = penalties.shape, int(y.max()) + 1
  params = jax.tree.map(
    lambda leaf: jnp.tile(leaf, (*shape, *(1,) * leaf.ndim)),
    _initial(x.shape[1], num_classes),
  )
  state = params, jax.vmap(jax.vmap(optax.scale_by_adam().init))(params)
  on_device = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
  rates = jnp.asarray(penalties, jnp.float32)
  steps = -(-max(map(len, trained)) // _BATCH)
  best, losses = np.full(shape, -1.0), np.zeros(shape, int)
  predicted = np.zeros((*shape, len(y)), np.int32)
  going, epochs = np.ones(shape, bool), 0
  while going.any() and epochs <= _MAX_EPOCHS:
    rows = np.full((_EPOCHS_A_LOOK, steps * _BATCH, len(trained)), -1, np.int32)
    for epoch in rows:
      for i, (of_fold, random) in enumerate(zip(trained, randoms)):
        epoch[: len(of_fold), i] = of_fold[random.permutation(len(of_fold))]
    batches = rows.reshape(-1, _BATCH, len(trained)).swapaxes(1, 2)
    state = _train(state, rates, *on_device, batches)
    epochs += _EPOCHS_A_LOOK
    found = np.asarray(_classes(state[0], on_device[0]))
    scores = np.stack(
      [(found[i][:, rows] == y[rows]).mean(axis=1) for i, rows in enumerate(held_out)]
    )
    better = going & (scores > best)
    best[better], predicted[better] = scores[better], found[better]
    # Losses are counted over the whole training, not since the last gain.
    going &= better | (losses < _TENACITY)
    losses += ~better
  return predicted, best


def _folds(labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  from sklearn.model_selection import StratifiedKFold

  folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
  return list(folds.split(np.zeros(len(labels)), labels))


def _percent(share: float) -> float:
  return round(100 * float(share), 2)  # SentEval rounds before it compares.


def _choose(x, y, trained, held_out) -> tuple[float, float]:
  """Chooses a penalty by its mean accuracy over folds, in percent; returns both."""
  grid = np.tile(_PENALTIES, (len(trained), 1))
  randoms = [np.random.RandomState(_SEED) for _ in trained]
  _, scores = _fit(x, y, trained, held_out, grid, randoms)
  means = [_percent(np.mean(of_penalty)) for of_penalty in scores.T]
  return _PENALTIES[int(np.argmax(means))], max(means)


def _choose_by_folds(x, y, rows) -> tuple[float, float]:
  folds = _folds(y[rows])
  return _choose(x, y, [rows[i] for i, _ in folds], [rows[i] for _, i in folds])


def _fit_chosen(x, y, trained, penalties) -> np.ndarray:
  """Predicts all rows' classes [S, n] with classifiers that hold out a twentieth."""
  randoms = [np.random.RandomState(_SEED) for _ in trained]
  kept, held_out = [], []
  for rows, random in zip(trained, randoms):
    order, cut = rows[random.permutation(len(rows))], int(_HELD_OUT * len(rows))
    held_out.append(order[:cut])
    kept.append(order[cut:])
  predicted, _ = _fit(x, y, kept, held_out, np.reshape(penalties, (-1, 1)), randoms)
  return predicted[:, 0]


def cross_validate(x: np.ndarray, y: np.ndarray, *, dev: bool = False) -> float:
  """Tests a classifier on each of ten folds; it is chosen and trained on the others.

  Args:
    x: features, [n, F].
    y: classes, [n], from 0.
    dev: returns the accuracy that the penalties were chosen by, and tests nothing.

  Returns:
    The mean accuracy in percent.
  """
  folds = _folds(y)
  chosen = [_choose_by_folds(x, y, trained) for trained, _ in folds]
  penalties, accuracies = zip(*chosen)
  if not dev:
    predicted = _fit_chosen(x, y, [trained for trained, _ in folds], penalties)
    accuracies = [
      _percent(np.mean(found[rows] == y[rows]))
      for found, (_, rows) in zip(predicted, folds)
    ]
  return _percent(np.mean(accuracies) / 100)


def predict(
  features: dict[str, np.ndarray], classes: dict[str, np.ndarray]
) -> tuple[float, np.ndarray]:
  """Chooses and trains on "train" and "dev", and predicts "test", if they are there.

  Args:
    features: those of each split, [n, F].
    classes: those of each split, [n], from 0; the test set needs none.

  Returns:
    The accuracy in percent that the penalty was chosen by, and the test set's classes.
  """
  splits = [name for name in ("train", "dev", "test") if name in features]
  x = np.concatenate([features[name] for name in splits])
  # Test rows are neither trained on nor judged here: any class will do.
  of_test = np.zeros(len(features.get("test", ())), int)
  y = np.concatenate([*(classes[name] for name in splits if name != "test"), of_test])
  ends = np.cumsum([len(features[name]) for name in splits])
  rows = dict(zip(splits, np.split(np.arange(len(x)), ends)))
  if "dev" in rows:
    fold = [rows["train"]], [rows["dev"]]
    penalty, accuracy = _choose(x, y, *fold)
    if "test" in rows:
      random = np.random.RandomState(_SEED)
      predicted = _fit(x, y, *fold, np.asarray([[penalty]]), [random])[0][0]
  else:
    penalty, accuracy = _choose_by_folds(x, y, rows["train"])
    if "test" in rows:
      predicted = _fit_chosen(x, y, [rows["train"]], [penalty])
  return accuracy, predicted[0, rows["test"]] if "test" in rows else rows["train"][:0]

"""A function over many items by Ray's actors: order, deaths, and `prepare` by them."""

import itertools
import os
import signal

import pytest

from dcse_jax.cluster import chunks
from dcse_jax.cluster import engine
from dcse_jax.data import preparing
from tests.cluster import test_engine


def test_results_come_in_order_on_a_core_each_and_items_as_they_are_needed(monkeypatch):
  ray = test_engine.Ray(resources=[{"GPU": 2, "CPU": 3}, {"CPU": 2}])
  ray.shutdown = lambda: None
  monkeypatch.setattr(engine, "_connect", lambda address: ray)
  with chunks.mapping(None, None) as run:
    found = run(lambda item: 2 * item, itertools.count())
    assert list(itertools.islice(found, 150)) == [2 * item for item in range(150)]
  assert len(ray.actors) == 5 and "num_gpus" not in ray.options
  assert ray.options["num_cpus"] == 1


@pytest.fixture(scope="module")
def run():
  pytest.importorskip("ray", reason="the engine needs Ray: pip install '.[ray]'")
  with chunks.mapping(None, 2) as run:
    yield run


@pytest.mark.slow
def test_what_a_dead_worker_had_is_done_again(run, tmp_path):
  mark = tmp_path / "mark"

  def double(item):
    if item == 70 and not mark.exists():
      mark.touch()
      os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item

  # Items are asked for as they are needed.
  found = list(itertools.islice(run(double, itertools.count()), 150))
  assert found == [2 * item for item in range(150)] and mark.exists()


@pytest.mark.slow
def test_prepare_writes_the_same_bytes(run, tmp_path, monkeypatch):
  pytest.importorskip("datasketch")
  monkeypatch.setattr(preparing, "_CHUNK_ROWS", 100)
  rows = [" ".join(f"word{i * j % 997}" for j in range(12)) for i in range(1, 900)]
  (tmp_path / "a.txt").write_text("\n".join([*rows, *(f"{r} end" for r in rows[:99])]))
  go = lambda name, *maps: preparing.prepare(
    [str(tmp_path / "a.txt")], str(tmp_path / name), preparing.Settings(), *maps
  )
  manifest = go("one", map)
  assert manifest["left_out"]["near_duplicates"] > 80
  assert go("two", run, map) == manifest
  for path in (tmp_path / "one").iterdir():
    assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()

"""The command `prepare`, and the way from raw text to vectors without a conversion."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax import embed_with
from dcse_jax.data import text as text_lib
from dcse_jax.encode import encode_file
from dcse_jax.recipe import recipe as recipe_lib
from tests import models
from tests import processes
from tests.recipes import from_files

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasketch")

SENTENCES = list(dict.fromkeys(models.SENTENCES))[:60]


def student(files, text, teacher, **fields):
  config = from_files(files, recipe=("student",), text=str(text), **fields)
  with config.unlocked():
    config.rounds.student.update(
      objective="embedding_distillation", teachers=(teacher,), seeds=(1,)
    )
  return config


def write_embeddings(encoder, clean, folder):
  """Embeds a prepared text as `encode` does with parts: each into one of its own."""
  folder.mkdir()
  listed = json.loads((clean / "manifest.json").read_text())["parts"]
  for part in listed:
    table = pq.read_table(clean / part["name"])
    rows = encoder.encode(table["text"].to_pylist()).astype(np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    embedded = pa.table({"id": table["id"], "embedding": vectors})
    pq.write_table(embedded, folder / part["name"])
  about = {"parts": [{"name": part["name"], "rows": part["rows"]} for part in listed]}
  (folder / "manifest.json").write_text(json.dumps(about))


def test_raw_text_is_prepared_embedded_trained_on_and_encoded_in_one_way(files):
  raw = [*SENTENCES[:40], "too short", *SENTENCES[:9], *SENTENCES[40:]]
  (files / "raw.txt.gz").write_bytes(gzip.compress("\n".join(raw).encode()))
  result = processes.run(
    "dcse_jax.prepare",
    f"--input={files / 'raw.txt.gz'}",
    f"--output={files / 'clean'}",
    "--near-duplicates=0",
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout == (
    "70 rows read; left out: 1 too short, 9 exact duplicates\n"
    f"60 sentences: written to {files / 'clean'}\n"
  )
  teacher = models.write_tiny_folder(files / "teacher", seed=3, num_layers=1)
  write_embeddings(SentenceEncoder(teacher), files / "clean", files / "vectors")
  name = f"{files / 'vectors'}:id:embedding"
  recipe_lib.run(student(files, files / "clean", name), str(files / "run"))
  encode_file(
    SentenceEncoder(str(files / "run/export")),
    str(files / "text.txt"),
    str(files / "out.npy"),
  )
  assert np.load(files / "out.npy").shape == (60, 16)


def test_bad_flags_end_with_one_line(tmp_path):
  (tmp_path / "a.txt").write_text("A cat sleeps there.\n")
  cases = {
    "give --input FILE_or_folder_or_pattern": ["--output=out"],
    "no such file": ["--input=nowhere.txt", f"--output={tmp_path / 'out'}"],
    "max_characters": [f"--input={tmp_path}", "--output=out", "--max_characters=0"],
  }
  for message, arguments in cases.items():
    result = processes.run("dcse_jax.prepare", *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def children(pid):
  result = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
  return result.stdout.split()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
  rng = random.Random(0)
  words = [f"word{i}" for i in range(3000)]
  rows = [" ".join(rng.choices(words, k=12)) for _ in range(150_000)]
  rows += [f"{row} again" for row in rows[::3]]
  (tmp_path / "a.txt").write_text("\n".join(rows))
  command = [sys.executable, "-m", "dcse_jax.prepare", f"--input={tmp_path / 'a.txt'}"]
  command += ["--workers=2"]
  environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
  start = time.monotonic()
  subprocess.run(
    [*command, f"--output={tmp_path / 'whole'}"], env=environment, check=True
  )
  whole = time.monotonic() - start
  kills = 0
  while True:
    process = subprocess.Popen(
      [*command, f"--output={tmp_path / 'cut'}"],
      env={**environment, "PYTHONHASHSEED": str(kills + 1)},
    )
    try:
      process.wait(whole * (0.5 + 0.1 * kills))
      break
    except subprocess.TimeoutExpired:
      workers = children(process.pid)
      process.send_signal(signal.SIGKILL)
      process.wait()
      kills += 1
    for _ in range(100):
      left = [pid for pid in workers if os.path.exists(b"/proc/" + pid)]
      if not left:
        break
      time.sleep(0.1)
    assert not left
  assert kills and process.returncode == 0
  names = sorted(os.listdir(tmp_path / "whole"))
  assert names == sorted(os.listdir(tmp_path / "cut"))
  for name in names:
    one, other = (tmp_path / each / name for each in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_what_sentence_transformers_embeds_teaches_a_prepared_text(files):
  from tests.test_embed_with import make

  (files / "raw.txt").write_text("\n".join([*SENTENCES, *SENTENCES[:5]]))
  result = processes.run(
    "dcse_jax.prepare",
    f"--input={files / 'raw.txt'}",
    f"--output={files / 'clean'}",
    "--near_duplicates=0",
  )
  assert result.returncode == 0, result.stderr
  clean, rows = str(files / "clean"), str(files / "rows.npy")
  embed_with.embed_file(make(files / "theirs"), clean, rows)
  assert len(np.load(rows)) == len(text_lib.read_text(clean).columns[0]) == 60
  recipe_lib.run(student(files, clean, rows), str(files / "run"))
  assert (files / "run/results.json").exists()

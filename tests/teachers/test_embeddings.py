"""Embeddings from files as teachers: what they teach, and what is refused."""

import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentence_transformers

from dcse_jax import losses
from dcse_jax.data import text as text_lib
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.eval import sts
from dcse_jax.eval import sts_sets
from dcse_jax.hub import folder
from dcse_jax.recipe import recipe as recipe_lib
from dcse_jax.recipe import texts
from dcse_jax.runtime.errors import UserError
from dcse_jax.teachers import embeddings as embeddings_lib
from dcse_jax.teachers import stacks as stacks_lib
from dcse_jax.teachers import teaching as teaching_lib
from tests import models
from tests.recipes import from_files

# As many as `files` has sentences.
ROWS = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)


def config_of(files, *teachers, **fields):
  """A config of one student, whose teachers these are."""
  config = from_files(files, recipe=("student",), **fields)
  with config.unlocked():
    config.rounds.student.update(
      objective="embedding_distillation",
      teachers=tuple(str(teacher) for teacher in teachers),
      seeds=(1,),
    )
  return config


def losses_of(files, name, *teachers, **fields):
  """Trains a student; its logged losses."""
  recipe_lib.run(config_of(files, *teachers, **fields), str(files / name))
  metrics = models.read_metrics(files / name / "student/1/metrics.jsonl")
  return [line["train/loss"] for line in metrics if "train/loss" in line]


def write_table(path, rows=ROWS, **columns):
  table = pa.table(
    {
      **columns,
      "vector": pa.FixedSizeListArray.from_arrays(
        pa.array(rows.ravel()), rows.shape[1]
      ),
    }
  )
  if path.suffix == ".parquet":
    pq.write_table(table, path, row_group_size=13)
  else:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
      out.write_table(table, max_chunksize=20)


def test_a_file_teaches_as_the_same_teacher_in_our_cache_bit_for_bit(files):
  # A blank line, a repeated one and a second blank: rows of the file do not shift.
  lines = [*models.SENTENCES[:9], " ", models.SENTENCES[0], "", *models.SENTENCES[9:60]]
  (files / "text.txt").write_text("\n".join(lines) + "\n")
  teacher = models.write_tiny_folder(files / "teacher", seed=3, num_layers=1)
  cached = losses_of(files, "cached", teacher, teacher_cache="float32")
  kept = np.fromfile(
    next((files / "cached/cache").glob("teacher-*/embeddings.bin")), np.float32
  ).reshape(60, 16)
  # What our cache has not is not looked at.
  rows = np.full((len(lines), 16), np.nan, np.float32)
  is_kept = [line.strip() != "" and i != 10 for i, line in enumerate(lines)]
  rows[is_kept] = kept
  rows[10] = 1.0
  np.save(files / "rows.npy", rows)
  assert losses_of(files, "file", files / "rows.npy") == cached
  assert len(cached) == 2


@pytest.mark.parametrize("dtype", ["", "float32"])
def test_files_and_models_are_weighed_together(tmp_path, dtype):
  model = models.tiny_model(5, num_layers=1)
  tokens = texts.tokenize([models.SENTENCES[:60]], model, 32, tmp_path)
  np.save(tmp_path / "rows.npy", ROWS)
  found = embeddings_lib.open_embeddings(str(tmp_path / "rows.npy"))
  rows = embeddings_lib.ExampleRows(found, np.arange(60)[::-1])
  teachers = [
    teaching_lib.EmbeddedTeacher("file", 3.0, rows),
    teaching_lib.Teacher("model", model, 1.0, tokens),
  ]
  if dtype:
    teaching = teaching_lib.cached(
      teachers, tmp_path, dtype=dtype, compute_dtype="float32"
    )
  else:
    teaching = teaching_lib.online(teachers, tokens, "float32")
  wanted = np.asarray([4, 0, 9, 17])
  batch = tokens.gather(wanted)
  for source in teaching.sources:
    batch |= source.gather(wanted)
  joint = stacks_lib.teacher_embeddings(
    teaching.params, teaching.stacks, batch, dtype=np.float32
  )
  ours = SentenceEncoder.__new__(SentenceEncoder)
  ours.model, ours._params, ours._mesh = model, model.params, None
  theirs = ours.encode([models.SENTENCES[i] for i in wanted])
  cosines = lambda x: losses.cosine_similarity(x, x)
  expected = 0.75 * cosines(ROWS[::-1][wanted]) + 0.25 * cosines(theirs)
  np.testing.assert_allclose(
    losses.cosine_similarity(joint, joint), expected, atol=1e-5
  )


def write_parts(folder, *parts, **about):
  """A folder of Parquet parts with its manifest, as `encode` leaves it."""
  folder.mkdir()
  listed = []
  for i, (rows, columns) in enumerate(parts):
    name = f"part-{i:06}.parquet"
    write_table(folder / name, rows, **columns)
    listed.append({"name": name, "rows": len(rows)})
  (folder / "manifest.json").write_text(json.dumps({"parts": listed, **about}))


NAMES = ["rows.npy", "rows.parquet", "rows.arrow", "parts", "folder"]


@pytest.mark.parametrize("name", NAMES)
def test_every_form_gives_the_same_rows_and_the_same_digest(tmp_path, name):
  rows = ROWS.astype(np.float16)
  path, spec = tmp_path / name, str(tmp_path / name)
  if name == "rows.npy":
    np.save(path, rows)
  elif name == "parts":
    path.mkdir()
    for i, part in enumerate(np.split(rows, [7, 8, 40])):
      np.save(path / f"{i}.npy", part)
  elif name == "folder":
    write_parts(path, *((part, {"other": [0] * len(part)})
                        for part in np.split(rows, [7, 8, 8, 40])))  # fmt: skip
    (path / "_SUCCESS").touch()
  else:
    write_table(path, rows, other=list(range(60)))
    spec += ":vector"
  assert embeddings_lib.is_embeddings(spec)
  found = embeddings_lib.open_embeddings(spec, tmp_path / "cache")
  wanted = np.asarray([59, 0, 7, 7, 39, 8])
  assert found.take(wanted).dtype == np.float16
  np.testing.assert_array_equal(found.take(wanted), rows[wanted])
  np.save(tmp_path / "plain.npy", rows)
  plain = embeddings_lib.open_embeddings(str(tmp_path / "plain.npy"))
  assert found.digest == plain.digest
  # Nothing is in memory, and Parquet is unpacked once.
  assert not any(part.flags.owndata for part in found.parts)
  kept = list((tmp_path / "cache").glob("*"))
  assert len(kept) == (name in ("rows.parquet", "folder"))
  again = embeddings_lib.open_embeddings(spec, tmp_path / "cache")
  before = [path.stat().st_mtime_ns for path in kept]
  np.testing.assert_array_equal(again.take(wanted), rows[wanted])
  assert [path.stat().st_mtime_ns for path in kept] == before


def test_a_folder_of_a_model_and_an_id_are_no_embeddings(tmp_path):
  path = models.write_tiny_folder(tmp_path / "model")
  np.save(tmp_path / "model" / "rows.npy", ROWS)
  for name in (path, "bert-base-uncased", "base/1", str(tmp_path / "nowhere")):
    assert not embeddings_lib.is_embeddings(name)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_ids_find_the_rows_in_whatever_order_they_are(tmp_path, kind):
  sentences = [f"Sentence number {i}." for i in range(6)]
  ids = [f"{10 - i}" for i in range(6)]
  path, columns = tmp_path / f"text.{kind}", ("text",)
  if kind == "jsonl":
    lines = [json.dumps({"id": int(i), "text": s}) for i, s in zip(ids, sentences)]
  elif kind == "csv":
    lines = ["id,text", *(f"{i},{s}" for i, s in zip(ids, sentences))]
  else:
    lines, ids, columns = sentences, [str(i) for i in range(6)], ()
  lines.insert(4, "")
  path.write_text("\n".join(lines) + "\n")
  if kind == "txt":
    ids = ["0", "1", "2", "3", "5", "6"]
  order = np.asarray([3, 1, 5, 0, 4, 2])
  write_table(tmp_path / "rows.parquet", ROWS[order], id=[ids[i] for i in order])
  found = embeddings_lib.open_embeddings(str(tmp_path / "rows.parquet:id:vector"))
  text = text_lib.read_text(str(path), columns)
  asked = list(text_lib.read_ids(str(path), "id"))
  rows = found.rows_by_id([asked[i] for i in text.source_rows], "text")
  np.testing.assert_array_equal(found.take(rows), ROWS[:6])


def test_a_folder_of_text_and_one_of_embeddings_are_matched_by_ids(tmp_path):
  sentences = [*models.SENTENCES[:30], " ", *models.SENTENCES[30:60]]
  ids = [f"a.txt:{i}" for i in range(61)]
  (tmp_path / "clean").mkdir()
  for i, part in enumerate((slice(0, 25), slice(25, 61))):
    table = pa.table({"id": ids[part], "text": sentences[part]})
    pq.write_table(table, tmp_path / f"clean/part-{i:06}.parquet")
  # The blank row has no embedding, and a sentence that is not read has one.
  kept = [each for i, each in enumerate(ids) if i != 30] + ["b.txt:0"]
  vectors = np.concatenate([ROWS, ROWS[:1]])
  order = np.random.default_rng(3).permutation(61)
  parts = [
    (vectors[rows], {"id": [kept[i] for i in rows]}) for rows in np.split(order, [9])
  ]
  write_parts(tmp_path / "teacher", *parts)
  source = texts.Source(str(tmp_path / "clean"))
  text = texts.read(source, tmp_path)
  name = f"{tmp_path / 'teacher'}:id:vector"
  found = embeddings_lib.open_embeddings(name, tmp_path / "cache")
  np.testing.assert_array_equal(found.take(texts.match(found, text, source)), ROWS)


# --- What is refused ------------------------------------------------------------------


def too_few_rows(files):
  np.save(files / "rows.npy", ROWS[:59])
  return "rows.npy"


def rows_of_nan(files):
  rows = ROWS.copy()
  rows[[3, 41], 5] = np.nan
  np.save(files / "rows.npy", rows)
  return "rows.npy"


def rows_of_zeros(files):
  rows = ROWS.copy()
  rows[7] = 0
  np.save(files / "rows.npy", rows)
  return "rows.npy"


def another_text(files):
  np.save(files / "rows.npy", ROWS)
  about = {"text": {"source": "other.txt", "rows": 60, "digest": "0" * 32}}
  (files / "rows.npy.json").write_text(json.dumps(about))
  return "rows.npy"


def another_width(files):
  (files / "parts").mkdir()
  np.save(files / "parts/0.npy", ROWS[:30])
  np.save(files / "parts/1.npy", ROWS[30:, :8])
  return "parts"


def another_shape(files):
  np.save(files / "rows.npy", ROWS[0])
  return "rows.npy"


def a_pickle(files):
  np.save(files / "rows.npy", np.asarray([{}], object), allow_pickle=True)
  return "rows.npy"


def no_such_file(files):
  return "nowhere.npy"


def no_such_column(files):
  write_table(files / "rows.parquet", id=list(range(60)))
  return "rows.parquet:id:embedding"


def an_id_missing(files):
  write_table(files / "rows.parquet", id=[*range(59), 77])
  return "rows.parquet:id:vector"


def an_id_twice(files):
  write_table(files / "rows.parquet", id=[*range(59), 12])
  return "rows.parquet:id:vector"


def lists_of_two_widths(files):
  rows = [row.tolist() for row in ROWS]
  rows[5] = rows[5][:3]
  pq.write_table(pa.table({"vector": rows}), files / "rows.parquet")
  return "rows.parquet"


def a_part_missing(files):
  write_parts(files / "folder", (ROWS[:30], {}), (ROWS[30:], {}))
  (files / "folder/part-000001.parquet").unlink()
  return "folder:vector"


def a_part_of_another_run(files):
  write_parts(files / "folder", (ROWS[:30], {}), (ROWS[30:], {}))
  write_table(files / "folder/part-000001.parquet", ROWS[40:])
  return "folder:vector"


def a_part_of_another_width(files):
  write_parts(files / "folder", (ROWS[:30], {}), (ROWS[30:, :8], {}))
  return "folder"


def no_such_column_of_parts(files):
  write_parts(files / "folder", (ROWS, {"key": list(range(60))}))
  return "folder:id:vector"


def no_table(files):
  (files / "rows.parquet").write_text("not a table")
  return "rows.parquet:vector"


REFUSED = {
  too_few_rows: r"has 59 rows and .*text\.txt has 60: give one for each",
  rows_of_nan: r"2 rows are not finite, counted from 0: 3, 41;",
  rows_of_zeros: r"1 rows are all zero, counted from 0: 7;",
  another_text: r"is of another text than .*text\.txt",
  another_width: r"part 2 is 8 wide and the first 16",
  another_shape: r"an array \[16\] of float32: it must be \[rows, width\]",
  a_pickle: r"no NumPy file that can be mapped",
  no_such_file: r"nowhere\.npy: no NumPy file .*No such file",
  no_such_column: r"no column 'embedding'; the columns there are: id, vector",
  an_id_missing: r"1 of 60 rows of .* have no embedding, the first with the id '59'",
  an_id_twice: r"the id '12' stands in rows 12 and 59",
  lists_of_two_widths: r"row 5 is 3 wide and row 0 16",
  a_part_missing: r"part-000001\.parquet: is missing; manifest\.json lists it with 30",
  a_part_of_another_run: r"part-000001\.parquet: has 20 rows; manifest\.json lists it",
  a_part_of_another_width: r"part 2 is 8 wide and the first 16",
  no_such_column_of_parts: r"no column 'id'; the columns there are: key, vector",
  no_table: r"rows\.parquet:vector: cannot be read",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda f: f.__name__)
def test_a_file_that_cannot_teach_is_refused_in_one_line(spoil, files, monkeypatch):
  config = config_of(files, files / spoil(files))

  def compile_nothing(*args, **kwargs):
    raise AssertionError("compiled before the input was checked")

  monkeypatch.setattr(jax, "jit", compile_nothing)
  with pytest.raises(UserError, match=REFUSED[spoil]) as error:
    recipe_lib.run(config, str(files / "run"))
  assert "\n" not in str(error.value)


def test_another_file_of_the_same_name_is_another_origin(files):
  np.save(files / "rows.npy", ROWS)
  config = config_of(files, files / "rows.npy")
  recipe_lib.run(config, str(files / "run"))
  changed = ROWS.copy()
  changed[59, 15] += 1e-3
  np.save(files / "rows.npy", changed)
  with pytest.raises(UserError, match="comes from something else: another teachers"):
    recipe_lib.run(config, str(files / "run"))
  # The same rows may lie elsewhere.
  np.save(files / "moved.npy", ROWS)
  recipe_lib.run(config_of(files, files / "moved.npy"), str(files / "run"))


def test_a_map_to_a_wider_teacher_is_exported_or_dropped(files):
  wide = np.concatenate([ROWS, ROWS], axis=1)
  np.save(files / "rows.npy", wide)
  sets = sts_sets.read_sts(str(files / "sts"))
  for keep_head in (True, False):
    config = config_of(files, files / "rows.npy", keep_head=keep_head)
    (student,) = recipe_lib.run(config, str(files / str(keep_head)))
    theirs = sentence_transformers.SentenceTransformer(
      str(files / str(keep_head) / "export"), device="cpu"
    )
    scores = sts.score_sts(lambda s, theirs=theirs: theirs.encode(list(s)), sets)
    assert scores["X-test"] == pytest.approx(student["test"], abs=0.01)
    assert len(theirs) == (3 if keep_head else 2)
  head = folder.load(str(files / "True/export")).head
  assert head.kernel.shape == (16, 32) and head.activation == "Identity"
  assert folder.load(str(files / "False/export")).head is None

"""Text from folders that `datasets` saved, and from sets that it loads by name."""

import json
import sys

import pytest

from dcse_jax.data import text
from dcse_jax.runtime.errors import UserError

datasets = pytest.importorskip("datasets")

ROWS = {
  "question": ["Who?  ", None, "What\n?", "Why?"],
  "answer": [{"text": each, "id": i} for i, each in enumerate("abcd")],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  datasets.disable_progress_bars()


def refusal(source, columns=()):
  with pytest.raises(UserError) as caught:
    text.read_text(source, columns)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_a_saved_folder_is_read_in_the_order_it_has_though_it_is_in_several_files(
  tmp_path,
):
  # A set in another order than that of its Arrow table, which is saved in two files.
  saved = datasets.Dataset.from_dict(ROWS).select([3, 2, 1, 0])
  saved.save_to_disk(tmp_path / "set", num_shards=2)
  found = text.read_text(str(tmp_path / "set"), ("question", "answer.text"))
  assert found.columns == (["Why?", "What ?", "Who?"], ["d", "c", "a"])
  assert found.source_rows.tolist() == [0, 1, 3]  # The row with a null counts.
  assert found.empty_rows == 1
  assert list(text.read_ids(str(tmp_path / "set"), "answer.id")) == ["3", "2", "1", "0"]


def test_a_split_is_a_folder_in_that_of_all_splits(tmp_path):
  part = datasets.Dataset.from_dict(ROWS)
  datasets.DatasetDict(train=part, test=part.select([0])).save_to_disk(tmp_path / "set")
  found = text.read_text(str(tmp_path / "set" / "test"), ("question",))
  assert found.columns == (["Who?"],)
  message = refusal(str(tmp_path / "set"), ("question",))
  assert "holds the splits 'train', 'test'; name one of them" in message
  assert f"as in {tmp_path}/set/train" in message


def test_a_folder_that_is_not_as_it_was_saved_is_refused(tmp_path):
  source = tmp_path / "set"
  datasets.Dataset.from_dict(ROWS).save_to_disk(source)
  state = json.loads((source / "state.json").read_text())
  old = state | {"_indices_data_files": [{"filename": "indices.arrow"}]}
  (source / "state.json").write_text(json.dumps(old))
  assert "flatten_indices() and save it again" in refusal(str(source), ("question",))
  (source / "state.json").write_text("[]")
  assert "not as datasets writes it" in refusal(str(source), ("question",))
  (source / "state.json").write_text(json.dumps(state))
  (source / state["_data_files"][0]["filename"]).unlink()
  assert "cannot be read" in refusal(str(source), ("question",))


@pytest.fixture
def folder(tmp_path):
  """Returns a folder that `datasets` loads as it loads a set of the hub."""
  for split, number in (("train", 3), ("test", 1)):
    lines = [
      json.dumps({"q": f"q {i}", "a": {"text": f"a {i}"}}) for i in range(number)
    ]
    path = tmp_path / "hub" / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines))
  return tmp_path / "hub"


def test_a_set_is_loaded_by_its_name_split_and_columns(folder):
  assert text.read_text(f"hf:{folder}:test:q").columns == (["q 0"],)
  found = text.read_text(f"hf:{folder}:train[1:]:a.text,q")
  assert found.columns == (["a 1", "a 2"], ["q 1", "q 2"])
  assert list(text.read_ids(f"hf:{folder}:train:q", "id")) == ["0", "1", "2"]
  assert text.num_columns("hf:a/b:config:train:q,a", ()) == 2


@pytest.mark.parametrize(
  "name, asked",
  [
    ("hf:a/b:train:q", ("a/b", None, "train", None)),
    (
      "hf:a/b@v1:config:train[:10%]+test:q",
      ("a/b", "config", "train[:10%]+test", "v1"),
    ),
  ],
)
def test_revision_and_configuration_reach_the_library(monkeypatch, name, asked):
  calls = []

  def load(place, configuration, *, split, revision):
    calls.append((place, configuration, split, revision))
    return datasets.Dataset.from_dict({"q": ["x"]})

  monkeypatch.setattr(datasets, "load_dataset", load)
  assert text.read_text(name).columns == (["x"],)
  assert calls == [asked]


def test_what_cannot_be_loaded_is_refused_in_one_line(folder, monkeypatch):
  assert "write hf:NAME:SPLIT:COLUMN" in refusal("hf:a/b:train")
  assert "name none" in refusal(f"hf:{folder}:train:q", ("q",))
  assert "no column 'x'; the columns there are" in refusal(f"hf:{folder}:train:x")
  assert "column 'a' holds a dict" in refusal(f"hf:{folder}:train:a")
  assert 'Unknown split "dev"' in refusal(f"hf:{folder}:dev:q")
  # The tests are offline.
  message = refusal("hf:nobody/nothing:train:q")
  assert (
    "datasets cannot load it" in message and "must be in the library's cache" in message
  )
  monkeypatch.setitem(sys.modules, "datasets", None)
  assert "pip install 'dcse_jax[data]'" in refusal("hf:nobody/nothing:train:q")

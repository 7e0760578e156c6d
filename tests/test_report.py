"""The report of a run, from nothing but the files that a run leaves."""

import base64
import json
import re
import shutil

import pytest

from dcse_jax import report
from dcse_jax.eval import figures as figures_lib
from dcse_jax.runtime.errors import UserError
from tests import processes


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def write_config(workdir, *, test=("X-test", "Y-test"), **rounds):
  config = dict(
    distillation=dict(group_probability=0.0),
    recipe=list(rounds),
    rounds=rounds,
    test=test,
    objective="info_nce",
    teachers=[],
  )
  write(workdir / "config.json", {"config": config, "text": {}})


def write_result(workdir, name, seed, **scores):
  result = dict(name=f"{name}-{seed}", round=name, seed=seed, dev=None, test=None)
  write(workdir / name / str(seed) / "result.json", result | {"sets": {}} | scores)


def write_metrics(workdir, name, seed, *keys):
  """Writes four lines, in which each key's value is the step."""
  path = workdir / name / str(seed) / "metrics.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [{"step": step, **dict.fromkeys(keys, step)} for step in (1, 2, 3, 4)]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def write_whole_run(workdir):
  """Writes a finished run with something for every section."""
  write_config(
    workdir,
    words=dict(seeds=[0], objective="masked_language_model"),
    base=dict(seeds=[0, 1]),
    student=dict(
      seeds=[7],
      objective="info_nce + 0.5 * distillation",
      teachers=["base", "some/model"],
      distillation=dict(group_probability=0.1),
    ),
  )
  write_metrics(workdir, "words", 0, "train/loss", "train/learning_rate")
  training = ("train/loss", "train/info_nce", "train/learning_rate")
  scores = ("eval/x-dev_spearman", "eval/alignment", "eval/uniformity")
  distillation = ("eval/distillation_train", "eval/distillation_held_out")
  order = {"edges": [-1, 0, 1], "train": [0.5, 0.5], "dev": [0.2, 0.8]}
  for name, seed in (("base", 0), ("base", 1), ("student", 7)):
    write_metrics(workdir, name, seed, *training, *scores, *distillation)
    write_result(workdir, name, seed)
    both = {"first_order": order, "second_order": order}
    write(workdir / name / str(seed) / "diagnostics.json", both)
  spread = {"mean_std": 0.25, "differential_entropy": -1.5}
  little = {"mean_std": 4.31e-6, "differential_entropy": -1.5}
  write(
    workdir / "student" / "teachers.json",
    {
      "teachers": ["base-0", "base-1"],
      "first_order": little,
      "second_order": spread,
      "top12_spearman": [[100.0, 48.0], [47.0, 100.0]],
    },
  )


def cells(page):
  """Lists the rows of the page's tables, each as the text of its cells."""
  return [
    [
      re.sub("<.*?>|\N{NO-BREAK SPACE}", "", cell)
      for cell in re.findall("<t[hd].*?</t[hd]>", row)
    ]
    for row in re.findall("<tr>.*?</tr>", page)
  ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  write_whole_run(workdir)
  return report.write_report(workdir)


def test_rounds_have_means_and_standard_deviations_and_models_their_scores(tmp_path):
  write_config(tmp_path, base=dict(seeds=[0, 1, 2]), student=dict(seeds=[5]))
  for seed, dev in ((0, 70.0), (1, 73.0)):
    sets = {"X-test": dev - 20, "Y-test": dev - 10, "X-dev": dev}
    write_result(tmp_path, "base", seed, dev=dev, test=dev - 15, sets=sets)
  write_result(tmp_path, "student", 5, dev=74.0, sets={"X-test": 40.0})
  page = report.write_report(tmp_path).read_text()
  assert cells(page) == [
    ["round", "learns from", "models", "dev", "test", "X-test", "Y-test"],
    # Means of 70 and 73 less 0, 15, 20, 10; sd = 3 / sqrt(2).
    [
      "base",
      "info_nce",
      "2 of 3",
      "71.50±2.12",
      "56.50±2.12",
      "51.50",
      "61.50",
    ],
    ["student", "info_nce", "1 of 1", "74.00", "–", "40.00", "–"],
    ["model", "dev", "test", "X-test", "Y-test"],
    ["base-0", "70.00", "55.00", "50.00", "60.00"],
    ["base-1", "73.00", "58.00", "53.00", "63.00"],
    ["student-5", "74.00", "–", "40.00", "–"],
  ]
  # The best of each column.
  bold = [re.sub("\N{NO-BREAK SPACE}", "", b) for b in re.findall("<b>(.*?)</b>", page)]
  assert bold == ["56.50±2.12", "51.50", "61.50", "74.00"]


def test_a_single_test_set_has_no_column_beside_the_mean_that_it_is(tmp_path):
  write_config(tmp_path, test=["X-test"], base=dict(seeds=[0]))
  write_result(tmp_path, "base", 0, dev=70.0, test=60.0, sets={"X-test": 60.0})
  header, *_ = cells(report.write_report(tmp_path).read_text())
  assert header == ["round", "learns from", "models", "dev", "test"]


def test_rounds_say_what_they_learn_from(whole):
  rows = {row[0]: row[1] for row in cells(whole.read_text())[:4]}
  assert rows["words"] == "masked_language_model"
  assert rows["base"] == "info_nce"
  student = "info_nce + 0.5 * distillation; teachers base, some/model; Group-P 0.1"
  assert rows["student"] == student


def test_the_page_holds_the_images_that_lie_beside_it(whole):
  images = re.findall('src="data:image/png;base64,(.*?)"', whole.read_text())
  names = ["losses", "dev", "held_out", "teachers", "histograms", "alignment"]
  files = [(whole.parent / f"{name}.png").read_bytes() for name in names]
  assert [base64.b64decode(image) for image in images] == files
  assert all(file.startswith(b"\x89PNG\r\n\x1a\n") for file in files)
  # The page itself is there too, and the digests of all.
  assert len(list(whole.parent.iterdir())) == len(files) + 2


def test_the_spread_of_teachers_is_that_between_unlike_ones(whole):
  (row,) = [row for row in cells(whole.read_text()) if "base-0" in row[1]]
  # Agreement: the mean of 48 and 47, without each teacher's 100 with itself.
  spread = ["4.3e−06", "−1.50", "0.25", "−1.50"]
  assert row == ["student", "1:base-0, 2:base-1", *spread, "47.5"]


def test_the_gap_is_of_the_last_values_and_averages_seeds(tmp_path):
  write_config(tmp_path, student=dict(seeds=[0, 1], teachers=["some/model"]))
  for seed, more in ((0, 0.5), (1, 1.5)):
    lines = [
      {"step": s, "eval/distillation_train": 1 / s, "eval/distillation_held_out": more}
      for s in (1, 2, 4)
    ]
    path = tmp_path / "student" / str(seed) / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, lines)))
  # Training 1/4; held out the mean of 0.5 and 1.5.
  assert cells(report.write_report(tmp_path).read_text())[-1] == [
    *("student", "distillation", "0.2500", "1.0000", "0.7500")
  ]


def test_a_curve_averages_each_seed_over_near_steps_and_then_seeds():
  # 120 steps on 60 points: steps 1 and 2 on the first. The second seed is behind.
  first = {step: float(step) for step in range(1, 121)}
  second = {1: 10.0, 2: 20.0}
  curve = report._curve([first, second])
  assert curve.shape == (4, 60)
  # Means 1.5 and 15, and their mean 8.25.
  assert curve[:, 0].tolist() == [1.5, 8.25, 1.5, 15.0]
  assert curve[:, 1].tolist() == [3.5, 3.5, 3.5, 3.5]


def test_parts_are_drawn_upon_the_total_that_they_may_equal(whole):
  rounds = report._read_rounds(whole.parents[1])
  figure = figures_lib.SECTIONS["losses"][0]([rounds[1]]).figure
  labels = [line.get_label() for line in figure.axes[0].lines]
  assert labels == ["total", "info_nce"]


@pytest.mark.parametrize(
  "keys, expected",
  [
    ((), []),
    (("train/loss",), ["losses"]),
    (("eval/x-dev_spearman",), ["dev"]),
    (("eval/embedding_distillation_train",), ["held_out"]),
    (("eval/alignment", "eval/uniformity"), ["alignment"]),
  ],
)
def test_what_has_no_data_has_no_section(keys, expected, tmp_path):
  write_config(tmp_path, base=dict(seeds=[0]))
  write_metrics(tmp_path, "base", 0, *keys)
  page = report.write_report(tmp_path)
  assert [path.stem for path in page.parent.glob("*.png")] == expected
  assert page.read_text().count("<h2>") == 1 + len(expected)


def test_a_run_under_way_with_a_cut_last_line_has_a_report(tmp_path):
  write_config(tmp_path, base=dict(seeds=[0, 1]), student=dict(seeds=[0]))
  path = write_metrics(tmp_path, "base", 0, "train/loss", "eval/x-dev_spearman")
  with path.open("a") as file:
    file.write('{"step": 5, "train/lo')
  page = report.write_report(tmp_path)
  assert "Finished: 0 of 3 models" in page.read_text()
  assert {path.stem for path in page.parent.glob("*.png")} == {"losses", "dev"}


def test_names_are_escaped_and_are_no_formulas(tmp_path):
  name = "<script>$x_{$"
  rounds = {name: dict(seeds=[0, 1], teachers=["<u>"])}
  write_config(tmp_path, test=["<i>", "Y"], **rounds)
  for seed in (0, 1):
    write_result(tmp_path, name, seed, sets={"<i>": 1.0})
  write_metrics(tmp_path, name, 0, "train/loss", "eval/x-dev_spearman")
  page = report.write_report(tmp_path).read_text()
  assert not re.search("<(script|i|u)>", page)
  assert "&lt;script&gt;$x_{$" in page and "&lt;i&gt;" in page and "&lt;u&gt;" in page


def test_a_path_is_shown_by_its_end_and_whole_under_the_pointer(tmp_path):
  paths = ["/a/b/run/export", "/a/b/run/base/42/model", "/a/b/minilm<", "/a/b"]
  named = ["run/export", "base/42/model", "minilm&lt;", "b"]
  rounds = {"student": dict(seeds=[0], teachers=[*paths, "me/bert@a/b", "base"])}
  write_config(tmp_path, **rounds)
  page = report.write_report(tmp_path).read_text()
  spans = [
    f'<span title="{path.replace("<", "&lt;")}">{name}</span>'
    for path, name in zip(paths, named)
  ]
  assert f"teachers {', '.join([*spans, 'me/bert@a/b', 'base'])}" in page


def test_an_older_report_is_replaced_and_nothing_else(tmp_path):
  write_config(tmp_path, base=dict(seeds=[0]))
  write_metrics(tmp_path, "base", 0, "train/loss")
  report.write_report(tmp_path)
  names = lambda: {path.name for path in (tmp_path / "report").iterdir()}
  assert "losses.png" in names()
  write(tmp_path / "report" / "notes.txt", "mine")
  shutil.rmtree(tmp_path / "base")
  report.write_report(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {"config.json", "report"}
  assert names() == {"index.html", "SHA256SUMS", "notes.txt"}


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match="nowhere holds no training run"):
    report.write_report(tmp_path / "nowhere")
  with pytest.raises(UserError, match=f"{tmp_path} holds no training run"):
    report.write_report(tmp_path)
  write(tmp_path / "config.json", {"model_type": "bert"})
  with pytest.raises(UserError, match=f"{tmp_path} holds no training run"):
    report.write_report(tmp_path)


def test_a_report_that_cannot_be_written_leaves_nothing_behind(tmp_path):
  write_config(tmp_path, base=dict(seeds=[0]))
  (tmp_path / "report").write_text("a file, not a folder")
  with pytest.raises(UserError, match="report is there already and is no folder"):
    report.write_report(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {"config.json", "report"}


def test_the_command_says_where_the_page_is(tmp_path):
  write_config(tmp_path, base=dict(seeds=[0]))
  result = processes.run("dcse_jax.report", str(tmp_path), fresh=True)
  assert result.returncode == 0, result.stderr
  assert result.stdout == f"report: {tmp_path / 'report' / 'index.html'}\n"


def test_a_wrong_command_prints_one_line_and_exits_with_2(tmp_path):
  for arguments, message in (
    ((), "give WORKDIR"),
    ((str(tmp_path),), f"{tmp_path} holds no training run"),
  ):
    result = processes.run("dcse_jax.report", *arguments)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line

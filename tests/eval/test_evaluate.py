"""The evaluation command: which sets and models, how they are pooled and shown."""

import json
import re

import numpy as np
import pytest
import scipy.stats

from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.eval import offline
from dcse_jax.eval import sts
from dcse_jax.eval import sts_sets
from dcse_jax.eval import tables
from dcse_jax.eval.evaluator import Options
from dcse_jax.eval.sts import Sts
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes


@pytest.fixture
def folder(tmp_path):
  """STS-B and SICK-R in all splits, and a set of the user's own."""
  for name in ("STSB", "SICKR"):
    for split in ("train", "dev", "test"):
      models.write_sts(tmp_path / "sts", f"{name}-{split}", 20)
  models.write_sts(tmp_path / "own", "mine", 20)
  return tmp_path


def embed(sentences):
  """Embeds a sentence by how often it has each of eight letters."""
  return np.asarray([[1.0 + s.count(c) for c in "abeiostu"] for s in sentences])


def test_train_sets_are_left_out_and_dev_sets_come_last(folder):
  paths = [str(folder / "sts"), str(folder / "own" / "mine.tsv")]
  evaluator = Sts.read(paths, Options())
  assert list(evaluator.sets) == [
    "STSB-test",
    "SICKR-test",
    "SICKR-dev",
    "STSB-dev",
    "mine",
  ]
  assert list(Sts.read(paths, Options(dev=True)).sets) == ["SICKR-dev", "STSB-dev"]


def test_train_sets_that_are_all_there_is_are_scored(tmp_path):
  models.write_sts(tmp_path, "X-train")
  assert list(Sts.read([str(tmp_path)], Options()).sets) == ["X-train"]


def test_the_mteb_convention_scores_every_pair_of_sickr(folder):
  evaluator = Sts.read([str(folder / "sts")], Options(convention="mteb"))
  assert list(evaluator.sets) == ["STSB-test", "SICKR-all", "SICKR-dev", "STSB-dev"]
  assert len(evaluator.sets["SICKR-all"].scores) == 60
  described = evaluator.describe()
  assert described["title"].startswith("MTEB convention: ")
  assert "SICK-R by all its 60 pairs" in described["title"]


def test_two_sets_of_one_name_are_refused(folder):
  with pytest.raises(UserError, match="there is a mine already"):
    Sts.read([str(folder / "own"), str(folder / "own" / "mine.tsv")], Options())
  with pytest.raises(UserError, match="no set is named NAME-dev"):
    Sts.read([str(folder / "own")], Options(dev=True))


def test_scores_are_scipys_spearman_of_cosines_and_each_sentence_is_encoded_once(
  folder,
):
  evaluator = Sts.read([str(folder / "sts")], Options())
  calls = []

  def encode(sentences):
    calls.extend(sentences)
    return embed(sentences)

  scores = offline.score(encode, [evaluator])["sts"]
  assert len(calls) == len(set(calls))
  pairs = evaluator.sets["STSB-test"]
  u, v = embed(pairs.first), embed(pairs.second)
  cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
  expected = 100 * scipy.stats.spearmanr(cosine, pairs.scores).statistic
  assert scores["STSB-test"] == pytest.approx(expected)
  assert scores["avg"] == pytest.approx(
    (scores["STSB-test"] + scores["SICKR-test"]) / 2
  )
  assert scores["alignment"] == pytest.approx(sts.alignment(u, v, pairs.scores))
  distinct = sorted({*pairs.first, *pairs.second})
  assert scores["uniformity"] == pytest.approx(sts.uniformity(embed(distinct)))


def test_without_stsb_there_is_no_alignment(folder):
  evaluator = Sts.read([str(folder / "own")], Options())
  assert set(offline.score(embed, [evaluator])["sts"]) == {"mine", "avg"}


def test_simcses_alignment_is_of_all_of_stsb_strictly_above_four(folder):
  paths = [str(folder / "sts")]
  splits = [sts_sets.read_sts(paths[0])[f"STSB-{s}"] for s in ("train", "dev", "test")]
  options = Options(alignment_set="STSB-all", alignment_above=4.0)
  scores = offline.score(embed, [Sts.read(paths, options)])["sts"]
  rows = [row for p in splits for row in zip(p.scores, p.first, p.second)]
  unit = lambda s: embed([s])[0] / np.linalg.norm(embed([s])[0])
  gaps = [np.sum((unit(a) - unit(b)) ** 2) for score, a, b in rows if score > 4]
  assert scores["alignment"] == pytest.approx(np.mean(gaps))
  distinct = sorted({s for _, a, b in rows for s in (a, b)})
  assert scores["uniformity"] == pytest.approx(sts.uniformity(embed(distinct)))
  for name, wanted, message in (
    ("STSB-all", {"dev": True}, "--dev looks at no test set"),
    ("nowhere", {}, "--sts holds .*STSB-test"),
    ("STSB-dev", {"alignment_above": 9.0}, "no pair of STSB-dev has a score above 9"),
  ):
    with pytest.raises(UserError, match=message):
      Sts.read(paths, Options(alignment_set=name, **wanted))


def test_a_model_that_yields_nan_gets_no_score(folder):
  evaluator = Sts.read([str(folder / "own")], Options())
  with pytest.raises(UserError, match="yields NaN"):
    offline.score(lambda s: np.full((len(s), 3), np.nan), [evaluator])


def test_a_gain_is_of_the_mean_of_seeds_over_the_first_model():
  """Two seeds, of drawings 1, 3 and 3, 5, over a model of drawings 1, 2."""
  drawn = {
    "A": [{"sts": {"avg": np.asarray([1.0, 2.0])}}],
    "B": [{"sts": {"avg": np.asarray(x)}} for x in ([1.0, 3.0], [3.0, 5.0])],
  }
  found = offline.gains(drawn)
  # The gains are 2 - 1 and 4 - 2; 95 % of what lies between is 1.025 to 1.975.
  assert found["over"] == "A" and list(found["models"]) == ["B"]
  assert found["models"]["B"]["sts"]["avg"] == pytest.approx([1.025, 1.975])


def test_a_model_has_no_gain_over_itself_on_any_pairs(folder):
  evaluator = Sts.read([str(folder / "sts")], Options())
  draw = lambda: offline.score_drawn(embed, [evaluator], None, "m", None, draws=50)[1]
  first = draw()
  assert first["sts"]["avg"].std() > 0  # Other pairs, other scores.
  found = offline.gains({"A": [first], "B": [draw()]})["models"]["B"]["sts"]
  assert list(found) == [*evaluator.columns, "avg"]
  assert all(limits == [0.0, 0.0] for limits in found.values())


def test_seeds_are_pooled_to_mean_and_sample_standard_deviation():
  figures = [70.0, 71.0, 75.0]
  pooled = offline.pool([{"model": "m", "sts": {"X": x}} for x in figures])
  assert pooled["n"] == 3
  assert pooled["sts"]["mean"]["X"] == pytest.approx(np.mean(figures))
  assert pooled["sts"]["sd"]["X"] == pytest.approx(np.std(figures, ddof=1))
  assert offline.pool([{"sts": {"X": 1.0}}])["sts"] == {"mean": {"X": 1.0}, "sd": None}


def write_round(path, seeds):
  """Writes a round's folder, whose last seed is not finished."""
  for seed in seeds:
    models.write_tiny_folder(path / str(seed) / "model", seed)
  for seed in seeds[:-1]:
    (path / str(seed) / "result.json").write_text("{}")
  (path / "origin.json").write_text("{}")
  return str(path)


def test_a_rounds_folder_stands_for_its_finished_seeds_and_equal_names_for_one(
  tmp_path,
):
  round_ = write_round(tmp_path / "run" / "student", [2, 10, 11])
  alone = models.write_tiny_folder(tmp_path / "a=b")
  seeds = [f"{round_}/2/model", f"{round_}/10/model"]
  assert offline.find_models([round_, alone]) == {round_: seeds, alone: [alone]}
  assert offline.find_models([f"x={round_}", f"x={alone}"]) == {"x": [*seeds, alone]}
  assert offline.find_models([f"x={round_}/2"]) == {"x": seeds[:1]}
  with pytest.raises(UserError, match="2/model is given twice"):
    offline.find_models([f"x={round_}", f"x={round_}/2/model"])
  with pytest.raises(UserError, match="expected PATH or NAME=PATH"):
    offline.find_models(["x="])
  empty = write_round(tmp_path / "run" / "next", [1])
  with pytest.raises(UserError, match="no finished model yet"):
    offline.find_models([empty])
  (tmp_path / "run" / "results.json").write_text("{}")
  with pytest.raises(UserError, match="is a whole run: name .*/ROUND or"):
    offline.find_models([str(tmp_path / "run")])


def test_a_table_shows_models_side_by_side_with_the_seeds_spread():
  pool = offline.pool
  results = {
    "convention": "senteval",
    "dev": False,
    "sts": {"title": "SentEval convention: x", "averaged": ["X-test"], "pairs": {}},
    "models": {
      "one": pool([{"sts": {"X-test": 70.0, "avg": 70.0, "X-dev": 1.0}}]),
      "a|b": pool([{"sts": {"X-test": x, "avg": x, "X-dev": 2.0}} for x in (71, 73)]),
    },
  }
  # The sample standard deviation of 71 and 73 is the root of two.
  title, *rows = tables.as_text(results).splitlines()[:4]
  assert title == "SentEval convention: x"
  assert [row.split("  ")[0] for row in rows] == ["model", "one", "a|b (n=2)"]
  assert rows[0].split() == ["model", "X-test", "avg", "X-dev"]
  assert len(set(map(len, rows))) == 1
  assert rows[2].endswith("72.00 ± 1.41  72.00 ± 1.41  2.00 ± 0.00")
  markdown = tables.as_markdown(results)
  assert "| model | X-test | avg | X-dev |\n| --- | ---: | ---: | ---: |\n" in markdown
  assert "| a\\|b (n=2) | 72.00 ± 1.41 | 72.00 ± 1.41 | 2.00 ± 0.00 |" in markdown


def test_the_command_writes_json_and_markdown_of_all_models(folder):
  pytest.importorskip("sklearn", reason="needs dcse_jax[eval]")
  one = models.write_tiny_folder(folder / "one", 0)
  two = models.write_tiny_folder(folder / "two", 1)
  rows = [f"{i % 2}\t{s}\n" for i, s in enumerate(models.SENTENCES[:60])]
  (folder / "transfer").mkdir()
  for split in ("train", "test"):
    (folder / "transfer" / f"T-{split}.tsv").write_text("".join(rows))
  result = processes.run(
    "dcse_jax.evaluate",
    *(f"--model=both={one}", f"--model=both={two}", f"--model={one}"),
    *(f"--sts={folder / 'sts'}", f"--sts={folder / 'own' / 'mine.tsv'}"),
    *(f"--transfer={folder / 'transfer'}", "--convention=mteb"),
    *(f"--output={folder / 'out.json'}", f"--markdown={folder / 'new' / 'out.md'}"),
  )
  assert result.returncode == 0, result.stderr
  results = json.loads((folder / "out.json").read_text())
  assert results["convention"] == "mteb"
  assert results["sts"]["averaged"] == ["STSB-test", "SICKR-all", "mine"]
  both, alone = results["models"]["both"], results["models"][one]
  assert (both["n"], alone["n"]) == (2, 1)
  assert [run["model"] for run in both["runs"]] == [one, two]
  sets = sts_sets.read_sts(str(folder / "own"))
  figures = [sts.score_sts(SentenceEncoder(m).encode, sets)["mine"] for m in (one, two)]
  assert both["sts"]["mean"]["mine"] == pytest.approx(np.mean(figures), abs=1e-3)
  assert both["sts"]["sd"]["mine"] == pytest.approx(np.std(figures, ddof=1), abs=1e-3)
  assert 0 <= alone["transfer"]["mean"]["T"] <= 100
  assert f"{both['sts']['mean']['avg']:.2f} ± " in result.stdout
  markdown = (folder / "new" / "out.md").read_text()
  assert markdown.startswith("**MTEB convention: ") and "| both (n=2) |" in markdown


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "give --model"),
    (("--model=m",), "give --model .* --sts"),
    (("--model={0}/m", "--sts={0}/sts"), "not a model folder"),
    (("--model={0}/m", "--sts={0}/nowhere"), "holds no .tsv file"),
    (("--model={0}/m", "--transfer={0}/own"), "too few rows"),
    (("--model={0}/m", "--sts={0}/own", "--convention=x"), "convention"),
    (("--model={0}/m", "--sts={0}/own", "--alignment_above=nan"), "finite number"),
    (("--model={0}/m", "--sts={0}/own", "--num_layers=nan"), "num_layers"),
  ],
  ids=lambda value: "",
)
def test_what_cannot_be_evaluated_is_one_line(arguments, message, folder):
  arguments = [argument.format(folder) for argument in arguments]
  result = processes.run("dcse_jax.evaluate", *arguments)
  assert result.returncode == 2, result.stderr
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and re.search(message, line), line

"""How good a student becomes: our ways to distil, and sentence-transformers' own.

`python -m benchmarks quality --teacher DIR --text FILE... --sts DIR --workdir DIR` gives
every contender the same student (the teacher's first layers), the same sentences, batch
and steps, and the teacher's embeddings from one file. Each takes the learning rate that
is best on STS-B dev, in the mean over the first `--screen` seeds; the table is of the
last parameters, on the seven sets, over all seeds. Whatever is done already is read from
WORKDIR/quality.json, which is written anew after every training.

With --quick two contenders are trained for 200 steps of one seed, in a few minutes, and
compared with what quality_quick.json beside this file says of three: it ends with status 1
if one is more than two standard deviations below its mean. --record writes that file.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics

import jax
import numpy as np

from benchmarks import distillers
from dcse_jax.data import text as text_lib
from dcse_jax.data import tokens as tokens_lib
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.eval import sts
from dcse_jax.eval import sts_sets
from dcse_jax.hub import folder as folder_lib
from dcse_jax.model import model as model_lib

QUICK = {"embedding": 1e-3, "similarity, Group-P": 5e-4}  # Each at its rate.
RECORD = pathlib.Path(__file__).with_name("quality_quick.json")
# sentence-transformers' losses, see `torch_distillers`.
PEERS = ("MSELoss", "EmbedDistillLoss", "DistillKLDivLoss")


@dataclasses.dataclass(frozen=True)
class Task:
  """What every contender is given.

  Attributes:
    student: before training.
    student_folder: the same, as sentence-transformers reads it.
    sentences: what is trained on, each once.
    teacher: the teacher's embeddings of these, [n, D].
    sets: STS-B dev and the seven test sets.
    options: the command line's.
  """

  student: model_lib.Model
  student_folder: pathlib.Path
  sentences: list[str]
  teacher: np.ndarray
  sets: dict[str, sts_sets.StsSet]
  options: argparse.Namespace

  def score(self, embed, names) -> dict[str, float]:
    """Spearman x 100 by name of a set, of a function from sentences to embeddings."""
    scores = sts.score_sts(embed, {name: self.sets[name] for name in names})
    return {name: float(scores[name]) for name in names}


def prepare(options) -> Task:
  """Cuts the student, embeds the text by the teacher, unless that is done."""
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  sentences: dict[str, None] = {}
  for source in options.text:
    sentences |= dict.fromkeys(text_lib.read_text(source).columns[0])
  order = np.random.default_rng(0).permutation(len(sentences))
  every = list(sentences)
  wanted = max(options.steps) * options.batch
  sentences = [every[i] for i in order[:wanted]]
  student = folder_lib.load(options.teacher, num_layers=options.layers)
  path = workdir / f"student-{options.layers}"
  folder_lib.save(student, path, overwrite=True)
  key = tokens_lib.content_key([sentences], options.teacher, options.max_length)
  embeddings = workdir / f"teacher-{key}.npy"
  if not embeddings.exists():
    print(f"embedding {len(sentences)} sentences by the teacher", flush=True)
    teacher = SentenceEncoder(options.teacher, max_length=options.max_length)
    beside = embeddings.with_suffix(".part.npy")
    np.save(beside, teacher.encode(sentences, batch_size=256))
    beside.rename(embeddings)
  names = ("STSB-dev", *sts_sets.SEVEN_TEST_SETS)
  return Task(
    student,
    path,
    sentences,
    np.load(embeddings, mmap_mode="r"),
    sts_sets.read_sts(options.sts, names),
    options,
  )


class Record:
  """The trainings that are done, in a file of WORKDIR."""

  def __init__(self, options, name: str = "quality.json", is_new: bool = False):
    self._path = pathlib.Path(options.workdir) / name
    if is_new:
      self._path.unlink(missing_ok=True)
    self._facts = {
      "teacher": options.teacher,
      "layers": options.layers,
      "batch": options.batch,
      "max_length": options.max_length,
      "similarity_weight": options.similarity_weight,
      "device": jax.devices()[0].device_kind,
    }
    self.runs = []
    if self._path.exists():
      before = json.loads(self._path.read_text())
      if before["facts"] != self._facts:
        raise SystemExit(
          f"{self._path} is of {before['facts']}, and this is {self._facts}: name "
          "another --workdir"
        )
      self.runs = before["runs"]

  def find(self, contender: str, steps: int) -> dict[tuple[float, int], dict]:
    """The trainings of a contender, by rate and seed."""
    wanted = lambda run: (run["contender"], run["steps"]) == (contender, steps)
    return {(run["rate"], run["seed"]): run for run in filter(wanted, self.runs)}

  def add(self, **run) -> None:
    key = lambda each: [each[k] for k in ("contender", "steps", "rate", "seed")]
    self.runs = [each for each in self.runs if key(each) != key(run)] + [run]
    beside = self._path.with_suffix(".part")
    beside.write_text(json.dumps({"facts": self._facts, "runs": self.runs}, indent=1))
    beside.rename(self._path)
    rows = "".join(f"{line}\n" for line in table(self))
    self._path.with_suffix(".md").write_text(rows)

  def best_rate(self, contender: str, steps: int) -> float:
    """The rate whose mean on dev is best, over the seeds that every rate has."""
    done = self.find(contender, steps)
    rates = dict.fromkeys(rate for rate, _ in done)
    # The chosen one has seeds that the others lack.
    seeds = {seed for _, seed in done}
    common = [seed for seed in seeds if all((rate, seed) in done for rate in rates)]
    dev = lambda rate: statistics.fmean(done[rate, seed]["dev"] for seed in common)
    return max(rates, key=dev)


def _spread(values: list[float]) -> str:
  mean = f"{statistics.fmean(values):.2f}"
  return mean + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(record: Record) -> Iterator[str]:
  """Markdown: mean and sample standard deviation over seeds, at the rate dev chose."""
  yield "| steps | contender | rate | seeds | STS-B dev | seven sets | seconds |"
  yield "| --- | --- | --- | --- | --- | --- | --- |"
  entries = {(run["steps"], run["contender"]): None for run in record.runs}
  for steps, contender in sorted(entries, key=lambda entry: entry[0]):
    rate = record.best_rate(contender, steps)
    done = record.find(contender, steps).items()
    runs = [run for (own, _), run in done if own == rate and "test" in run]
    if not runs:
      continue
    dev, test, seconds = ([r[k] for r in runs] for k in ("dev", "test", "seconds"))
    yield (
      f"| {steps} | {contender} | {rate:g} | {len(runs)} | {_spread(dev)} "
      f"| {_spread(test)} | {statistics.fmean(seconds):.0f} |"
    )


def measure(trainer, contender: str, steps: int, record: Record, options) -> None:
  """Trains what is missing: first what chooses the rate, then the other seeds."""
  scorers = {}

  def train(runs, is_chosen: bool) -> None:
    results = trainer.train(contender, steps, runs) if runs else ()
    for (rate, seed), (score, seconds) in zip(runs, results):
      about = dict(contender=contender, steps=steps, rate=rate, seed=seed)
      dev = score(("STSB-dev",))["STSB-dev"]
      record.add(**about, dev=dev, seconds=seconds)
      print(
        f"{contender}, {steps} steps, rate {rate:g}, seed {seed}: dev {dev:.2f}, "
        f"{seconds:.0f} s",
        flush=True,
      )
      if is_chosen:
        test(rate, seed, score)
      else:
        scorers[rate, seed] = score

  def test(rate, seed, score) -> None:
    sets = score(sts_sets.SEVEN_TEST_SETS)
    run = record.find(contender, steps)[rate, seed]
    record.add(**run, test=statistics.fmean(sets.values()), sets=sets)
    print(
      f"{contender}, {steps} steps, rate {rate:g}, seed {seed}: seven sets "
      f"{statistics.fmean(sets.values()):.2f}",
      flush=True,
    )

  done = record.find(contender, steps)
  screened = [
    (r, seed) for r in options.rates for seed in options.seeds[: options.screen]
  ]
  missing = [run for run in screened if run not in done]
  # One rate has nothing to be chosen from, so its seeds are tested as they are trained.
  train(missing, is_chosen=len({rate for rate, _ in {*screened, *done}}) == 1)
  rate = record.best_rate(contender, steps)
  done = record.find(contender, steps)
  # One whose test was cut off is trained again: a model is not kept.
  untested = [
    seed for seed in options.seeds if "test" not in done.get((rate, seed), {})
  ]
  for seed in untested:
    if (rate, seed) in scorers:
      test(rate, seed, scorers[rate, seed])
  train(
    [(rate, seed) for seed in untested if (rate, seed) not in scorers], is_chosen=True
  )


def guard(trainer, task: Task, record: Record, options) -> None:
  """Trains what is quick, and compares it with the scores on record or writes these."""
  about = {
    "sentences": tokens_lib.content_key([task.sentences]),
    "student": model_lib.identity(task.student),
  }
  found = {}
  for contender, rate in QUICK.items():
    options.rates = [rate]
    measure(trainer, contender, 200, record, options)
    runs = record.find(contender, 200)
    found[contender] = [runs[rate, seed]["test"] for seed in options.seeds]
  if options.record:
    scores = {
      contender: {"mean": statistics.fmean(all_), "sd": statistics.stdev(all_)}
      for contender, all_ in found.items()
    }
    RECORD.write_text(json.dumps({**about, "scores": scores}, indent=1) + "\n")
    return
  before = json.loads(RECORD.read_text())
  for key, value in about.items():
    if before[key] != value:
      raise SystemExit(f"other {key} than on record: give those, or --record anew")
  is_worse = False
  for contender, (score,) in found.items():
    mean, sd = (before["scores"][contender][key] for key in ("mean", "sd"))
    is_below = score < mean - 2 * sd
    is_worse |= is_below
    word = "BELOW" if is_below else "as good as"
    print(f"{contender}: {score:.2f}, {word} the record's {mean:.2f} ± {sd:.2f}")
  if is_worse:
    raise SystemExit("a recipe has become worse: look at what changed since the record")


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog="benchmarks quality", description=__doc__)
  parser.add_argument("--teacher", required=True, help="a BERT folder")
  parser.add_argument("--text", required=True, nargs="+", help="files of sentences")
  parser.add_argument("--sts", required=True, help="a folder of STS sets")
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--layers", type=int, default=3)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--max_length", type=int, default=32)
  parser.add_argument("--steps", type=int, nargs="+", default=[200, 600, 2000])
  parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
  parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4])
  parser.add_argument("--screen", type=int, default=1, help="seeds that choose a rate")
  parser.add_argument("--contenders", nargs="+", default=[*distillers.OURS, *PEERS])
  parser.add_argument("--quick", action="store_true", help="compare with the record")
  parser.add_argument("--record", action="store_true", help="measure what it compares")
  parser.add_argument("--similarity_weight", type=float, default=0.1)
  parser.add_argument(
    "--together", type=int, help="models in one program; all on a GPU, one on a CPU"
  )
  options = parser.parse_args(arguments)
  if unknown := set(options.contenders) - {*distillers.OURS, *PEERS}:
    parser.error(
      f"no contender {unknown.pop()!r}: choose from {[*distillers.OURS, *PEERS]}"
    )
  is_guard = options.quick or options.record
  if is_guard:
    options.steps, options.contenders = [200], list(QUICK)
    options.seeds = options.seeds if options.record else options.seeds[:1]
  if options.together is None:
    options.together = int(jax.default_backend() == "cpu")
  os.environ["HF_HUB_OFFLINE"] = "1"
  task = prepare(options)
  # What was measured before says nothing about the code as it is now.
  record = Record(options, "quick.json", is_new=True) if is_guard else Record(options)
  trainers = {"ours": distillers.Distiller(task)}
  if is_guard:
    guard(trainers["ours"], task, record, options)
    return
  for steps in options.steps:
    for contender in options.contenders:
      kind = "ours"
      if contender in PEERS:
        if not importlib.util.find_spec("torch"):
          print(f"{contender} is left out: there is no PyTorch")
          continue
        from benchmarks import torch_distillers

        kind = "peers"
        if kind not in trainers:
          trainers[kind] = torch_distillers.Distiller(task)
      measure(trainers[kind], contender, steps, record, options)
  print("\n".join(table(record)))


if __name__ == "__main__":
  main()

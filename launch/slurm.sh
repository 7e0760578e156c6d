#!/usr/bin/env bash
# Submits a training to Slurm: one process a GPU, which is what JAX expects there.
#
#   launch/slurm.sh [--nodes 1] [--gpus 1] [--time 24:00:00] [--dry-run] -- FLAGS OF dcse_jax.main
#
#   --gpus  of each node
# Two minutes before the time limit the run saves, and the job queues again. Give the
# workdir on a file system that all nodes share. PYTHON (python) is the interpreter; sbatch
# itself reads SBATCH_PARTITION, SBATCH_ACCOUNT and the like.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

parse 'nodes gpus time' '' "$@"
(( ${#WORDS[@]} == 0 )) || fail "unexpected ${WORDS[0]}; the training's flags follow --"
: "${FLAG[nodes]:=1}" "${FLAG[gpus]:=1}" "${FLAG[time]:=24:00:00}"
need_number nodes
need_number gpus
need_training
# TERM goes to the processes themselves, not to srun, which would kill them.
run sbatch --job-name=dcse_jax --nodes="${FLAG[nodes]}" --ntasks-per-node="${FLAG[gpus]}" \
  --gpus-per-node="${FLAG[gpus]}" --time="${FLAG[time]}" --signal=TERM@120 --requeue \
  --open-mode=append --output=dcse_jax-%j.log --chdir="$ROOT" \
  "$ROOT/launch/slurm_job.sh" "${PYTHON:-python}" "${ARGS[@]}"

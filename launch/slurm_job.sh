#!/usr/bin/env bash
# The batch script that slurm.sh submits: slurm_job.sh PYTHON FLAGS OF dcse_jax.main

set -euo pipefail

# Each job gets another port, as JAX itself chooses it: two may share their first node.
export JAX_COORDINATOR_PORT=$(( 61440 + SLURM_JOB_ID % 4096 ))

python=$1
shift
status=0
# A process that has saved ends with 75; the others must not be killed for that.
srun --kill-on-bad-exit=0 "$python" -m dcse_jax.main "$@" || status=$?
if (( status == 75 )); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

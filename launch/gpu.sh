#!/usr/bin/env bash
# Trains on the GPUs of this machine; one process drives all of them.
#
#   launch/gpu.sh COMMAND NAME [FLAG ...] [-- FLAGS OF dcse_jax.main]
#
#   setup    Python 3.12, the requirements and JAX for CUDA 13 into ~/.dcse_jax/venv
#   run      starts the training; it goes on without this shell [--gpus 0,1]
#   status   running, finished, ...
#   logs     shows the log's end [--lines 100] [--follow]
#   stop     lets the run save and end
#
#   --dry-run  prints the commands and runs none
# Runs of other names may go on beside it, on other --gpus.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

worker() {
  run "$@" bash "$ROOT/launch/worker.sh" "${WORDS_OF_WORKER[@]}"
}

parse 'gpus lines' 'follow' "$@"
command_and_name 'setup run status logs stop'
environment=()
case $COMMAND in
  setup) WORDS_OF_WORKER=(setup 'jax[cuda13]') ;;
  run)
    need_training
    environment=(env "JAX_COORDINATOR_PORT=$PORT"
      ${FLAG[gpus]:+"CUDA_VISIBLE_DEVICES=${FLAG[gpus]}"})
    WORDS_OF_WORKER=(start "$NAME" "${ARGS[@]}")
    ;;
  logs) WORDS_OF_WORKER=(logs "$NAME" "${FLAG[lines]:-100}" ${FLAG[follow]:+--follow}) ;;
  status | stop) WORDS_OF_WORKER=("$COMMAND" "$NAME") ;;
esac
if [[ $COMMAND == status ]] && ! dry_run; then
  say "$NAME is $(describe_job "$(worker | job_summary)")"
else
  worker "${environment[@]}"
fi

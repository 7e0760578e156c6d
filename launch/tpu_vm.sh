#!/usr/bin/env bash
# Trains on a Cloud TPU (v2 to v6e) through a queued resource, on all its workers.
#
#   launch/tpu_vm.sh COMMAND NAME --zone ZONE [FLAG ...] [-- FLAGS OF dcse_jax.main]
#
#   create   asks for the TPU --type (v5litepod-8, v6e-16, ...); it may wait in a queue
#   setup    copies the working tree to every worker and installs it
#   run      starts the training on every worker; it goes on without this shell
#   status   says queued, creating, running, finished, preempted, ...
#   logs     shows the log's end [--lines 100] [--follow] [--worker 0]
#   stop     lets the run save and end
#   delete   deletes the TPU; nothing costs any more
#   babysit  all of these until the training has finished: creates, sets up, runs, and after
#            a preemption again; needs a gs:// workdir [--poll 60] [--delete-when-done]
#
#   --spot             cheaper, but it may be taken away at any time
#   --runtime-version  the image, where the one for the type is not wanted
#   --service-account  whose rights the workers have, e.g. on the bucket
#   --project          else gcloud's own
#   --dry-run          prints the commands and runs none
# JAX_COORDINATOR_PORT (8476) is the port at which the workers meet.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

runtime_version() {
  case ${FLAG[type]} in
    v6e-*) printf 'v2-alpha-tpuv6e' ;;
    v5p-*) printf 'v2-alpha-tpuv5' ;;
    v5litepod-*) printf 'v2-alpha-tpuv5-lite' ;;
    v[234]-*) printf 'tpu-ubuntu2204-base' ;;
    *) return 1 ;;
  esac
}

check_type() {
  need_flags type
  [[ ${FLAG[runtime-version]:-} ]] || FLAG[runtime-version]=$(runtime_version) ||
    fail "no runtime version is known for --type ${FLAG[type]}: give --runtime-version (newer TPUs: tpu_mig.sh)"
}

create() {
  run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
    "${PLACE[@]}" --accelerator-type="${FLAG[type]}" \
    --runtime-version="${FLAG[runtime-version]}" ${FLAG[spot]:+--spot} \
    ${FLAG[service-account]:+--service-account="${FLAG[service-account]}"}
}

# $1: the workers; $2: a command for their shell.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --quiet --worker="$1" \
    --command="$2"
}

setup() {
  pack &&
    run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$NAME:$ARCHIVE_AT_WORKER" \
      "${PLACE[@]}" --quiet --worker=all &&
    on_workers all "$(setup_command)"
}

start() {
  on_workers all "$(start_command)"
}

stop() {
  on_workers all "$(stop_command)"
}

logs() {
  on_workers "${FLAG[worker]:-0}" "$(logs_command)"
}

show_failure() {
  FLAG[lines]=20
  FLAG[worker]=all
  logs
}

delete() {
  run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
}

# It lists, because describing what is not there is an error like any other.
queue_state() {
  run gcloud compute tpus queued-resources list "${PLACE[@]}" \
    --filter="name ~ /$NAME\$" --format='value(state.state)'
}

node_state() {
  run gcloud compute tpus tpu-vm list "${PLACE[@]}" --filter="name ~ /$NAME\$" \
    --format='value(state)'
}

# Prints absent, ACTIVE, or whatever Google calls the state of the request or the node.
tpu_state() {
  local state node
  state=$(queue_state) || return
  if [[ $state == ACTIVE ]]; then
    # The node is gone before its request says so.
    node=$(node_state) || return
    [[ $node == READY ]] || state=${node:-PREEMPTED}
  fi
  printf '%s' "${state:-absent}"
}

job_state() {
  local lines
  lines=$(on_workers all "$(status_command)") || return
  job_summary <<<"$lines"
}

status() {
  local state job
  if dry_run; then
    queue_state
    node_state
    on_workers all "$(status_command)"
    return
  fi
  state=$(tpu_state) || fail "gcloud gave no answer" 1
  case $state in
    absent) say "$NAME does not exist" ;;
    ACTIVE)
      job=$(job_state) || job=
      say "$NAME is $(describe_job "$job")"
      ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES) say "$NAME is queued ($state)" ;;
    PROVISIONING | STARTING) say "$NAME is being created ($state)" ;;
    SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
      say "$NAME was preempted ($state); delete it, create it again and run" ;;
    FAILED) say "$NAME could not be created (FAILED); delete it and try again" ;;
    *) say "$NAME is in state $state" ;;
  esac
}

# The loop keeps only counters: every round looks at what is there and does the next
# step, so that the loop itself may be ended and begun again at any time.
babysit() {
  local state ended='' misses=0 told=''
  if dry_run; then
    babysit_dry_run
    return
  fi
  while :; do
    state=$(tpu_state) || state=unknown
    [[ $state == ACTIVE ]] || ended=
    case $state in
      unknown) tell "gcloud gave no answer; asking again" ;;
      absent)
        tell "creating $NAME"
        try create
        ;;
      ACTIVE) tend ;;
      FAILED)
        tell "$NAME could not be created"
        misses=$(( misses + 1 ))
        try delete
        ;;
      SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
        tell "$NAME was preempted ($state); deleting it to create it again"
        try delete
        ;;
      *) tell "$NAME: $state" ;;
    esac
    sleep "${FLAG[poll]}"
  done
}

babysit_dry_run() {
  note 'every round asks for the state:'
  status
  note 'there is no TPU:'
  create
  note 'it is ACTIVE and its workers are bare:'
  setup
  start
  note 'the run was cut off, or ended with status 75 and the TPU stayed:'
  stop
  start
  note 'it was preempted; then from the beginning:'
  delete
  note 'the run ended with another status; then this ends with it:'
  show_failure
  if [[ ${FLAG[delete-when-done]:-} ]]; then
    note 'the run ended with status 0:'
    delete
  fi
}

tell() {
  if [[ $1 != "$told" ]]; then say "$1"; fi
  told=$1
}

# Five steps that failed with no run between them end the loop.
try() {
  "$@" || misses=$(( misses + 1 ))
  (( misses < 5 )) || fail "gave up after five failures; $NAME may still exist and cost money: see status" 1
}

tend() {
  local job
  job=$(job_state) || job=
  case $job in
    '') tell "the workers gave no answer; asking again" ;;
    running)
      misses=0
      tell "the training is running"
      ;;
    none)
      tell "setting up"
      try setup_and_start
      ;;
    lost)
      tell "the training was cut off; running it again"
      try restart
      ;;
    'exited 0')
      say "the training has finished"
      if [[ ${FLAG[delete-when-done]:-} ]]; then delete; fi
      exit 0
      ;;
    *)
      # A preemption ends the run too, a little before the TPU's state shows it.
      if [[ $ended != "$job" ]]; then
        ended=$job
        tell "the training ended with status ${job#exited }; looking again whether the TPU stays"
        return
      fi
      ended=
      if [[ $job == 'exited 75' ]]; then
        tell "running the training again"
        try restart
      else
        show_failure || true
        fail "the training failed with status ${job#exited }; $NAME still exists and costs money" \
          "${job#exited }"
      fi
      ;;
  esac
}

# A worker may have been set up and started before another failed.
setup_and_start() {
  setup && restart
}

restart() {
  stop && start
}

parse 'zone project type runtime-version service-account lines worker poll' \
  'spot follow delete-when-done' "$@"
command_and_name 'create setup run status logs stop delete babysit'
need_flags zone
: "${FLAG[poll]:=60}"
need_number poll
PLACE=(--zone="${FLAG[zone]}" ${FLAG[project]:+--project="${FLAG[project]}"})
case $COMMAND in
  create)
    check_type
    create
    ;;
  run)
    need_training
    start
    ;;
  babysit)
    check_type
    need_training
    [[ $WORKDIR == gs://* ]] ||
      fail "babysit needs a --workdir gs://BUCKET/DIR: $WORKDIR would be lost with the TPU"
    babysit
    ;;
  *) "$COMMAND" ;;
esac

#!/usr/bin/env bash
# Trains on a TPU slice of Compute Engine (v5p, v6e, TPU7x) in a managed instance group,
# Google's supported way for newer TPUs; tpu_vm.sh's commands, but for babysit.
#
#   launch/tpu_mig.sh COMMAND NAME --project P --zone ZONE [FLAG ...] [-- FLAGS OF dcse_jax.main]
#
#   create   workload policy (several hosts), instance template and group, for
#            --machine-type (ct6e-standard-4t, ct5p-hightpu-4t, tpu7x-standard-4t, ...)
#            and --topology (2x4, 2x2x2, ...); [--spot] [--image-family F] [--disk 200GB]
#   setup    copies the working tree to every VM and installs it
#   run      starts the training on every VM; it goes on without this shell
#   status   the group's VMs, and running, finished, ...
#   logs     shows the log's end on one VM [--lines 100] [--follow] [--worker 0]
#   stop     lets the run save and end
#   delete   deletes group, template and policy; nothing costs any more
#
#   --dry-run  prints the commands and runs none; VM stands for each VM of the group
# JAX_COORDINATOR_PORT (8476) is the port at which the VMs meet.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# Sets SIZE, the number of VMs: the topology's chips over those of a VM.
count_vms() {
  local side chips=1 chips_of_vm
  need_flags machine-type topology
  [[ ${FLAG[topology]} =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
    fail "--topology must be like 2x4 or 2x2x2, not ${FLAG[topology]}"
  [[ ${FLAG[machine-type]} =~ -([1-9][0-9]*)t$ ]] ||
    fail "--machine-type must end with its number of chips, like ct6e-standard-4t, not ${FLAG[machine-type]}"
  chips_of_vm=${BASH_REMATCH[1]}
  for side in ${FLAG[topology]//x/ }; do chips=$(( chips * side )); done
  (( chips % chips_of_vm == 0 )) ||
    fail "--topology ${FLAG[topology]} has $chips chips, no multiple of the machine's $chips_of_vm"
  SIZE=$(( chips / chips_of_vm ))
}

choose_image() {
  DISK_TYPE=()
  case ${FLAG[machine-type]} in
    tpu7x-*) : "${FLAG[image-family]:=ubuntu-accel-2404-amd64-tpu-tpu7x}" ;;
    ct5p-* | ct6e-*)
      : "${FLAG[image-family]:=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}" ;;
  esac
  if [[ ${FLAG[machine-type]} == tpu7x-* ]]; then DISK_TYPE=(--boot-disk-type=hyperdisk-balanced); fi
  [[ ${FLAG[image-family]:-} ]] ||
    fail "no image is known for ${FLAG[machine-type]}: give --image-family"
}

create() {
  local slice=()
  count_vms
  choose_image
  if (( SIZE > 1 )); then
    run gcloud compute resource-policies create workload-policy "$NAME" \
      --project="${FLAG[project]}" --region="$REGION" --type=HIGH_THROUGHPUT \
      --accelerator-topology="${FLAG[topology]}"
    # All VMs are made at once, and none is repaired alone: one VM less is no slice.
    slice=(--target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing
      --workload-policy="projects/${FLAG[project]}/regions/$REGION/resourcePolicies/$NAME")
  fi
  run gcloud compute instance-templates create "$NAME" --project="${FLAG[project]}" \
    --machine-type="${FLAG[machine-type]}" --maintenance-policy=TERMINATE \
    --image-project=ubuntu-os-accelerator-images \
    --image-family="${FLAG[image-family]}" --boot-disk-size="${FLAG[disk]:-200GB}" \
    "${DISK_TYPE[@]}" --scopes=cloud-platform \
    ${FLAG[spot]:+--provisioning-model=SPOT --instance-termination-action=DELETE}
  run gcloud compute instance-groups managed create "$NAME" "${PLACE[@]}" \
    --template="$NAME" --size="$SIZE" "${slice[@]}"
}

# Sets VMS; a dry run has none to list.
list_vms() {
  local list=(gcloud compute instance-groups managed list-instances "$NAME"
    "${PLACE[@]}" --format='value(instance.basename())') names
  if dry_run; then
    run "${list[@]}"
    VMS=(VM)
    return
  fi
  names=$("${list[@]}") || fail "gcloud gave no answer, or there is no group $NAME" 1
  [[ $names ]] || fail "the group $NAME has no VM yet" 1
  mapfile -t VMS < <(sort <<<"$names")
}

# Runs a command on all VMs at once; fails if one fails.
on_all() {
  local vm pids=() pid result=0
  for vm in "${VMS[@]}"; do
    "$@" "$vm" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do wait "$pid" || result=1; done
  return "$result"
}

# $1: a command for the VM's shell; $2: the VM.
ssh_to() {
  run gcloud compute ssh "$2" "${PLACE[@]}" --quiet --command="$1"
}

copy_to() {
  run gcloud compute scp "$ARCHIVE" "$1:$ARCHIVE_AT_WORKER" "${PLACE[@]}" --quiet
}

setup() {
  list_vms
  pack
  on_all copy_to
  on_all ssh_to "$(setup_command)"
}

start() {
  list_vms
  on_all ssh_to "$(start_command)"
}

stop() {
  list_vms
  on_all ssh_to "$(stop_command)"
}

logs() {
  local vm
  list_vms
  if dry_run; then vm=VM; else vm=${VMS[FLAG[worker]]:-}; fi
  [[ $vm ]] || fail "--worker must be below ${#VMS[@]}, the number of VMs"
  ssh_to "$(logs_command)" "$vm"
}

status() {
  local lines=
  run gcloud compute instance-groups managed list-instances "$NAME" "${PLACE[@]}"
  list_vms
  if dry_run; then
    on_all ssh_to "$(status_command)"
    return
  fi
  lines=$(on_all ssh_to "$(status_command)") || lines=
  say "$NAME is $(describe_job "$(job_summary <<<"$lines")")"
}

# Each deletion is tried: a creation that failed half-way leaves some of the parts.
delete() {
  local result=0 policy
  local list=(gcloud compute resource-policies list --project="${FLAG[project]}"
    --filter="name = $NAME AND region ~ /$REGION\$" --format='value(name)')
  run gcloud compute instance-groups managed delete "$NAME" "${PLACE[@]}" --quiet || result=1
  run gcloud compute instance-templates delete "$NAME" --project="${FLAG[project]}" \
    --quiet || result=1
  # A slice of one VM has no policy.
  if dry_run; then run "${list[@]}"; fi
  note 'if that lists one:'
  policy=$(dry_run || "${list[@]}") || result=1
  if dry_run || [[ $policy ]]; then
    run gcloud compute resource-policies delete "$NAME" --project="${FLAG[project]}" \
      --region="$REGION" --quiet || result=1
  fi
  (( result == 0 )) || fail "not everything of $NAME was deleted: see the lines above" 1
}

parse 'zone project machine-type topology image-family disk lines worker' \
  'spot follow' "$@"
command_and_name 'create setup run status logs stop delete'
need_flags project zone
FLAG[worker]=${FLAG[worker]:-0}
need_number worker
PLACE=(--project="${FLAG[project]}" --zone="${FLAG[zone]}")
REGION=${FLAG[zone]%-*}
case $COMMAND in
  run)
    need_training
    start
    ;;
  *) "$COMMAND" ;;
esac

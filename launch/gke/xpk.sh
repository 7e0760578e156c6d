#!/usr/bin/env bash
# Submits a training to a GKE cluster of xpk (pip install xpk).
#
#   launch/gke/xpk.sh NAME --cluster C --zone Z --tpu-type T --image I [FLAG ...] -- FLAGS OF dcse_jax.main
#
#   --tpu-type      v5litepod-16, v6e-16, ...
#   --image         of launch/Dockerfile, in a registry that the cluster reads
#   --slices        1
#   --max-restarts  20; a run that saved (75) or was killed is restarted, bad input is not
#   --project       else gcloud's own
#   --spot          nodes that may be taken away at any time
#   --dry-run       prints the command and runs none
# JAX_COORDINATOR_PORT (8476) is the port at which the workers meet.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

parse 'cluster zone tpu-type image slices max-restarts project' 'spot' "$@"
(( ${#WORDS[@]} == 1 )) || fail "give a name for the workload; see --help"
NAME=${WORDS[0]}
check_name
need_flags cluster zone tpu-type image
: "${FLAG[slices]:=1}" "${FLAG[max-restarts]:=20}"
need_number slices
need_number max-restarts
need_training
# xpk puts the command into a shell script and sends TERM to it: exec hands that on.
run xpk workload create --workload="$NAME" --cluster="${FLAG[cluster]}" \
  --zone="${FLAG[zone]}" ${FLAG[project]:+--project="${FLAG[project]}"} \
  --tpu-type="${FLAG[tpu-type]}" --num-slices="${FLAG[slices]}" ${FLAG[spot]:+--spot} \
  --docker-image="${FLAG[image]}" --env="JAX_COORDINATOR_PORT=$PORT" \
  --max-restarts="${FLAG[max-restarts]}" --restart-on-exit-codes=75 \
  --command="exec $(quote python -m dcse_jax.main "${ARGS[@]}")"

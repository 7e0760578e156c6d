#!/usr/bin/env bash
# Runs on the machine that trains; the launchers call it there.
#
#   worker.sh setup PACKAGE ...         Python 3.12, the requirements and these
#   worker.sh start NAME ARG ...        python -m dcse_jax.main ARG ..., detached
#   worker.sh stop NAME                 SIGTERM; waits until the run has saved
#   worker.sh status NAME               one line: dcse_jax-worker none, running, ...
#   worker.sh logs NAME LINES [--follow]
#
# What it keeps is in ~/.dcse_jax: venv/ and, for each NAME, log, status, pid and lock.

set -euo pipefail

HOME_DIR=$HOME/.dcse_jax
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$HOME_DIR/venv/bin/python

setup() {
  export PATH=$HOME/.local/bin:$PATH
  # The images' own Python is older than 3.11; uv brings one.
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -x $PYTHON ]] || uv venv --python 3.12 "$HOME_DIR/venv"
  uv pip install --python "$PYTHON" -r "$ROOT/requirements.txt" "$@"
}

# The lock is held as long as the run or its keeper lives, even if one is killed.
under_way() {
  [[ -e $RUN/lock ]] && ! flock -n "$RUN/lock" true
}

start() {
  mkdir -p "$RUN"
  exec 9>>"$RUN/lock"
  if ! flock -n 9; then
    printf 'worker.sh: a run is under way; stop it first\n' >&2
    exit 1
  fi
  rm -f "$RUN/status" "$RUN/pid"
  # It gets a session of its own, so that it outlives the ssh connection.
  setsid bash "${BASH_SOURCE[0]}" keep "${RUN##*/}" "$@" \
    </dev/null >>"$RUN/log" 2>&1 &
}

# Runs the training and writes down how it ended.
keep() {
  local status=0
  printf '== %s %s\n' "$(date -u +%FT%TZ)" "$(printf '%q ' "$@")"
  cd "$ROOT"
  "$PYTHON" -m dcse_jax.main "$@" &
  printf '%s\n' "$!" >"$RUN/pid"
  wait "$!" || status=$?
  printf '== %s ended with status %s\n' "$(date -u +%FT%TZ)" "$status"
  printf '%s\n' "$status" >"$RUN/status.new"
  mv "$RUN/status.new" "$RUN/status"
}

stop() {
  if under_way; then
    [[ ! -e $RUN/pid ]] || kill -TERM "$(<"$RUN/pid")" || true
    flock -w 600 "$RUN/lock" true || {
      printf 'worker.sh: the run did not end within ten minutes\n' >&2
      exit 1
    }
  fi
  status
}

status() {
  local state=lost
  if [[ ! -e $RUN/lock ]]; then
    state=none
  elif under_way; then
    state=running
  elif [[ -e $RUN/status ]]; then
    state="exited $(<"$RUN/status")"
  fi
  printf 'dcse_jax-worker %s\n' "$state"
}

logs() {
  if [[ ! -e $RUN/log ]]; then
    printf 'worker.sh: there is no log yet\n' >&2
    exit 1
  fi
  tail -n "$1" ${2:+-F} "$RUN/log"
}

command=$1
shift
case $command in
  setup) setup "$@" ;;
  start | keep | stop | status | logs)
    RUN=$HOME_DIR/$1
    shift
    "$command" "$@"
    ;;
  *)
    printf 'worker.sh: unknown command %s\n' "$command" >&2
    exit 2
    ;;
esac

# shellcheck shell=bash
# What the launchers share: flags, errors, quoting, and running or printing a command.

if (( BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404 )); then
  printf '%s: bash 4.4 or newer is needed (on macOS: brew install bash)\n' "${0##*/}" >&2
  exit 2
fi

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PORT=${JAX_COORDINATOR_PORT:-8476}
declare -A FLAG=()
WORDS=()
ARGS=()

# Prints one line on stderr, and ends with status 2 unless another is given.
fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-2}"
}

say() {
  printf '%s: %s\n' "${0##*/}" "$1"
}

# Prints the script's help: the comment at its head.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# Prints words as one line that bash reads back as the same words.
quote() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

dry_run() {
  [[ ${FLAG[dry-run]:-} ]]
}

# Prints a comment between the commands of a dry run.
note() {
  if dry_run; then printf '# %s\n' "$1"; fi
}

run() {
  if dry_run; then
    quote "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Reads flags into FLAG, words before them into WORDS, what follows -- into ARGS.
# $1: names of the flags that take a value; $2: names of those that take none.
parse() {
  local values=" $1 " switches=" $2 dry-run help " name
  shift 2
  while (( $# )); do
    name=${1%%=*}
    name=${name#--}
    case $1 in
      --)
        shift
        ARGS=("$@")
        break
        ;;
      --*)
        if [[ $values == *" $name "* ]]; then
          if [[ $1 == *=* ]]; then
            FLAG[$name]=${1#*=}
          else
            (( $# > 1 )) || fail "--$name needs a value; see --help"
            FLAG[$name]=$2
            shift
          fi
        elif [[ $switches == *" $name "* && $1 != *=* ]]; then
          FLAG[$name]=1
        else
          fail "unknown flag $1; see --help (flags of the training follow --)"
        fi
        ;;
      -*) fail "unknown flag $1; see --help (flags of the training follow --)" ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
  if [[ ${FLAG[help]:-} ]]; then
    usage
    exit 0
  fi
  [[ $PORT =~ ^[0-9]+$ ]] || fail "JAX_COORDINATOR_PORT must be a number, not $PORT"
}

# Reads COMMAND and NAME from WORDS; $1: the commands that there are.
command_and_name() {
  (( ${#WORDS[@]} == 2 )) || fail "give a command and a name; see --help"
  COMMAND=${WORDS[0]}
  NAME=${WORDS[1]}
  [[ " $1 " == *" $COMMAND "* ]] || fail "unknown command $COMMAND; there are: $1"
  check_name
}

check_name() {
  [[ $NAME =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] ||
    fail "the name must be of a-z, 0-9 and -, beginning with a letter: $NAME"
}

need_flags() {
  local name
  for name in "$@"; do
    [[ ${FLAG[$name]:-} ]] || fail "--$name is needed; see --help"
  done
}

# Sets WORKDIR; refuses a training without --config or --workdir.
need_training() {
  local i config=
  WORKDIR=
  for (( i = 0; i < ${#ARGS[@]}; i++ )); do
    case ${ARGS[i]} in
      --config=* | -config=*) config=1 ;;
      --config | -config) config=1 ;;
      --workdir=* | -workdir=*) WORKDIR=${ARGS[i]#*=} ;;
      --workdir | -workdir) WORKDIR=${ARGS[i + 1]:-} ;;
    esac
  done
  [[ $config && $WORKDIR ]] ||
    fail "give the training's flags: -- --config FILE.py --workdir DIR"
}

need_number() {
  [[ ${FLAG[$1]} =~ ^[0-9]+$ ]] || fail "--$1 must be a whole number, not ${FLAG[$1]}"
}

# These are sent to a worker. worker.sh came with the tree, so only its words must be
# quoted for the shell at the other end.
WORKER=dcse_jax/launch/worker.sh
ARCHIVE_AT_WORKER=dcse_jax.tar.gz

setup_command() {
  printf 'mkdir -p dcse_jax && tar -xzf %s -C dcse_jax && ' "$ARCHIVE_AT_WORKER"
  quote bash "$WORKER" setup 'jax[tpu]' gcsfs
}

start_command() {
  quote env "JAX_COORDINATOR_PORT=$PORT" bash "$WORKER" start train "${ARGS[@]}"
}

stop_command() {
  quote bash "$WORKER" stop train
}

logs_command() {
  quote bash "$WORKER" logs train "${FLAG[lines]:-100}" ${FLAG[follow]:+--follow}
}

status_command() {
  printf '[ -e %s ] && ' "$WORKER"
  quote bash "$WORKER" status train
  printf ' || echo dcse_jax-worker none'
}

# Packs the working tree as it is: private code, uncommitted configs and all, with no
# credentials on the worker. Ignored and deleted files stay behind.
pack() {
  git -C "$ROOT" rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    fail "$ROOT is no git checkout: git tells which files to copy"
  ARCHIVE=${XDG_CACHE_HOME:-$HOME/.cache}/dcse_jax/$NAME.tar.gz
  # shellcheck disable=SC2016  # The inner bash expands it.
  run bash -c 'set -euo pipefail; mkdir -p "${2%/*}"; cd "$1"
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d "" f; do [[ ! -e $f ]] || printf "%s\0" "$f"; done |
  tar --null -T - -czf "$2"' pack "$ROOT" "$ARCHIVE"
}

# Prints one state for the workers' lines on stdin: none, lost, running, exited N, or
# nothing.
# A worker that knows of no run stands for all, then one that lost its run, then a failure.
job_summary() {
  awk '
    $1 != "dcse_jax-worker" { next }
    { said = 1 }
    $2 == "exited" && $3 != 0 && $3 != 75 { failed = $3; next }
    $2 == "exited" { seen[$2 $3] = 1; next }
    { seen[$2] = 1 }
    END {
      if (!said) exit
      if (seen["none"]) print "none"
      else if (seen["lost"]) print "lost"
      else if (failed != "") print "exited " failed
      else if (seen["running"]) print "running"
      else if (seen["exited75"]) print "exited 75"
      else print "exited 0"
    }'
}

# Says for a person what such a state means.
describe_job() {
  case $1 in
    none) printf 'ready, nothing was run' ;;
    lost) printf 'ready, the run was cut off; run it again to go on' ;;
    running) printf 'running' ;;
    'exited 0') printf 'finished' ;;
    'exited 75') printf 'saved and stopped (status 75); run it again to go on' ;;
    exited*) printf 'failed with status %s; see logs' "${1#exited }" ;;
    *) printf 'there, but its workers gave no answer' ;;
  esac
}

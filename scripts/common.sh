# What the scripts share: the environment they run in. Sourced, never run.

# Puts .venv first on PATH, so that `colossalai run` and torchrun start the Python that setup.sh made.
use_environment() { # REPOSITORY
  local venv="${VENV:-.venv}"
  case "$venv" in /*) ;; *) venv="$1/$venv" ;; esac
  if [ -x "$venv/bin/python" ]; then
    export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
  elif ! python -c 'import colossalai' 2>/dev/null; then
    echo "error: no environment at $venv and no colossalai in $(command -v python || echo 'any python'); run: bash scripts/setup.sh" >&2
    exit 1
  fi
}

count_gpus() { # prints how many NVIDIA GPUs this machine shows, honouring CUDA_VISIBLE_DEVICES
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    echo "$CUDA_VISIBLE_DEVICES" | awk -F, '{print ($1 == "-1" ? 0 : NF)}'
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
  else
    echo 0
  fi
}

# glibc gives every large buffer back to the kernel and faults it in again page by page, which can cost a CPU run more
# than the arithmetic of its elementwise steps; this tells it to keep them.
keep_large_buffers() {
  export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}"
  export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
}

# Runs a command to its end, which gets the signals that this script gets: without it bash alone would end, and leave the
# command running. The status is the command's.
run_with_signals() { # COMMAND…
  local signal child="" asked="" again status=0
  for signal in TERM INT HUP USR1 USR2; do
    trap 'asked=yes; kill -'"$signal"' "$child" 2>/dev/null || true' "$signal"
  done
  (trap - INT QUIT && exec "$@") <&0 & # bash has what it starts so ignore Ctrl-C
  child=$!
  [ -z "$asked" ] || kill -TERM "$child" # it came before there was whom to tell
  wait "$child" || status=$?
  while [ -n "$asked" ]; do # the status was of the signal to this script, and is not of the command
    asked="" again=0
    wait "$child" 2>/dev/null || again=$?
    [ "$again" = 127 ] || status="$again"
  done
  trap - TERM INT HUP USR1 USR2
  return "$status"
}

# Runs a training command of a Slurm job, and puts the job back in the queue if the run saved and stopped because a signal
# asked for it, or failed after it had saved in this start (REQUEUE_FAILED=no: not then). One that fails before it has
# saved would fail again. The command's own status is no help under torchrun, which ends with 1 in all cases; the run
# leaves status.json. A job that somebody cancels, or that Slurm itself puts back, is not running any more when its steps end.
run_and_requeue() { # SAVE_DIR COMMAND…
  local save_dir="$1" before after reason word places=0 status=0
  shift
  for word in "$@"; do
    case "$word" in --save_dir | --save_dir=* | -o | -o[!-]*) places=$((places + 1)) ;; esac
  done
  if [ "$places" != 1 ]; then
    echo "error: where the run goes is asked for by SAVE_DIR=… sbatch …, not by --save_dir: the job looks there for how it ended" >&2
    return 2
  fi
  before="$(python scripts/run_status.py "$save_dir" || true)"
  "$@" || status=$?
  [ "$status" != 0 ] || return 0
  after="$(python scripts/run_status.py "$save_dir" || true)"
  [ "$after" != "$before" ] || return "$status"
  case "$after" in
    *'"state": "stopped"'*) reason="saved and stopped" ;;
    *'"state": "running"'*) [ "${REQUEUE_FAILED:-yes}" = yes ] && reason="failed after a save" || return "$status" ;;
    *) return "$status" ;;
  esac
  if [ "$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    echo "$reason; putting job $SLURM_JOB_ID back in the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$status"
}

# Threads a process: the cores shared out, unless the user has said how many.
share_cores() { # PROCESSES
  local cores
  cores="$(nproc)"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / $1 > 0 ? cores / $1 : 1))}"
}

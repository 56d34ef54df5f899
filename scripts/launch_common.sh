# Where the scripts in benchmark_*/ and pretrain_*/ are started, and how they start. Sourced, never run.
#
# Each is run from its own folder. A hosts.txt there (one host name a line; the first is the master, and all can be
# reached by ssh without a password) makes it a run of many machines; without one it runs on this machine alone.

# Export what your network needs here or in your shell; `colossalai run` hands the environment to every machine, e.g.
# export NCCL_IB_HCA=mlx5_0:1,mlx5_1:1
# export NCCL_SOCKET_IFNAME=eth0

cd "$(dirname "$0")"
REPOSITORY="$(cd ../.. && pwd)"
. "$REPOSITORY/scripts/common.sh"
use_environment "$REPOSITORY"

GPUS="$(count_gpus)"
NPROC="${NPROC:-$((GPUS > 0 ? GPUS : 1))}"
if [ -f hosts.txt ]; then
  HOSTS=(--hostfile hosts.txt)
  WORLD=$((NPROC * $(sed 's/#.*//' hosts.txt | grep -c '[^[:space:]]')))
else
  HOSTS=()
  WORLD="$NPROC"
fi

at_most() { # LIMIT PROCESSES: a parallel size that the processes there are can fill
  echo $(($1 < $2 ? $1 : $2))
}

launch() { # PROGRAM FLAGS…
  unset_what_the_launcher_cannot_quote
  exec colossalai run --nproc_per_node "$NPROC" ${HOSTS[@]+"${HOSTS[@]}"} --master_port "${MASTER_PORT:-29500}" "$@"
}

# `colossalai run` writes the whole environment into one shell line as NAME="value" (its launcher's run_on_host), so a
# value with a double quote, a backtick or $( breaks the launch or is run as a command. Such variables are left out.
unset_what_the_launcher_cannot_quote() {
  local name
  for name in $(compgen -e); do
    case "${!name}" in
      *\"* | *\`* | *'$('*)
        echo "left out of the environment, as colossalai run cannot pass it on: $name" >&2
        unset "$name"
        ;;
    esac
  done
}

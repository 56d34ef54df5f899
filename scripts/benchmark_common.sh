# What the scripts in benchmark_7B/ and benchmark_70B/ share. Sourced by them, never run.
#
# Each is run from its own folder. A hosts.txt there (one host name a line; the first is the master, and all can be
# reached by ssh without a password) makes it a run of many machines; without one it runs on this machine alone.
#
#   CONFIG=…       model size (7b or 70b, as the folder says)     BATCH=…   sequences a data-parallel rank
#   NPROC=…        processes a machine (default: one a GPU)       LENGTH=…  tokens a sequence
#   MASTER_PORT=…  port of the rendezvous (default: 29500)
# What a script is given goes to benchmark.py after the script's own flags, and so wins over them.

# Export what your network needs here or in your shell; `colossalai run` hands the environment to every machine, e.g.
# export NCCL_IB_HCA=mlx5_0:1,mlx5_1:1
# export NCCL_SOCKET_IFNAME=eth0

cd "$(dirname "${BASH_SOURCE[1]}")"
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

run_benchmark() { # SIZE SEQUENCES-A-RANK FLAGS…
  local size="${CONFIG:-$1}" batch="$2" length="${LENGTH:-4096}"
  shift 2
  if [ "$GPUS" = 0 ] && [ "${#HOSTS[@]}" = 0 ]; then
    # Small, and said to be: on a CPU this shows that a configuration works, not how fast it is. (A CPU without its own
    # bf16 instructions multiplies matrices in it many times slower than in fp32.)
    batch=2 length="${LENGTH:-64}"
    echo "no GPU here: $size on $NPROC CPU process(es), batch ${BATCH:-$batch}, length $length; BATCH and LENGTH change that"
    keep_large_buffers
    share_cores "$NPROC"
  else
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
  fi
  unset_what_the_launcher_cannot_quote
  exec colossalai run --nproc_per_node "$NPROC" ${HOSTS[@]+"${HOSTS[@]}"} --master_port "${MASTER_PORT:-29500}" \
    "$REPOSITORY/benchmark.py" --config "$size" --batch_size "${BATCH:-$batch}" --max_length "$length" "$@"
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

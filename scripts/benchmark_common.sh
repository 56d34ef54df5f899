# What the scripts in benchmark_7B/, benchmark_8x7B/ and benchmark_70B/ share, beside launch_common.sh. Sourced by them,
# never run.
#
#   CONFIG=…       model size (7b, mixtral_8x7b or 70b, as the folder says)     BATCH=…   sequences a data-parallel rank
#   NPROC=…        processes a machine (default: one a GPU)                     LENGTH=…  tokens a sequence
#   MASTER_PORT=…  port of the rendezvous (default: 29500)
# What a script is given goes to benchmark.py after the script's own flags, and so wins over them.

. "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"

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
  launch "$REPOSITORY/benchmark.py" --config "$size" --batch_size "${BATCH:-$batch}" --max_length "$length" "$@"
}

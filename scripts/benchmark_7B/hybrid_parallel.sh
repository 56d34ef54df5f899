#!/usr/bin/env bash
# LLaMA-2 7B under hybrid parallelism: tensor parallelism TP (default 2), pipeline parallelism PP (default 1), and ZeRO
# stage ZERO (default 1) over the replicas.
#
#   bash hybrid_parallel.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

TP="${TP:-$(at_most 2 "$NPROC")}"
run_benchmark 7b 16 --plugin hybrid_parallel --tp "$TP" --pp "${PP:-1}" --zero "${ZERO:-1}" --gradient_checkpoint "$@"

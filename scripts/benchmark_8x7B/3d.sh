#!/usr/bin/env bash
# Mixtral 8x7B in four dimensions: tensor parallelism TP (default 2) within a machine, pipeline parallelism PP (default
# 2), the experts of each layer spread over EP (default 4) of the replicas, and ZeRO stage ZERO (default 1) over all
# replicas. Fewer processes make the first three smaller.
#
#   bash 3d.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

TP="${TP:-$(at_most 2 "$NPROC")}"
PP="${PP:-$(at_most 2 $((WORLD / TP)))}"
EP="${EP:-$(at_most 4 $((WORLD / TP / PP)))}"
run_benchmark mixtral_8x7b 16 --plugin 3d --tp "$TP" --pp "$PP" --ep "$EP" --zero "${ZERO:-1}" --mbs 1 \
  --gradient_checkpoint "$@"

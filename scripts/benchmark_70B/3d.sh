#!/usr/bin/env bash
# LLaMA-2 70B in three dimensions: tensor parallelism TP (default 8) within a machine, pipeline parallelism PP (default
# 4) over machines, and ZeRO stage ZERO (default 1) over the replicas. Fewer processes make both defaults smaller.
#
#   bash 3d.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

TP="${TP:-$(at_most 8 "$NPROC")}"
PP="${PP:-$(at_most 4 $((WORLD / TP)))}"
run_benchmark 70b 16 --plugin 3d --tp "$TP" --pp "$PP" --zero "${ZERO:-1}" --mbs 1 --gradient_checkpoint "$@"

#!/usr/bin/env bash
# LLaMA-2 7B under ZeRO stage 2: gradients and optimizer states sharded, parameters whole on every rank.
#
#   bash zero2.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

run_benchmark 7b 16 --plugin zero2 --gradient_checkpoint "$@"

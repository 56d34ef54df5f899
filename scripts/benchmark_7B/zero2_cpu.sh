#!/usr/bin/env bash
# LLaMA-2 7B under ZeRO stage 2 with gradients and optimizer states in host memory, where the optimizer runs too.
#
#   bash zero2_cpu.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

run_benchmark 7b 16 --plugin zero2_cpu --gradient_checkpoint "$@"

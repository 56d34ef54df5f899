#!/usr/bin/env bash
# Mixtral 8x7B under Gemini: parameters, gradients and optimizer states sharded over all ranks, experts as all else.
#
#   bash gemini.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

run_benchmark mixtral_8x7b 4 --plugin gemini --gradient_checkpoint "$@"

#!/usr/bin/env bash
# LLaMA-2 70B under Gemini with automatic placement: what does not fit on the GPU goes to host memory. Slower than
# gemini.sh; for when that one runs out of memory.
#
#   bash gemini_auto.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

run_benchmark 70b 8 --plugin gemini_auto --gradient_checkpoint "$@"

#!/usr/bin/env bash
# Mixtral 8x7B under ZeRO-2: gradients and optimizer states sharded over all ranks, and the experts of each layer spread
# over EP (default 8) of them; all other weights are whole on every rank.
#
#   bash zero2.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

EP="${EP:-$(at_most 8 "$WORLD")}"
run_benchmark mixtral_8x7b 4 --plugin zero2 --ep "$EP" --gradient_checkpoint "$@"

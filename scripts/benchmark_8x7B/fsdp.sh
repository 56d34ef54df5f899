#!/usr/bin/env bash
# Mixtral 8x7B under PyTorch's fully_shard (FSDP2): parameters, gradients and optimizer states sharded over all ranks,
# and the experts of each layer spread over EP (default 8) of them, so that a layer's are never gathered in one place.
#
#   bash fsdp.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

EP="${EP:-$(at_most 8 "$WORLD")}"
run_benchmark mixtral_8x7b 4 --plugin fsdp --ep "$EP" --gradient_checkpoint "$@"

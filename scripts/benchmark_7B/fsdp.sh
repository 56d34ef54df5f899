#!/usr/bin/env bash
# LLaMA-2 7B under PyTorch's fully_shard (FSDP2): parameters, gradients and optimizer states sharded over all ranks.
#
#   bash fsdp.sh [flags of benchmark.py]    hosts.txt, CONFIG, NPROC, BATCH and LENGTH: see ../benchmark_common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../benchmark_common.sh"

run_benchmark 7b 16 --plugin fsdp --gradient_checkpoint "$@"
